"""The stage `evaluate`: metrics and report of a run."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ladd_jax.config import architectures
from ladd_jax.config.fields import Config, Evaluate, to_dict
from ladd_jax.config.identity import TRAININGS, filled
from ladd_jax.config.own import own_beside
from ladd_jax.config.pretraining import NETWORKS, further_trainings, trainings_of_sections
from ladd_jax.config.workdir import folder
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.joined import pretrains
from ladd_jax.diffusion.sampling import Sampler, Sampling
from ladd_jax.evaluation.extractors import EXTRACTORS, extractor_for
from ladd_jax.evaluation.intervals import measure_with_intervals
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.evaluation.pictures import Grid, averaged_down, save_grid_png
from ladd_jax.evaluation.report import write_report
from ladd_jax.evaluation.rows import (
    OWN_METRICS,
    Row,
    check_finite,
    format_table,
    guidance_note,
    in_order,
    read_metrics,
    write_metrics,
)
from ladd_jax.evaluation.seen import Seen, in_shares_of
from ladd_jax.evaluation.strip import read_previews
from ladd_jax.methods import METHODS
from ladd_jax.models.families import family_of
from ladd_jax.names import counted
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.checkpoints import finished_student_step
from ladd_jax.stages.holes import Holes, completed, holes_of
from ladd_jax.stages.judging import (
    Originals,
    Samples,
    Show,
    as_pictures,
    decoding,
    edits_of,
    look_at,
    open_judge,
    pictures_of,
    samples_of,
)
from ladd_jax.stages.kept import directory_of, fingerprint, kept
from ladd_jax.stages.load import load_generator, load_unfinetuned
from ladd_jax.stages.sets import shards_of
from ladd_jax.stages.students import load_student_weights
from ladd_jax.stages.subjects import subject_of
from ladd_jax.stages.trained import given_scales
from ladd_jax.training.metrics import read_history

_LOG = logging.getLogger(__name__)

_SHOWN_SAMPLES = 2
_SHOWN_SIDE = 96  # Longest side of decoded pictures in the report, in pixels.

# The most held-out real pictures per sample of a bucket that are compared with.
_REAL = 10

# The reference together with which metrics that need no reference are measured.
_FIRST = "generator"

# The extractor's output for each bucket.
_Looked = dict[Bucket, Seen]


class _Way(NamedTuple):
    """A way of making samples: one row of the table for each bucket, and one for all."""

    model: str
    steps: int
    guidance: float
    sampling: Sampling
    # Seed of the noise: ways with the same noise can be compared picture by picture.
    noise: int
    # Whether the guidance is one of `evaluate.guidances` instead of the run's own.
    tried: bool = False

    @property
    def title(self) -> str:
        """The heading of its samples."""
        title = f"{self.model}, {counted(self.steps, 'step')}"
        return f"{title}, guidance {self.guidance:g}" if self.tried else title

    @property
    def file(self) -> str:
        """The name of the file that its samples are kept in."""
        name = f"{self.model}_{self.steps}"
        return f"{name}_{self.guidance:g}" if self.tried else name


def evaluate(config: Config, workdir: Path) -> list[Row]:
    """Samples the data generator and the student, measures their metrics, and writes a report.

    It writes `report.html`, `samples.png` and, last, `metrics.json`. If the latter exists with the
    same settings, nothing is measured again. With an autoencoder all pictures, real ones too, are
    judged as it decodes them from latents.

    Raises:
      NotFiniteError: samples or a metric are not finite; `metrics.json` is not written then.
    """
    stage = config.evaluate
    metrics, report = workdir / "metrics.json", workdir / "report.html"
    settings = _settings(config)
    added = to_dict(config.prefer) if config.prefer.after else {}
    if metrics.exists():
        rows, old = read_metrics(metrics)
        # Files of an older version are missing the step, and new fields whose defaults keep the
        # older behaviour.
        before = old.get("evaluate", {})
        same = isinstance(before, dict) and filled(before, _settings(Config())) == settings
        same = same and old.get("preferences", {}) == added
        if same and old.get("step", config.distil.steps) == config.distil.steps:
            _LOG.info("evaluate: done; remove %s to measure again", metrics)
            _show(rows, report)
            return rows
    # Checked before anything is read, since without a student there is nothing to judge.
    step = finished_student_step(config, workdir)
    mesh = make_mesh(config.mesh.sizes)
    subject = subject_of(config, workdir)
    prompts = {bucket: subjects.prompts for bucket, subjects in subject.buckets.items()}
    generator = load_generator(config, workdir, mesh)
    start = load_unfinetuned(config, workdir, mesh) if config.student.depth else generator
    name = "student" if stage.student == "params" else stage.student
    student = load_student_weights(config, workdir, mesh, name, step)
    trained = architectures.student_architecture(config)
    untold = architectures.trained_start_architecture(config)
    of_data = architectures.trained_generator_architecture(config)
    # Equal architectures share a sampler, and so its compiled programs.
    samplers = {
        architecture: Sampler(
            family_of(config).backbone(architecture), subject.null, mesh, stage.batch_size
        )
        for architecture in dict.fromkeys((trained, untold, of_data))
    }
    networks = {"student": (samplers[trained], student), "untrained": (samplers[untold], start)}
    channels, show = config.model.channels, decoding(config)
    extractor = open_judge(config, workdir, mesh, show)

    holes = holes_of(config, subject)
    edits = edits_of(config, {b: (own.cond, own.latents) for b, own in subject.buckets.items()})
    originals = Originals()
    stage = measured_of(config)

    def look(samples: Samples, texts: Mapping[Bucket, np.ndarray]) -> _Looked:
        return dict(zip(samples, look_at(extractor, samples, texts, show), strict=True))

    def judge(samples: Samples) -> _Looked:
        looked = look_at(extractor, samples, prompts, show, holes, edits, originals)
        return dict(zip(samples, looked, strict=True))

    ways = _ways(config)
    total = (len(ways) + 1) * sum(map(len, prompts.values()))
    hidden = jax.process_index() != 0
    with tqdm(total=total, desc="evaluate", unit="img", disable=hidden) as bar:

        def sample(way: _Way) -> Samples:
            own = networks.get(way.model, (samplers[of_data], generator))
            noise = config.seed + way.noise
            return samples_of(subject, *own, way.sampling, noise, channels, bar.update)

        directory = directory_of(workdir)
        cond = {bucket: subjects.cond for bucket, subjects in subject.buckets.items()}
        mark = fingerprint(config, prompts, generator, mesh, cond)
        # Models whose samples do not depend on the student, and so can be kept for all runs of this
        # data generator.
        shared = {way.model for way in ways} - {"student"}
        if config.student.depth:
            shared -= {"untrained"}

        def of_generator(way: _Way, name: str) -> Samples:
            own = f"{mark} {way.sampling} noise {config.seed + way.noise}"
            if (scale := way.sampling.image_guidance) != 1:
                own += f" image guidance {scale:g}"
            return kept(directory / f"{name}.npz", own, functools.partial(sample, way))

        reference = of_generator(ways[0]._replace(noise=2), "reference")
        references = {"generator": judge(reference)}
        rows = []
        if subject.real is not None:
            most = dict.fromkeys(prompts, _REAL * stage.samples)
            references["real"] = look(*pictures_of(subject.real, most, config.seed))
            counts = {bucket: len(texts) for bucket, texts in prompts.items()}
            data = look(*pictures_of(shards_of(config, workdir, "encoded"), counts))
            learns = EXTRACTORS[extractor_for(config)].learns
            if learns or edits is not None:
                data = {b: dataclasses.replace(part, alignment=None) for b, part in data.items()}
            way = _Way("data", 0, 1.0, ways[0].sampling, 0)
            rows += _rows(way, _several(data), references, stage, config.seed)
            if learns and edits is None and "alignment" in stage.metrics:
                # It finds what it was trained on: only unseen pictures tell how well it reads.
                aligned = dataclasses.replace(stage, metrics=("alignment",))
                unseen = _rows(way, _several(references["real"]), references, aligned, config.seed)
                rows = _with_metrics(rows, unseen, stage.metrics)
        grids: list[Grid] = []
        shown: list[Grid] = []
        for way in ways:
            samples = of_generator(way, way.file) if way.model in shared else sample(way)
            rows += _rows(way, judge(samples), references, stage, config.seed)
            # Of the other guidance scales only samples with the most steps are shown.
            if way.tried and way.model == "student" and way.steps < max(stage.student_steps):
                continue
            for bucket, latents in samples.items():
                texts, hole = prompts[bucket], holes.get(bucket)
                grids.append(_grid(way.title, bucket, latents, texts, stage, show, hole, originals))
                # The generator's own samples are not shown, since they look like the teacher's.
                if way.model != "generator":
                    shown.append(grids[-1])

    rows = in_order(rows)
    histories = {name: read_history(folder(workdir, name)) for name in trainings_of(config)}
    if not hidden:
        previews = read_previews(workdir / "distil" / "previews")
        facts, notes = facts_of(config), [*notes_of(config), *guidance_note(rows)]
        method = METHODS[config.distil.objective]
        write_report(report, rows, grids, histories, facts, notes, previews, method)
        first = shown[0].bucket
        save_grid_png(workdir / "samples.png", [grid for grid in shown if grid.bucket == first])
    # Called by all processes: if only one raised, the others would wait for it.
    check_finite(rows)
    if not hidden:
        write_metrics(metrics, rows, evaluate=settings, step=step, preferences=added)
    _show(rows, report)
    return rows


def trainings_of(config: Config) -> list[str]:
    """The trainings whose curves the report shows.

    Trainings of networks of other sizes that this config does not have are left out, since an
    earlier config may have left their curves in the workdir.
    """
    others = set(NETWORKS).difference(further_trainings(config))
    return [name for name in TRAININGS if name not in others]


def _settings(config: Config) -> dict[str, Any]:
    """The settings of the evaluation, with those of other packages that belong to it."""
    fields = to_dict(config)
    own = own_beside(fields, ("evaluate",))
    return fields["evaluate"] | ({"own": own} if own else {})


def measured_of(config: Config) -> Evaluate:
    """The section `evaluate` with the metrics added that the limits of such a run need."""
    stage = config.evaluate
    metrics = dict.fromkeys((*stage.metrics, *OWN_METRICS.get(config.data.joined, ())))
    return dataclasses.replace(stage, metrics=tuple(metrics))


def facts_of(config: Config) -> dict[str, object]:
    """The run's settings as the report shows them."""
    samples = config.synthesize.samples
    data = "the encoded pictures"
    if config.distil.data == "synthesized":
        data = f"{samples} samples of each bucket" if samples else "a sample of each record"
    made = config.weights
    if pretrains(config):
        trained = f"{config.pretrain.steps} steps of flow matching"
        made = f"{made}, {trained}" if made else trained
    network = "data generator's network" if further_trainings(config) else "network"
    facts: dict[str, object] = {}
    if config.prefer.steps:
        facts["preferences"] = (
            f"{config.prefer.steps} steps of DPO, a LoRA of rank {config.prefer.lora.rank}, "
            f"{config.prefer.applied_in_words}"
        )
    for section in trainings_of_sections(config):
        facts[f"{section}'s network"] = getattr(config, section).in_words
    return {
        "student": f"{config.distil.steps} steps of {METHODS[config.distil.objective].short} on "
        f"{data}",
        "data generator": f"{made}, {config.synthesize.guidance_in_words}",
        network: f"{config.model.depth} blocks of width {config.model.width}",
        "extractor": extractor_for(config),
        "seed": config.seed,
    } | facts


