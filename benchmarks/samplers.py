"""`python -m benchmarks.samplers --workdir=DIR --json=F`: how few passes the data generator needs.

Every sampler and number of steps makes as many samples from the same noise, with the run's
guidance. They are compared with samples from other noise in many steps of Euler, which are guided
at every t, and with held-out pictures. `--compare=intervals` compares intervals of t instead, to
which the guidance of the run's own sampler is limited.

Needs a run that has a data generator and held-out records, and whose latents are pixels. Writes a
row for each setting to `--json`.
"""

import json
from pathlib import Path
from typing import Any

from absl import app, flags

from ladd_jax.config import architectures
from ladd_jax.config.workdir import read
from ladd_jax.diffusion.samplers import ALWAYS
from ladd_jax.diffusion.sampling import Sampler, Sampling
from ladd_jax.evaluation.intervals import measure_with_intervals
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.models.families import family_of
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.judging import Samples, look_at, open_judge, pictures_of, samples_of
from ladd_jax.stages.load import load_generator
from ladd_jax.stages.subjects import subject_of

_WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Workdir of the run.")
_JSON = flags.DEFINE_string("json", None, "Where to write the rows.")
_COMPARE = flags.DEFINE_enum(
    "compare", "samplers", ["samplers", "intervals"], "What differs between the rows."
)
_REFERENCE = flags.DEFINE_integer("reference", 100, "Euler steps of the samples to compare with.")

WAYS: dict[str, list[dict[str, Any]]] = {
    "samplers": [
        {"sampler": name, "steps": steps}
        for name, numbers in {"euler": (50, 25, 16, 12, 8), "dpmpp_2m": (25, 16, 12, 8)}.items()
        for steps in numbers
    ],
    "intervals": [
        {"guidance_interval": interval}
        for interval in (
            (0.0, 1.0), (0.0, 0.9), (0.0, 0.7), (0.0, 0.5),
            (0.2, 1.0), (0.4, 1.0), (0.6, 1.0), (0.2, 0.9), (0.3, 0.8),
        )
    ],
}  # fmt: skip
"""What each row changes in the way the run samples its data generator."""

_METRICS = ("fd", "alignment", "diversity", "deviation")


def main(_: list[str]) -> None:
    """Samples, judges, prints, writes."""
    workdir = Path(_WORKDIR.value)
    config = read(workdir)
    mesh = make_mesh(config.mesh.sizes)
    subject = subject_of(config, workdir)
    prompts = {bucket: subjects.prompts for bucket, subjects in subject.buckets.items()}
    params = load_generator(config, workdir, mesh)
    sampler = Sampler(
        family_of(config).backbone(architectures.generator_architecture(config)),
        subject.null,
        mesh,
        config.evaluate.batch_size,
    )
    judge = open_judge(config, workdir, mesh)

    def sample(sampling: Sampling, noise: int) -> Samples:
        channels = config.model.channels
        return samples_of(subject, sampler, params, sampling, config.seed + noise, channels)

    own = config.synthesize.sampling
    everywhere = {"guidance_interval": ALWAYS, "sampler": "euler", "steps": _REFERENCE.value}
    reference = look_at(judge, sample(Sampling.generator(**own | everywhere), 2), prompts)
    real = None
    if subject.real is not None:
        counts = dict.fromkeys(prompts, config.evaluate.samples)
        real = look_at(judge, *pictures_of(subject.real, counts, config.seed))
    rows: list[dict[str, Any]] = []
    for changes in WAYS[_COMPARE.value]:
        sampling = Sampling.generator(**own | changes)
        seen = look_at(judge, sample(sampling, 1), prompts)
        values, intervals = measure_with_intervals(
            {metric: METRICS[metric] for metric in _METRICS}, seen, reference,
            config.evaluate.resamples, config.seed,
        )  # fmt: skip
        if real is not None and len(real) == len(seen):
            values["fd_real"] = METRICS["fd_real"].measure(seen, real)
        row = changes | {"passes": sampling.passes}
        print(row, "  ".join(f"{key} {value:.4f}" for key, value in values.items()), flush=True)
        rows.append(row | {"values": values, "intervals": intervals})
        if _JSON.value:
            settings = {"reference": _REFERENCE.value, "samples": config.evaluate.samples}
            Path(_JSON.value).write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
