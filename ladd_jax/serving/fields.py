"""The components of the page, as they stand beside each other."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio

from ladd_jax.data.buckets import Bucket
from ladd_jax.stages.trained import TrainedModel


@dataclasses.dataclass
class Fields:
    """Components of the page that events are about."""

    prompt: gradio.Textbox
    status: gradio.Markdown
    gallery: gradio.Gallery
    inputs: list[Any]
    changes: list[Any]


def fields_of(trained: TrainedModel, buckets: Mapping[str, Bucket], most: int) -> Fields:
    """Makes the components, in the blocks that are open.

    Args:
      trained: the student.
      buckets: the shapes to offer, by their names.
      most: pictures at once.
    """
    steps = len(trained.times)
    gradio.Markdown(
        f"## {Path(trained.place).name}\nOne step while you type, {steps} after a pause or Enter.",
        elem_id="title",
    )
    with gradio.Row():
        with gradio.Column(scale=2, min_width=320):
            prompt = gradio.Textbox(
                label="Prompt",
                placeholder="What to show",
                autofocus=True,
                lines=1,
                max_lines=4,
                elem_id="prompt",
            )
            aspect = gradio.Radio(
                list(buckets), value=_squarest(buckets), label="Aspect", elem_id="aspect"
            )
            with gradio.Row():
                count = gradio.Slider(1, most, 1, step=1, label="Pictures", elem_id="count")
                seed = gradio.Number(0, label="Seed", precision=0, elem_id="seed")
            guidance = None
            if trained.guidance_range:
                low, high = trained.guidance_range
                usual = trained.sampling(None, None, None).given_guidance
                guidance = gradio.Slider(low, high, usual, label="Guidance", elem_id="guidance")
            with gradio.Accordion("Start from a picture", open=False):
                picture = gradio.Image(
                    label="Picture",
                    sources=["upload", "clipboard"],
                    height=180,
                    elem_id="picture",
                )
                # The file as it came, so that what is wrong with it is told as everywhere else.
                # A subclass would do, but gradio writes a file beside each one's module.
                picture.preprocess = lambda payload: payload.path if payload else None
                times = sorted(trained.times)
                strength = gradio.Slider(
                    times[0],
                    1.0,
                    times[len(times) // 2 - 1] if steps > 1 else 1.0,
                    step=0.01,
                    label="Noise: less keeps more of the picture",
                    elem_id="strength",
                )
        with gradio.Column(scale=3, min_width=320):
            gallery = gradio.Gallery(
                show_label=False,
                format="png",
                columns=1,
                height=500,
                object_fit="contain",
                buttons=["download", "fullscreen"],
                elem_id="pictures",
                interactive=False,
            )
            status = gradio.Markdown(elem_id="status")
    inputs = [prompt, aspect, count, seed, picture, strength]
    changes = [aspect.change, count.change, seed.change, picture.change, strength.release]
    if guidance is not None:
        inputs.append(guidance)
        changes.append(guidance.release)
    return Fields(prompt, status, gallery, inputs, changes)


def _squarest(buckets: Mapping[str, Bucket]) -> str:
    """The name of the shape nearest to a square."""
    return min(buckets, key=lambda name: _skew(buckets[name]))


def _skew(bucket: Bucket) -> float:
    return abs(math.log(bucket.height / bucket.width))