def notes_of(config: Config) -> list[str]:
    """Notes that a reader needs to understand the report's numbers."""
    matched = "the data generator's guided samples, from which FD is measured"
    if config.distil.data == "encoded":
        matched = "real pictures: FD real is measured from those, and FD from the data generator's"
    made = config.synthesize
    if made.guidance_range:
        told = "guidance of its samples, {:g} to {:g}".format(*made.guidance_range)
        beside = f"{made.guidance:g}"
        if made.image_guidance_range:
            told += ", and the image guidance, {:g} to {:g}".format(*made.image_guidance_range)
            beside += f" and image guidance {made.image_guidance:g}"
        first = (
            f"The student was given the {told}. At any scale FD and all ratios are relative to the "
            f"data generator's samples of guidance {beside}."
        )
    elif not METHODS[config.distil.objective].has_heads:
        points = "real pictures" if config.distil.data == "encoded" else "its guided samples"
        first = (
            f"The student follows {_followed(config)}, at points of {points}. FD is measured from "
            f"the data generator's guided samples."
        )
    else:
        first = f"The student is asked to match {matched}."
    notes = [first]
    if config.prefer.after:
        notes.append(
            "The student has the LoRA of preferences added, which moves it away from the samples "
            "that FD is measured from; previews show it without the LoRA."
        )
    # Of edits the data's row has no alignment at all, as a note below says.
    if EXTRACTORS[extractor_for(config)].learns and config.data.joined != "edit":
        notes.append(
            "The extractor was trained on the run's own pictures, so the alignment in the row of "
            "the data is measured on held-out real pictures: what a faithful model would reach."
        )
    if config.data.joined == "inpaint":
        notes.append(
            "Samples are judged as completed pictures, with the known pixels put back, against the "
            "held-out pictures that they complete."
        )
    if config.data.joined == "edit":
        notes.append(
            "Samples are edits of held-out pictures, and are judged against these and the true "
            "edits; real pictures of the training split have no source here, so no alignment."
        )
    if config.autoencoder:
        notes.append("All pictures are judged as decoded from latents by the autoencoder.")
    return notes


