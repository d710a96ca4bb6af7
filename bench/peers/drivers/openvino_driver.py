import time

import driver


class Engine:
    @staticmethod
    def identify():
        import openvino
        import openvino_genai
        capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return {"version": f"openvino-genai {openvino_genai.__version__}", "isa": "chosen at run time (oneDNN); capabilities " + " ".join(capabilities)}

    def __init__(self, model, threads, setting, workloads):
        import numpy
        import openvino
        import openvino_genai
        self.numpy, self.openvino, self.genai = numpy, openvino, openvino_genai
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if setting.get("kv"):
            options["KV_CACHE_PRECISION"] = setting["kv"]
        if setting.get("backend") == "paged":
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.max_num_batched_tokens = 4096 + 64
            scheduler.max_num_seqs = 64
            scheduler.cache_size = 1
            scheduler.enable_prefix_caching = False
            options["scheduler_config"] = scheduler
        else:
            options["ATTENTION_BACKEND"] = "SDPA"
        self.pipeline = openvino_genai.LLMPipeline(model, "CPU", **options)

        class Clock(openvino_genai.StreamerBase):
            """Notes when each token came."""

            def __init__(self):
                super().__init__()
                self.stamps = []

            def write(self, tokens):
                self.stamps.extend([time.perf_counter()] * (len(tokens) if isinstance(tokens, (list, tuple)) else 1))
                return openvino_genai.StreamingStatus.RUNNING

            def end(self):
                pass
        self.clock = Clock

    def generate(self, prompts, new_tokens):
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new_tokens, True, False
        ids = self.numpy.array(prompts, dtype=self.numpy.int64)
        inputs = self.genai.TokenizedInputs(self.openvino.Tensor(ids), self.openvino.Tensor(self.numpy.ones_like(ids)))
        if len(prompts) > 1:
            self.pipeline.generate(inputs, config)
            return None
        clock = self.clock()
        self.pipeline.generate(inputs, config, clock)
        return clock.stamps


driver.main(Engine)
