"""`python -m benchmarks.many_prompts`: how much memory a file of ten million prompts takes.

Writes such a file to a temporary directory, and does with it what a command with the stage `encode`
does until the random encoder has encoded the first batch of text: counts each bucket's prompts
against the batches, checks whether what earlier stages made still fits, opens the prompts, digests
each and begins the shards. Memory is the process's peak, libraries included; `before` is the peak
with the libraries alone. Writes the result to `--json`.
"""

import resource
import tempfile
import time
from pathlib import Path

from absl import app, flags

from benchmarks.result_files import write_result
from configs import digits
from ladd_jax.cli.inputs import count_records
from ladd_jax.config.fields import typed
from ladd_jax.data.sources import prompts
from ladd_jax.models.families import TextEncoder
from ladd_jax.stages import encode
from ladd_jax.stages.made import Places, check_made

_PROMPTS = flags.DEFINE_integer("prompts", 10_000_000, "Prompts to write.")
_JSON = flags.DEFINE_string("json", "benchmarks/results/many_prompts.json", "Where to write.")


class _EncodedError(Exception):
    """Ends the stage once the first batch is encoded."""


class _FirstBatch:
    """A text encoder that ends the stage at its first batch, which comes after the empty prompt."""

    def __init__(self, encoder: TextEncoder):
        self._encoder, self.truncated, self.blocks = encoder, encoder.truncated, encoder.blocks

    def encode(self, texts: list[str]) -> dict:
        found = self._encoder.encode(texts)
        if texts != [""]:
            raise _EncodedError
        return found


def _peak() -> int:
    """Peak of the process's resident memory, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(_: list[str]) -> None:
    """Measures, prints and writes."""
    count, before = _PROMPTS.value, _peak()
    load = encode.text_encoder
    encode.text_encoder = lambda *arguments: _FirstBatch(load(*arguments))
    passes, stream = [], prompts.stream_prompt_set

    def counted(*arguments: str) -> object:
        passes.append(arguments)
        return stream(*arguments)

    prompts.stream_prompt_set = counted
    with tempfile.TemporaryDirectory() as folder:
        path, workdir = Path(folder) / "prompts.txt", Path(folder) / "run"
        with path.open("w") as file:
            for i in range(count):
                file.write(f"a photograph of the number {i} on a wall, in the light of evening\n")
        size = path.stat().st_size
        config = digits.get_config()
        config.data.update(dict(source="prompts", path=str(path), buckets=("8x8", "8x16", "16x8")))
        config.stages = ("encode",)
        settings = typed(config)
        start, busy = time.perf_counter(), time.process_time()
        sizes = count_records(settings, workdir)
        check_made(settings, workdir, Places(workdir))
        try:
            encode.encode(settings, workdir)
        except _EncodedError:
            pass
        seconds, core_seconds = time.perf_counter() - start, time.process_time() - busy
    assert sum(sizes.values()) == count
    result = {
        "prompts": count, "bytes_of_the_file": size, "times_read": len(passes),
        "peak_bytes": _peak(), "before": before,
        "seconds": seconds, "core_seconds": core_seconds,
    }  # fmt: skip
    print(
        f"{count} prompts, {size / 1e6:.0f} MB, read {len(passes)} times: at most "
        f"{result['peak_bytes'] / 1e9:.2f} GB, {before / 1e9:.2f} of them before; "
        f"{core_seconds:.0f} s of a core until the first batch"
    )
    write_result(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)
