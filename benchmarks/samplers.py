"""How few passes the data generator needs: `python -m benchmarks.samplers --workdir=DIR --json=F`.

Of a run that has a data generator and held-out records, whose latents are pixels. Every sampler
and number of steps makes as many samples from the same noise, with the run's guidance; they are
compared with samples of other noise in many steps of Euler, and with held-out pictures. Twice the
guided steps are passes of the network.
"""

import json
from pathlib import Path
from typing import Any

from absl import app, flags

from ladd_jax.config import architectures
from ladd_jax.config.workdir import read
from ladd_jax.diffusion.sampling import Sampler, Sampling
from ladd_jax.evaluation.intervals import measure_with_intervals
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.models.families import family_of
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.judging import Samples, look_at, open_judge, pictures_of, samples_of
from ladd_jax.stages.load import load_generator
from ladd_jax.stages.subjects import subject_of

_WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Of a run that has a data generator.")
_JSON = flags.DEFINE_string("json", None, "Where to write the rows.")
_REFERENCE = flags.DEFINE_integer("reference", 100, "Steps of Euler to compare with.")

WAYS = (
    *(("euler", steps) for steps in (50, 25, 16, 12, 8)),
    *(("dpmpp_2m", steps) for steps in (25, 16, 12, 8)),
)
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

    def sample(name: str, steps: int, noise: int) -> Samples:
        settings = config.synthesize.sampling | {"steps": steps, "sampler": name}
        return samples_of(
            subject, sampler, params, Sampling.generator(**settings), config.seed + noise,
            config.model.channels,
        )  # fmt: skip

    reference = look_at(judge, sample("euler", _REFERENCE.value, 2), prompts)
    real = None
    if subject.real is not None:
        counts = dict.fromkeys(prompts, config.evaluate.samples)
        real = look_at(judge, *pictures_of(subject.real, counts, config.seed))
    rows: list[dict[str, Any]] = []
    for name, steps in WAYS:
        seen = look_at(judge, sample(name, steps, 1), prompts)
        values, intervals = measure_with_intervals(
            {metric: METRICS[metric] for metric in _METRICS}, seen, reference,
            config.evaluate.resamples, config.seed,
        )  # fmt: skip
        if real is not None and len(real) == len(seen):
            values["fd_real"] = METRICS["fd_real"].measure(seen, real)
        rows.append({"sampler": name, "steps": steps, "values": values, "intervals": intervals})
        print(name, steps, "  ".join(f"{key} {value:.4f}" for key, value in values.items()))
        if _JSON.value:
            settings = {"reference": _REFERENCE.value, "samples": config.evaluate.samples}
            Path(_JSON.value).write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
