import time

import driver


class Engine:
    @staticmethod
    def identify():
        import importlib.metadata
        return {"version": f"onnxruntime-genai {importlib.metadata.version('onnxruntime-genai')}, onnxruntime {importlib.metadata.version('onnxruntime')}",
                "isa": "chosen at run time (MLAS), not reported"}

    def __init__(self, model, threads, setting, workloads):
        import onnxruntime_genai
        self.genai = onnxruntime_genai
        config = onnxruntime_genai.Config(model)
        config.overlay('{"model": {"decoder": {"session_options": {"intra_op_num_threads": %d}}}}' % threads)
        self.model = onnxruntime_genai.Model(config)

    def generate(self, prompts, new_tokens):
        params = self.genai.GeneratorParams(self.model)
        total = len(prompts[0]) + new_tokens
        params.set_search_options(max_length=total, min_length=total, do_sample=False, batch_size=len(prompts))
        generator = self.genai.Generator(self.model, params)
        generator.append_tokens(prompts if len(prompts) > 1 else prompts[0])
        stamps = []
        for _ in range(new_tokens):
            generator.generate_next_token()
            stamps.append(time.perf_counter())
        return stamps


driver.main(Engine)