def _followed(config: Config) -> str:
    if config.distil.follows == "generator":
        return "the guided data generator"
    start = "the student's own start" if config.student.depth else "the data generator"
    return f"{start} after finetune"


def _ways(config: Config) -> list[_Way]:
    """All ways of sampling; the first is the data generator as it made the student's data."""
    stage, times = config.evaluate, tuple(config.distil.timesteps)
    made, guidance = config.synthesize, config.synthesize.guidance
    sampler = METHODS[config.distil.objective].sampler

    def guided(model: str, steps: int, scale: float, tried: bool = False) -> _Way:
        sampling = Sampling.generator(**made.sampling | {"steps": steps, "guidance": scale})
        return _Way(model, steps, scale, sampling, 1, tried)

    ways = [guided("generator", made.steps, guidance)]
    ways += [guided("teacher", n, guidance) for n in stage.teacher_steps]
    # After the run's own guidance, since `find` takes the first row as the one to compare with.
    ways += [
        guided("generator", made.steps, scale, tried=True)
        for scale in stage.guidances
        if scale != guidance
    ]

    def few_steps(model: str, steps: int, scale: float | None, tried: bool = False) -> _Way:
        # Padding lets one program serve all numbers of steps: compiling more programs would take
        # longer than the extra steps, which change nothing.
        ranges = made.guidance_range, made.image_guidance_range
        told = None if scale is None else given_scales(made.sampling, ranges, (scale, None))
        sampling = Sampling.student(steps, times, told, sampler)
        sampling = sampling.padded(max(stage.student_steps) + 1)
        return _Way(model, steps, 1.0 if scale is None else scale, sampling, 1, tried)

    # The untrained student is the network that distillation starts from, and must improve on.
    ways += [few_steps("untrained", n, None) for n in stage.student_steps]
    given = guidance if made.guidance_range else None
    ways += [few_steps("student", n, given) for n in stage.student_steps]
    if made.guidance_range:
        low, high = made.guidance_range
        ways += [
            few_steps("student", n, scale, tried=True)
            for scale in stage.guidances
            if low <= scale <= high and scale != guidance
            for n in stage.student_steps
        ]
    return ways


