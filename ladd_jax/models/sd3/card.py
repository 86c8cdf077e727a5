"""The model card of an exported student of SD3: how to call it in diffusers and in ComfyUI."""

from pathlib import PurePosixPath

from ladd_jax.methods import METHODS
from ladd_jax.models import card
from ladd_jax.models.families import Export
from ladd_jax.models.sd3.pipeline import CLASSES, EDITING, SCHEDULERS
from ladd_jax.models.sd3.text import CLIP_LENGTH
from ladd_jax.names import counted
from ladd_jax.weights.source import LORA_WEIGHTS

KOHYA = "kohya"
"""Kind of files: adapters under the names of Kohya's scripts."""

_CODE_WIDTH = 100
"""Columns of a line of code on a card."""

_COMFY_LEVELS = 1000
"""Number of sigmas in ComfyUI's table, which its scheduler `simple` picks from."""

_COMFY_TOKENS = 77
"""Number of tokens that ComfyUI pads a prompt to for the T5 of Stable Diffusion 3."""


_ALWAYS = """Always pass `sigmas`, which are the times of the student, and `guidance_scale=1.0`;
the defaults are 28 other sigmas and a scale of 7. The scheduler is {scheduler} Older versions of
diffusers call `dtype=` `torch_dtype=`.
"""

_SCHEDULER = {
    "consistency": """`FlowMatchLCMScheduler` (diffusers 0.34 or newer), which draws fresh noise in
every step from torch's global generator, so seed it with `torch.manual_seed`; `generator=` only
affects the first noise.""",
    "euler": """`FlowMatchEulerDiscreteScheduler` with a shift of 1, which draws no further noise:
the picture depends only on the first noise.""",
}
"""Text about the scheduler, by the student's sampler."""

_COMFY_SAMPLERS = {"consistency": "lcm", "euler": "euler"}
"""ComfyUI's names of samplers."""


_COMMUNITY = f"""
# Beside this script, from diffusers' repository: {EDITING}
name = "{PurePosixPath(EDITING).stem}"
spec = importlib.util.spec_from_file_location(
    f"diffusers.pipelines.stable_diffusion_3.{{name}}", f"{{name}}.py"
)
community = importlib.util.module_from_spec(spec)
spec.loader.exec_module(community)
"""
"""How the community's pipeline is loaded."""


def model_card(export: Export, reduction: int) -> str:
    """Markdown with the header that the Hugging Face hub reads.

    Args:
      export: the export.
      reduction: side of a latent pixel in pixels.
    """
    parts = [card.header(export, "stable-diffusion-3"), card.summary(export)]
    if "diffusers" in export.layouts:
        parts.append(_diffusers(export, reduction))
    if export.adapters is not None:
        kohya = KOHYA in export.layouts
        parts.append(_kohya(export) if kohya else _lora(export, reduction))
    if "single" in export.layouts:
        parts.append(_comfyui(export))
    sizes = (f"{reduction * width}x{reduction * height}" for height, width in export.sizes)
    rows = {
        **export.made,
        "sizes, width x height": ", ".join(sizes),
        "text tokens": f"{CLIP_LENGTH} of CLIP, {export.text_length - CLIP_LENGTH} of T5",
    }
    return "\n".join([*parts, card.settings(rows), card.LIMITS])


def _diffusers(export: Export, reduction: int) -> str:
    shown, kind = _shown(export), CLASSES[export.joined]
    loads = "\nfrom diffusers.utils import load_image" if export.joined else ""
    imports = f"import torch\nfrom diffusers import {kind}{loads}\n"
    if export.joined == "edit":
        kind = f"community.{kind}"
        imports = f"import importlib.util\n\nimport torch{loads}\n{_COMMUNITY}"
    made = f'pipe = {kind}.from_pretrained("{export.place}", dtype=torch.{export.dtype})'
    if len(made) > _CODE_WIDTH:
        arguments = [f'"{export.place}"', f"dtype=torch.{export.dtype}"]
        made = "\n".join(
            [f"pipe = {kind}.from_pretrained(", *(f"    {a}," for a in arguments), ")"]
        )
    return f"""## diffusers

```python
{imports}
{made}
{_call(export, reduction)}
```

{_others(shown)}
{_always(export)}{_by_number(shown[0])}{_with_pictures(export, reduction)}"""


