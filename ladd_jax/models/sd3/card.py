"""The model card of an exported student: what it is, how it was made, and how to call it."""

import re
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from ladd_jax import __version__
from ladd_jax.data.buckets import Bucket, nearest
from ladd_jax.diffusion.samplers import student_sigmas
from ladd_jax.stages.encode import CLIP_LENGTH

_COMFY_LEVELS = 1000
"""Of ComfyUI's table of sigmas, from which its scheduler `simple` picks."""


def model_card(
    config: ConfigDict,
    name: str,
    model: str,
    step: int,
    dtype: str,
    reduction: int,
    layouts: Sequence[str],
) -> str:
    """Markdown with the header that the Hugging Face hub reads.

    Args:
      config: of the run.
      name: of the export's folder.
      model: `ema` or `student`.
      step: of the checkpoint.
      dtype: of the transformer's files.
      reduction: pixels on a side of a latent pixel.
      layouts: which of `diffusers` and `single` there are.
    """
    times = tuple(config.distil.timesteps)
    parts = [_header(config), f"# {name}\n", _what(config, model, step)]
    if "diffusers" in layouts:
        parts.append(_diffusers(config, name, dtype, reduction, times))
    if "single" in layouts:
        parts.append(_comfyui(name, times))
    parts += [_settings(config, model, step, dtype, reduction), _LIMITS]
    return "\n".join(parts)


def step_counts(times: Sequence[float]) -> list[int]:
    """Numbers of steps that a student has sigmas for, the most first."""
    return [n for n in range(len(times), 0, -1) if len(times) % n == 0]


_LIMITS = """## Limits

Known of students of LADD ([arXiv 2403.12015](https://arxiv.org/abs/2403.12015)): objects that
touch may merge, spatial relations may come out wrong, and what a prompt negates may be shown. They
take neither guidance nor a negative prompt, and only the sigmas above: at others, such as those of
a default schedule, they were not trained. Biases and limits of the base model are still there.
"""


def _is_on_hub(weights: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", weights)) and not Path(weights).exists()


def _header(config: ConfigDict) -> str:
    base = [f"base_model: {config.weights}"] if _is_on_hub(config.weights) else []
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "license: other",
        "license_name: that-of-the-base-model",
        *base,
        "tags:",
        "- text-to-image",
        "- stable-diffusion-3",
        "- distillation",
        "- ladd",
        "---\n",
    ]
    return "\n".join(lines)


def _named(weights: str) -> str:
    if _is_on_hub(weights):
        return f"[{weights}](https://huggingface.co/{weights})"
    return f"`{Path(weights).name}`"


def _what(config: ConfigDict, model: str, step: int) -> str:
    counts = " or ".join(map(str, sorted(step_counts(config.distil.timesteps))))
    return (
        f"Latent Adversarial Diffusion Distillation of {_named(config.weights)}: pictures in "
        f"{counts} unguided steps. The licence is that of the base model. Made with ladd_jax "
        f"{__version__}.\n"
    )


def _diffusers(
    config: ConfigDict, name: str, dtype: str, reduction: int, times: tuple[float, ...]
) -> str:
    buckets = [Bucket.parse(bucket) for bucket in config.data.buckets]
    height, width = nearest(buckets, 1, 1).image_size(reduction)
    shown = [list(student_sigmas(n, times)[:-1]) for n in step_counts(times)]
    others = "".join(f"- {len(sigmas)} steps: `sigmas={sigmas}`\n" for sigmas in shown[1:])
    return f"""## diffusers

```python
import torch
from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained("{name}", torch_dtype=torch.{dtype}).to("cuda")
torch.manual_seed(0)
image = pipe(
    "a red cat",
    sigmas={shown[0]},
    guidance_scale=1.0,
    height={height},
    width={width},
    max_sequence_length={config.data.text_length - CLIP_LENGTH},
).images[0]
```

{others}
Always pass `sigmas`, which are the times of the training, and `guidance_scale=1.0`: left out, they
are 28 other ones and 7. The scheduler is `FlowMatchLCMScheduler` (diffusers 0.34 or newer), which
draws fresh noise in every step from torch's global generator, so seed it with `torch.manual_seed`;
`generator=` is for the first noise alone.
"""


def _simple(steps: int) -> list[float]:
    """What ComfyUI's scheduler `simple` picks where the shift is 1."""
    stride = _COMFY_LEVELS / steps
    return [(_COMFY_LEVELS - int(i * stride)) / _COMFY_LEVELS for i in range(steps)]


def _comfyui(name: str, times: tuple[float, ...]) -> str:
    lines = []
    for steps in step_counts(times):
        sigmas = student_sigmas(steps, times)
        fits = all(abs(a - b) < 1e-6 for a, b in zip(sigmas[:-1], _simple(steps), strict=True))
        how = "scheduler `simple`" if fits else "custom sigmas"
        lines.append(f"- steps {steps}, {how}: sigmas {', '.join(f'{s:g}' for s in sigmas)}")
    listed = "\n".join(lines)
    return f"""## ComfyUI

`{name}.safetensors` holds the transformer in the layout of Stability AI's single files: put it
into `models/diffusion_models`, and load text encoders and VAE as for the base model. In the
sampler choose `lcm` and cfg 1, behind `ModelSamplingSD3` with shift 1:

{listed}
"""


def _settings(config: ConfigDict, model: str, step: int, dtype: str, reduction: int) -> str:
    distil, teacher = config.distil, config.synthesize
    sizes = [Bucket.parse(bucket).image_size(reduction) for bucket in config.data.buckets]
    data = (
        "encoded images"
        if distil.data == "encoded"
        else f"the base model's samples: {teacher.steps} Euler steps, guidance "
        f"{teacher.guidance:g}, shift {teacher.shift:g}"
    )
    rows = {
        "weights": f"{'moving average' if model == 'ema' else 'last'} of step {step} of "
        f"{distil.steps}, in {dtype}",
        "average's decay": f"{distil.ema_decay:g}",
        "data": data,
        "sizes, width x height": ", ".join(f"{width}x{height}" for height, width in sizes),
        "text tokens": f"{CLIP_LENGTH} of CLIP, {config.data.text_length - CLIP_LENGTH} of T5",
        "batch": distil.batch_size,
        "times": _listed(distil.timesteps),
        "their probabilities": _listed(distil.probabilities),
        "in the first steps": f"{_listed(distil.warmup_probabilities)} ({distil.warmup_steps})",
        "noise for the discriminator": f"logit-normal, mean {distil.renoise_mean:g}, deviation "
        f"{distil.renoise_std:g}",
        "loss": distil.loss,
        "R1": f"{distil.r1_gamma:g} every {distil.r1_interval} steps",
        "distillation loss": f"{distil.distillation_weight:g}",
        "blocks with heads": _listed(distil.hooked_blocks) or "all",
        "updates of the heads a step": distil.head_updates,
        "learning rate": f"{distil.optimizer.learning_rate:g}, heads "
        f"{distil.heads_optimizer.learning_rate:g}",
        "seed": config.seed,
    }
    if config.teacher.weights:
        rows["teacher under the heads"] = _named(config.teacher.weights)
    if not distil.warmup_steps:
        del rows["in the first steps"]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"## How it was made\n\n| | |\n|---|---|\n{table}\n"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