def _rows(
    way: _Way, samples: _Looked, references: Mapping[str, _Looked], stage: Evaluate, seed: int
) -> list[Row]:
    """A row for all buckets, and one for each of them."""
    rows: list[Row] = []
    for name, part in (("all", samples), *((b.name, {b: samples[b]}) for b in samples)):
        if name != "all" and len(samples) == 1:
            # With a single bucket its row equals the row of all buckets.
            rows.append(dataclasses.replace(rows[0], bucket=name))
            continue
        values, intervals = _measured(part, references, stage, seed)
        rows.append(Row(way.model, way.steps, way.guidance, name, values, intervals))
    return rows


def _several(looked: _Looked) -> _Looked:
    """Buckets of more than one picture, which alone has no distribution."""
    return {bucket: part for bucket, part in looked.items() if len(part.prompts) > 1}


def _with_metrics(rows: list[Row], others: list[Row], order: Sequence[str]) -> list[Row]:
    """Rows with the metrics of further ones for the same buckets, in the order of their names."""
    found = {row.bucket: row for row in others}

    def both(row: Row) -> Row:
        other = found.get(row.bucket, row)
        values, intervals = row.values | other.values, row.intervals | other.intervals
        names = [name for name in order if name in values]
        return dataclasses.replace(
            row, values={n: values[n] for n in names}, intervals={n: intervals[n] for n in names}
        )

    return [both(row) for row in rows]


