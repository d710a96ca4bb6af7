import json
import os

import driver


class Engine:
    @staticmethod
    def identify():
        import ctranslate2
        return {"version": f"ctranslate2 {ctranslate2.__version__}", "isa": "chosen at run time; " + " ".join(sorted(ctranslate2.get_supported_compute_types("cpu")))}

    def __init__(self, model, threads, setting, workloads):
        if setting.get("isa", "default") != "default":
            os.environ["CT2_FORCE_CPU_ISA"] = setting["isa"]
        import ctranslate2
        self.generator = ctranslate2.Generator(model, device="cpu", intra_threads=threads, inter_threads=1, compute_type="int8")
        with open(os.path.join(model, "vocabulary.json")) as file:
            self.words = json.load(file)

    def generate(self, prompts, new_tokens):
        words = [[self.words[token] for token in prompt] for prompt in prompts]
        # min_length keeps the end of sequence away; a batch in one piece.
        self.generator.generate_batch(words, max_length=new_tokens, min_length=new_tokens, sampling_topk=1, include_prompt_in_result=False,
                                      max_batch_size=len(prompts), batch_type="examples")
        return None


driver.main(Engine)
