"""The components of the page, and their arrangement."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.conditions import Condition
from ladd_jax.diffusion.sampling import scales_of
from ladd_jax.stages.conditions import conditions_of
from ladd_jax.stages.trained import TrainedModel

_KEPT_PAINTINGS = 256
"""How many paintings, over all tabs, are kept after they were sent and before they are used. A tab
needs only a few; this many keeps a painting from being dropped while other tabs paint."""

_PAINT = ("#3b82f6", 0.6)
"""Colour of the brush, translucent so that the picture shows through."""

_BRUSH = 24
"""Radius of the brush in pixels of the canvas."""


@dataclasses.dataclass
class Fields:
    """Components of the page that take part in events.

    Attributes:
      prompt: the box where the prompt is typed.
      status: a line about the pictures.
      gallery: the pictures.
      inputs: components that a `Wish` is read from, by its attributes, and its conditions by the
        names that `conditions_in` reads; choices that this student does not offer are missing.
      changes: events of the other inputs, which update the pictures like a keystroke does.
      editor: the canvas where holes are painted; None for a student that does not fill holes.
    """

    prompt: gradio.Textbox
    status: gradio.Markdown
    gallery: gradio.Gallery
    inputs: dict[str, Any]
    changes: list[Any]
    editor: gradio.ImageMask | None


@dataclasses.dataclass(frozen=True)
class _Words:
    """The page's wording for what a student does.

    Attributes:
      prompt: label of the prompt.
      example: placeholder that says what to type as a prompt.
      ready: the first thing to do once the page is ready.
    """

    prompt: str
    example: str
    ready: str


_WORDS = {
    "": _Words("Prompt", "What to show", "type a prompt"),
    "inpaint": _Words(
        "Prompt",
        "What the whole picture shows",
        "choose a picture, paint over the part to fill, and type a prompt",
    ),
    "edit": _Words(
        "Instruction",
        "What to change",
        "choose a picture and type how to edit it",
    ),
}
"""The wording by what is joined to x_t, for students that are given a picture."""

_CONDITION = "condition "
"""Before the name of a condition in the names of inputs."""


def ready_words(trained: TrainedModel) -> str:
    """The status line once the page is ready."""
    return f"Ready: {_words_of(trained).ready}."


def _words_of(trained: TrainedModel) -> _Words:
    return _WORDS[trained.joined if trained.reads_picture else ""]


def fields_of(trained: TrainedModel, buckets: Mapping[str, Bucket], most: int) -> Fields:
    """Creates the components inside the current `gradio.Blocks`.

    Args:
      trained: the student.
      buckets: the shapes to offer, by their labels.
      most: largest number of pictures at once.
    """
    steps, words = len(trained.times), _words_of(trained)
    does = "type or paint" if trained.joined == "inpaint" else "type"
    told = f"One step while you {does}, {steps} after a pause or Enter."
    gradio.Markdown(f"## {Path(trained.place).name}\n{told}", elem_id="title")
    inputs: dict[str, Any] = {}
    editor, changes = None, []
    with gradio.Row():
        with gradio.Column(scale=2, min_width=320):
            prompt = gradio.Textbox(
                label=words.prompt,
                placeholder=words.example,
                autofocus=True,
                lines=1,
                max_lines=4,
                elem_id="prompt",
            )
            inputs["prompt"] = prompt
            if trained.reads_picture:
                inputs["picture"] = _picture()
            if trained.joined == "inpaint":
                editor = _editor()
            # A student that fills holes is only asked once the first stroke is painted.
            elif trained.reads_picture:
                changes.append(inputs["picture"].change)
            # Which they are is the same in all shapes.
            for name, asked in conditions_of(trained, trained.buckets[0]).items():
                inputs[_CONDITION + name] = field = _condition(name, asked.condition)
                changes.append(field.change if asked.condition.file else field.input)
            inputs["aspect"] = gradio.Radio(
                list(buckets), value=_squarest(buckets), label="Aspect", elem_id="aspect"
            )
            with gradio.Row():
                if most > 1:
                    inputs["count"] = gradio.Slider(
                        1, most, 1, step=1, label="Pictures", elem_id="count"
                    )
                inputs["seed"] = gradio.Number(0, label="Seed", precision=0, elem_id="seed")
            changes += [
                inputs[name].change for name in ("aspect", "count", "seed") if name in inputs
            ]
            usual = scales_of(trained.sampling(None, None, None).given_guidance)
            scales = {
                "guidance": ("Guidance", trained.guidance_range),
                "image_guidance": ("Guidance on the picture", trained.image_guidance_range),
            }
            knobs = [(name, label, ends) for name, (label, ends) in scales.items() if ends]
            for (name, label, (low, high)), value in zip(knobs, usual, strict=True):
                inputs[name] = gradio.Slider(low, high, value, label=label, elem_id=name)
                changes.append(inputs[name].release)
            # At t = 1 nothing is left of a picture to start from.
            if not trained.reads_picture and min(trained.times) < 1:
                with gradio.Accordion("Start from a picture", open=False):
                    inputs["picture"] = _picture()
                    inputs["strength"] = _strength(trained)
                changes += [inputs["picture"].change, inputs["strength"].release]
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
    return Fields(prompt, status, gallery, inputs, changes, editor)


def conditions_in(given: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Names and values of the conditions that are given, of the values of `Fields.inputs`."""
    return tuple(
        (name.removeprefix(_CONDITION), value)
        for name, value in given.items()
        if name.startswith(_CONDITION) and value
    )