def _measured(
    samples: _Looked, references: Mapping[str, _Looked], stage: Evaluate, seed: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name, reference in references.items():
        metrics = {m: METRICS[m] for m in stage.metrics if (METRICS[m].reference or _FIRST) == name}
        buckets = [bucket for bucket in samples if bucket in reference]
        if not metrics or not buckets:
            continue
        others = [reference[bucket] for bucket in buckets]
        parts = in_shares_of([samples[bucket] for bucket in buckets], others, seed)
        found = measure_with_intervals(metrics, parts, others, stage.resamples, seed)
        values |= found[0]
        intervals |= found[1]
    order = [metric for metric in stage.metrics if metric in values]
    return {m: values[m] for m in order}, {m: intervals[m] for m in order}


def _show(rows: list[Row], report: Path) -> None:
    if jax.process_index():
        return
    print("\n\n".join([format_table(rows), *guidance_note(rows), f"report: {report}"]))


def _grid(
    title: str,
    bucket: Bucket,
    latents: np.ndarray,
    prompts: np.ndarray,
    stage: Evaluate,
    show: Show | None,
    hole: Holes | None,
    originals: Originals,
) -> Grid:
    """The first samples of evenly spread prompts; those that fill holes are shown completed."""
    names = list(dict.fromkeys(prompts.tolist()))
    count = min(stage.shown_prompts, len(names))
    shown = [names[i * len(names) // count] for i in range(count)]
    least = min(_SHOWN_SAMPLES, *(int(np.sum(prompts == name)) for name in shown))
    places = np.concatenate([np.flatnonzero(prompts == name)[:least] for name in shown])
    pictures = as_pictures(latents[places], show)
    if hole is not None:
        wholes = originals.pictures((bucket, "shown"), hole.latents[places], show)
        pictures = completed(pictures, wholes, hole.masks[places])
    if show is not None:
        pictures = averaged_down(pictures, _SHOWN_SIDE)
    images = pictures.reshape(count, least, *pictures.shape[1:])
    return Grid(title, bucket.name, images, shown)
