"""Embeds the texts of a file with one engine, in batches, in their order and sorted by length, and prints a line of JSON like
`millrace bench embed --json`. Tokenizing is part of the time, for every engine: each tokenizes a batch and computes it.
"""
import argparse
import importlib.metadata
import json
import os
import statistics
import time


class HuggingFaceTokenizer:
    """The tokenizer that sentence-transformers uses too, without the wrapping of transformers around it."""

    def __init__(self, directory):
        import tokenizers
        self.tokenizer = tokenizers.Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
        with open(os.path.join(directory, "sentence_bert_config.json")) as file:
            self.tokenizer.enable_truncation(json.load(file)["max_seq_length"])
        self.tokenizer.no_padding()

    def __call__(self, texts):
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]


def padded(np, ids):
    longest = max(map(len, ids))
    input_ids, mask = np.zeros((len(ids), longest), np.int64), np.zeros((len(ids), longest), np.int64)
    for row, text in enumerate(ids):
        input_ids[row, :len(text)] = text
        mask[row, :len(text)] = 1
    return input_ids, mask


class OnnxRuntime:
    packages = ("onnxruntime",)

    def __init__(self, options):
        import numpy
        import onnxruntime
        self.np = numpy
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(os.path.join(options.model, options.compute + ".onnx"), settings, providers=["CPUExecutionProvider"])
        self.tokenize = HuggingFaceTokenizer(options.tokenizer)

    def embed(self, ids):
        input_ids, mask = padded(self.np, ids)
        return self.session.run(None, {"input_ids": input_ids, "attention_mask": mask})[0]


class CTranslate2:
    packages = ("ctranslate2",)

    def __init__(self, options):
        import ctranslate2
        import numpy
        self.np = numpy
        self.encoder = ctranslate2.Encoder(options.model, device="cpu", compute_type=options.compute, intra_threads=options.threads, inter_threads=1)
        self.tokenize = HuggingFaceTokenizer(options.tokenizer)

    def embed(self, ids):
        hidden = self.np.asarray(self.encoder.forward_batch(ids).last_hidden_state)  # float32, without a copy
        pooled = self.np.stack([rows[:len(text)].mean(0) for rows, text in zip(hidden, ids)])
        return pooled / self.np.linalg.norm(pooled, axis=1, keepdims=True)


class SentenceTransformers:
    packages = ("sentence-transformers", "torch")
    tokenize = None  # encode() does

    def __init__(self, options):
        import torch
        from sentence_transformers import SentenceTransformer
        torch.set_num_threads(options.threads)
        self.batch = options.batch
        self.model = SentenceTransformer(options.model, device="cpu", model_kwargs={"dtype": getattr(torch, options.compute)})
        self.lengths = HuggingFaceTokenizer(options.tokenizer)

    def embed(self, texts):
        return self.model.encode(texts, batch_size=self.batch, show_progress_bar=False, convert_to_numpy=True)


ENGINES = {"onnxruntime": OnnxRuntime, "ctranslate2": CTranslate2, "sentence-transformers": SentenceTransformers}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--model")
    parser.add_argument("--tokenizer", help="directory of the original model")
    parser.add_argument("--compute", help="the engine's own name of what it computes in")
    parser.add_argument("--file")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--vectors", help="file for the embeddings, f32 little-endian, in the file's order")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # before the engines are loaded
    os.environ.update(TOKENIZERS_PARALLELISM="true", HF_HUB_OFFLINE="1")
    with open(options.file) as file:
        texts = [json.loads(line) for line in file]
    engine = ENGINES[options.engine](options)
    lengths = [len(ids) for ids in (engine.tokenize or engine.lengths)(texts)]
    arrival = list(range(len(texts)))
    orders = {"arrival": arrival, "sorted": sorted(arrival, key=lengths.__getitem__)}

    tokenize_s = 0.0

    def compute(batch):
        nonlocal tokenize_s
        given = [texts[i] for i in batch]
        if engine.tokenize:
            start = time.perf_counter()
            given = engine.tokenize(given)
            tokenize_s += time.perf_counter() - start
        return engine.embed(given)

    compute(orders["sorted"][-options.batch:])
    answer = {}
    for name, order in orders.items():
        passes, tokenize_s, start = [], 0.0, time.perf_counter()
        while not passes or time.perf_counter() - start < options.seconds:
            begin, vectors = time.perf_counter(), []
            for at in range(0, len(order), options.batch):
                vectors.append(compute(order[at:at + options.batch]))
            passes.append(time.perf_counter() - begin)
        answer[name] = {"tokens_per_second": sum(lengths) / statistics.median(passes), "passes": len(passes)}
        if engine.tokenize:
            answer[name]["tokenize_share"] = tokenize_s / sum(passes)
        if options.vectors and name == "arrival":
            with open(options.vectors, "wb") as file:
                for rows in vectors:
                    file.write(rows.astype("<f4").tobytes())
    version = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in engine.packages)
    print(json.dumps({"version": version, "tokens": sum(lengths), "tokens_shortest": min(lengths), "tokens_longest": max(lengths), "orders": answer}))


if __name__ == "__main__":
    main()