def _condition(name: str, condition: Condition) -> gradio.File | gradio.Textbox:
    """Where a condition's file is chosen, or its value is typed."""
    label, place = condition.words.capitalize(), f"condition_{name}"
    if condition.file:
        return gradio.File(label=label, height=120, elem_id=place)
    return gradio.Textbox(condition.default, label=label, max_lines=1, elem_id=place)


def _picture() -> gradio.Image:
    """The component where a picture is chosen."""
    picture = gradio.Image(
        label="Picture", sources=["upload", "clipboard"], height=180, elem_id="picture"
    )
    # Passes the path of the uploaded file on, so that our own reader reports what is wrong with it.
    # A subclass would be cleaner, but gradio writes a file next to the module of each subclass.
    picture.preprocess = lambda payload: payload.path if payload else None
    return picture


def _strength(trained: TrainedModel) -> gradio.Slider:
    times = sorted(trained.times)
    return gradio.Slider(
        times[0],
        1.0,
        times[max(len(times) // 2 - 1, 0)],
        step=0.01,
        label="Noise: less keeps more of the picture",
        elem_id="strength",
    )


def _editor() -> gradio.ImageMask:
    """The canvas where a hole is painted; its value is only the encoded paint layer."""
    editor = gradio.ImageMask(
        label="Paint over the part to fill",
        sources=(),
        transforms=(),
        brush=gradio.Brush(default_size=_BRUSH, colors=[_PAINT], color_mode="fixed"),
        eraser=gradio.Eraser(default_size=_BRUSH),
        format="png",
        height=420,
        buttons=[],
        elem_id="painting",
    )
    editor.preprocess = functools.partial(_painting_of, editor)
    return editor


def _painting_of(editor: gradio.ImageMask, payload: Any) -> bytes | None:
    """The bytes of the paint layer; None where there is none."""
    if payload is None:
        return None
    sent = editor.blob_storage
    if payload.id is None:
        layers = [Path(layer.path).read_bytes() for layer in payload.layers]
    else:
        found = sent.pop(payload.id, None)
        layers = [bytes(layer) for layer in found.layers if layer] if found else []
    # A stroke followed by another one before it was used is never used, and would stay forever.
    while len(sent) > _KEPT_PAINTINGS:
        sent.pop(next(iter(sent)))
    return layers[0] if layers else None


def _squarest(buckets: Mapping[str, Bucket]) -> str:
    """The name of the shape nearest to a square."""
    return min(buckets, key=lambda name: _skew(buckets[name]))


def _skew(bucket: Bucket) -> float:
    return abs(math.log(bucket.height / bucket.width))
