import time

import driver


class Engine:
    @staticmethod
    def identify():
        import torch
        import transformers
        return {"version": f"transformers {transformers.__version__}, torch {torch.__version__}", "isa": "chosen at run time: " + torch.backends.cpu.get_cpu_capability()}

    def __init__(self, model, threads, setting, workloads):
        import torch
        import transformers
        torch.set_num_threads(threads)
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, setting.get("dtype", "bfloat16")))
        self.model.eval()

    def generate(self, prompts, new_tokens):
        stamps = []
        with self.torch.inference_mode():
            step = self.model(self.torch.tensor(prompts), use_cache=True, logits_to_keep=1)
            for i in range(new_tokens):
                token = step.logits[:, -1].argmax(-1, keepdim=True)
                stamps.append(time.perf_counter())
                if i + 1 < new_tokens:
                    step = self.model(token, past_key_values=step.past_key_values, use_cache=True)
        return stamps


driver.main(Engine)