def _kohya(export: Export) -> str:
    return f"""## ComfyUI

`{export.name}.safetensors` holds adapters of {card.named(export.base)} under the names of Kohya's
sd-scripts, for these and for ComfyUI: put it into `models/loras` and load it with
`LoraLoaderModelOnly` at strength 1, behind the base model. {_comfy_settings(export)}"""


def _lora(export: Export, reduction: int) -> str:
    base, scheduler = card.address(export.base), SCHEDULERS[_sampler(export)]
    return f"""## diffusers

These are adapters for {card.named(export.base)}. They are loaded on top of it, which needs
`pip install peft`, and its scheduler is replaced.

```python
import torch
from diffusers import {scheduler}, StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained("{base}", dtype=torch.{export.dtype})
pipe.load_lora_weights("{export.place}")
pipe.scheduler = {scheduler}(shift=1.0)
{_call(export, reduction)}
```

{_others(_shown(export))}
{_always(export)}{_from_a_picture(export, reduction)}
## ComfyUI

Put `{LORA_WEIGHTS}` into `models/loras` and load it with `LoraLoaderModelOnly` at strength 1,
behind the base model. {_comfy_settings(export)}"""


def _sampler(export: Export) -> str:
    return METHODS[export.objective].sampler


def _always(export: Export) -> str:
    return _ALWAYS.format(scheduler=_SCHEDULER[_sampler(export)])


def _shown(export: Export) -> list[list[float]]:
    """The sigmas of a call, the most steps first."""
    return [list(sigmas[:-1]) for sigmas in export.sigmas.values()]


def _others(shown: list[list[float]]) -> str:
    return "".join(f"- {counted(len(sigmas), 'step')}: `sigmas={sigmas}`\n" for sigmas in shown[1:])


def _call(export: Export, reduction: int) -> str:
    height, width = (reduction * side for side in export.square)
    pictures = ""
    if export.joined == "inpaint":
        pictures = """
    image=load_image("picture.png"),
    mask_image=load_image("mask.png"),
    strength=1.0,"""
    prompt = "a red cat"
    if export.joined == "edit":
        prompt = "make the cat red"
        pictures = """
    image=load_image("picture.png"),
    image_guidance_scale=1.0,"""
    return f"""pipe = pipe.to("cuda")
torch.manual_seed(0)
image = pipe(
    "{prompt}",{pictures}
    sigmas={_shown(export)[0]},
    guidance_scale=1.0,
    height={height},
    width={width},
    max_sequence_length={export.text_length - CLIP_LENGTH},
).images[0]"""


def _by_number(sigmas: list[float]) -> str:
    """How to get these sigmas by a number of steps, if the schedule allows it; else empty."""
    even = [1 - i * (1 - sigmas[-1]) / max(len(sigmas) - 1, 1) for i in range(len(sigmas))]
    if len(sigmas) < 2 or any(abs(a - b) > 1e-6 for a, b in zip(sigmas, even, strict=True)):
        return ""
    count = len(sigmas)
    return f"""
If a program takes a number of steps but no sigmas, give the scheduler the last sigma, and call the
pipeline with `num_inference_steps={count}` instead of `sigmas`. That gives the same sigmas for
{count} steps, and wrong ones for any other number:

```python
pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, shift_terminal={sigmas[-1]:g})
```
"""


def _with_pictures(export: Export, reduction: int) -> str:
    kinds = {"inpaint": _filling, "edit": _editing}
    return kinds.get(export.joined, _from_a_picture)(export, reduction)


