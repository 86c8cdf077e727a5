"""Runs that nobody trained, and what the command `sample` makes of any run."""

from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image
from untrained_run import save_student

from configs import digits, small_edit
from ladd_jax import sample
from ladd_jax.config.fields import typed


def _save(config, directory, **model):
    """Writes a run of a config, small and with random parameters; returns its folder."""
    config.model.update(dict(depth=1, width=16) | model)
    config.heads.update(dict(channels=8))
    save_student(typed(config), directory)
    return directory


def save_digits(directory, **synthesize):
    """Writes a small run of the digits; returns its folder."""
    config = digits.get_config()
    config.synthesize.update(synthesize)
    config.compilation_cache = "compilation_cache"
    return _save(config, directory, unroll=1)


def save_filling(directory, **data):
    """The same of a run that fills holes of digits."""
    config = digits.get_config()
    config.data.update(dict(joined="inpaint", buckets=("8x8",)) | data)
    return _save(config, directory, unroll=1)


def save_editing(directory, arguments="", **data):
    """The same of a run that edits scenes, of these arguments of `small_edit`."""
    config = small_edit.get_config(arguments)
    config.data.update(data)
    return _save(config, directory, num_heads=1, patch=8, position_table=3)


def command(out, *arguments, **named):
    """The command in this process."""
    flags.FLAGS.mark_as_parsed()
    sample.FLAGS.unparse_flags()
    for name in sample.FLAGS:
        sample.FLAGS[name].unparse()
    given = [f"--{name}={value}" for name, value in (named | {"out": out}).items()]
    sample.FLAGS(["sample", *given, *arguments])
    sample.main()


def draw(out, *arguments, **named):
    """The pictures that the command makes by (prompt, seed), and its sheet or None."""
    command(out, *arguments, **named)
    pictures, sheet = {}, None
    for file in Path(out).iterdir():
        with Image.open(file) as image:
            image.load()
        if file.name.startswith("grid"):
            sheet = image
        else:
            pictures[image.text["prompt"], int(image.text["seed"])] = image
    return pictures, sheet


def pixels(image):
    """Bytes of a picture, of a type in which differences have a sign."""
    return np.asarray(image, np.int32)
