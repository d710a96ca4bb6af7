"""What the drivers of Python engines share: a driver runs in its engine's virtual environment, measures and prints JSON lines.

usage: NAME_driver.py MODEL --threads N --workloads JSON --setting JSON
       NAME_driver.py MODEL --threads N --start          prints the first token as soon as it is there
       NAME_driver.py --identify                         prints {"version", "isa"}

An engine is a class with
    identify() -> {"version", "isa"}                                    static
    __init__(model, threads, setting, workloads)                        loads
    generate(prompts, new_tokens) -> [seconds of each token] or None    prompts: lists of token ids; greedy, no end of sequence;
                                                                        None where tokens cannot be observed one by one
"""
import argparse
import json
import time


def token_ids(count, stream=0):
    """Arbitrary ids of ordinary words, different for every stream, so that nothing can be shared between streams."""
    return [1000 + (i * 7919 + stream * 104729 + 13) % 20000 for i in range(count)]


def timed(engine, prompts, new_tokens):
    """(seconds to the first token of all streams, seconds in all)."""
    start = time.perf_counter()
    stamps = engine.generate(prompts, new_tokens)
    total_s = time.perf_counter() - start
    if stamps:
        return stamps[0] - start, stamps[-1] - start
    if new_tokens == 1:
        return total_s, total_s
    start = time.perf_counter()
    engine.generate(prompts, 1)
    return time.perf_counter() - start, total_s


def rate(engine, workload):
    kind, streams = workload["kind"], workload["streams"]
    if kind == "prefill":
        prompts = [token_ids(workload["prompt_tokens"])]
        if workload["prompt_tokens"] <= 1024:
            engine.generate(prompts, 1)  # engines that compile for a shape have done so then
        else:
            engine.generate([token_ids(512)], 1)
        # Other ids than the warm-up's, so that no prefix cache has them.
        first_s, _ = timed(engine, [token_ids(workload["prompt_tokens"], stream=7)], 1)
        return workload["prompt_tokens"] / first_s
    prompt_tokens = workload["depth"] or workload["prompt_tokens"] or 8
    engine.generate([token_ids(8)], 2)
    prompts = [token_ids(prompt_tokens, stream) for stream in range(streams)]
    steps = workload["new_tokens"]
    first_s, total_s = timed(engine, prompts, steps + 1)
    return streams * steps / (total_s - first_s)


def main(engine_class):
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--workloads", type=json.loads, default=[])
    parser.add_argument("--setting", type=json.loads, default={})
    parser.add_argument("--start", action="store_true")
    parser.add_argument("--identify", action="store_true")
    options = parser.parse_args()
    if options.identify:
        print(json.dumps(engine_class.identify()), flush=True)
        return
    engine = engine_class(options.model, options.threads, options.setting, options.workloads)
    if options.start:
        engine.generate([token_ids(5)], 1)
        print("first token", flush=True)
        return
    for workload in options.workloads:
        try:
            print(json.dumps({"workload": workload["name"], "rate": rate(engine, workload)}), flush=True)
        except Exception as error:  # one workload that this engine cannot do does not take the others with it
            print(json.dumps({"workload": workload["name"], "error": f"{type(error).__name__}: {error}"[:300]}), flush=True)