def _from_a_picture(export: Export, reduction: int) -> str:
    """How to start from a picture with noise; empty if the student has no time for that."""
    sigmas = _shown(export)[0]
    rest = sigmas[len(sigmas) // 2 :]
    if len(sigmas) < 2 or export.joined:
        return ""
    height, width = (reduction * side for side in export.square)
    return f"""
To start from a picture with noise (SDEdit), pass the sigmas from one of the student's times on. The
first is the share of noise mixed into the picture. `strength` stays 1.0, since it is the share of
these sigmas that is used:

```python
from diffusers import StableDiffusion3Img2ImgPipeline
from diffusers.utils import load_image

pipe = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
image = pipe(
    "a red cat",
    image=load_image("start.png"),
    strength=1.0,
    sigmas={rest},
    guidance_scale=1.0,
    height={height},
    width={width},
    max_sequence_length={export.text_length - CLIP_LENGTH},
).images[0]
```

`sigmas={sigmas}` with `strength={len(rest) / len(sigmas):g}` does the same. The picture is resized
to `height` and `width` whatever its aspect, so crop it first.
"""


def _filling(export: Export, reduction: int) -> str:
    """Instructions about masks."""
    return f"""
White in the mask is filled. `strength` stays 1.0: the student is given the masked picture, and
starts from noise alone. Picture and mask are resized to `height` and `width` whatever their aspect,
so crop both first. The pipeline shrinks the mask to the grid of latents by taking one of every
{reduction} pixels, while in training a white pixel anywhere among these counted, so paint in blocks
of {reduction} pixels, or a little too wide. The autoencoder changes known pixels a little, so put
them back:

```python
from PIL import Image

picture, mask = (load_image(name).resize(image.size) for name in ("picture.png", "mask.png"))
image = Image.composite(image, picture, mask.convert("L").point(lambda x: 255 * (x > 127)))
```
"""


def _editing(export: Export, reduction: int) -> str:
    """Instructions about the picture that is edited."""
    channels = export.architecture.out_channels
    return f"""
The prompt says how to edit the picture. `diffusers` itself has no pipeline for this: the class is a
community pipeline, in the file
[`{EDITING}`](https://github.com/huggingface/diffusers/blob/main/{EDITING}) of its repository, which
you put next to your script. The file has relative imports and is loaded as a part of the library,
since diffusers 0.42 does not find these imports for a `custom_pipeline`. The transformer reads
{2 * channels} channels, first the {channels} of the noisy latent, then those of the picture's
latent, the mode of its distribution, scaled and shifted as the autoencoder says. The picture is
used at its own size, so crop and resize it first to `height` and `width`, which are multiples of
{2 * reduction}.
"""


def _simple(steps: int) -> list[float]:
    """The sigmas that ComfyUI's scheduler `simple` picks with a shift of 1."""
    stride = _COMFY_LEVELS / steps
    return [(_COMFY_LEVELS - int(i * stride)) / _COMFY_LEVELS for i in range(steps)]


def _comfyui(export: Export) -> str:
    return f"""## ComfyUI

`{export.name}.safetensors` holds the transformer in the layout of Stability AI's single files: put
it into `models/diffusion_models`, and load text encoders and VAE as for the base model.
{_comfy_settings(export)}"""


def _comfy_settings(export: Export) -> str:
    lines = []
    for steps, sigmas in export.sigmas.items():
        fits = all(abs(a - b) < 1e-6 for a, b in zip(sigmas[:-1], _simple(steps), strict=True))
        how = "scheduler `simple`" if fits else "custom sigmas"
        lines.append(f"- steps {steps}, {how}: sigmas {', '.join(f'{s:g}' for s in sigmas)}")
    listed = "\n".join(lines)
    tokens = export.text_length - CLIP_LENGTH
    sampler = _COMFY_SAMPLERS[_sampler(export)]
    return f"""In the sampler choose `{sampler}` and cfg 1, behind `ModelSamplingSD3` with shift 1:

{listed}

ComfyUI pads T5's tokens to {_COMFY_TOKENS}, and training padded them to {tokens}, so put the node
`T5TokenizerOptions`, with min_length {tokens}, between the text encoders and the prompt.
"""
