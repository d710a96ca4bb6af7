"""The workloads: what is computed and what the figure counts."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Workload:
    name: str
    title: str
    kind: str  # "prefill", "decode", "batch" or "start"
    prompt_tokens: int = 0
    new_tokens: int = 0
    depth: int = 0  # tokens already in the KV cache when the clock starts
    streams: int = 1

    @property
    def unit(self):
        return "s" if self.kind == "start" else "tokens/s"

    @property
    def higher_is_better(self):
        return self.kind != "start"

    @property
    def context_tokens(self):
        """Room that all streams need together."""
        return self.streams * (self.depth + self.prompt_tokens + self.new_tokens)

    @property
    def is_long(self):
        return self.depth + self.prompt_tokens > 1024

    def for_sweep(self):
        """A shorter workload of the same kind, on which settings are compared."""
        if self.streams > 1:
            return dataclasses.replace(self, new_tokens=16)
        if self.is_long:
            return dataclasses.replace(self, prompt_tokens=min(self.prompt_tokens, 1024), depth=min(self.depth, 1024), new_tokens=min(self.new_tokens, 32))
        return self


WORKLOADS = (
    Workload("prefill512", "prefill 512", "prefill", prompt_tokens=512),
    Workload("decode", "decode 128", "decode", new_tokens=128),
    Workload("prefill4096", "prefill 4096", "prefill", prompt_tokens=4096),
    Workload("decode4096", "decode 64 at depth 4096", "decode", new_tokens=64, depth=4096),
    Workload("streams8", "8 streams, 64 + 64", "batch", prompt_tokens=64, new_tokens=64, streams=8),
    Workload("streams32", "32 streams, 64 + 64", "batch", prompt_tokens=64, new_tokens=64, streams=32),
    Workload("start", "start to first token", "start", new_tokens=1),
)

DEFINITIONS = """\
- prefill N: one prompt of N tokens into an empty cache. decode: single-token steps of one stream, without sampling where the engine can.
- streams: that many prompts of 64 tokens at once, each continued by 64; the figure is all streams' decode rate together, prefill not counted.
- start to first token: from the start of the process, the files in the page cache, to the first token of a five-word prompt."""


def named(name):
    for workload in WORKLOADS:
        if workload.name == name:
            return workload
    raise KeyError(name)
