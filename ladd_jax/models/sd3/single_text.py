"""A single text encoder, CLIP or T5, for networks that are trained from scratch.

B batch, T tokens, D width of the encoder, P width of CLIP's projection.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models.base import Params
from ladd_jax.models.layers import Dtype
from ladd_jax.models.sd3.encoder_weights import (
    Opened,
    open_clip_text,
    open_t5,
    read_clip_text_config,
    read_config,
    read_t5_config,
)
from ladd_jax.models.sd3.text import PromptTokenizer, SD3TextEncoder
from ladd_jax.paths import expand
from ladd_jax.weights.vocabulary import check_vocabulary

# Id of the padding token in all released tokenizers of T5.
_T5_PADDING = 0

_KINDS = {"clip": "clip", "clip_text_model": "clip", "t5": "t5"}


class SingleTextEncoder(SD3TextEncoder):
    """CLIP or T5 as a `models.families.TextEncoder`.

    The context is CLIP's state before its last block, or T5's last state: `[B, T, D]`. The pooled
    vector is CLIP's projected one, `[B, P]`, or the mean of T5's states over the prompt's own
    tokens, `[B, D]`.
    """

    @property
    def blocks(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Empty, since all arrays are full."""
        return {}

    def _forward(
        self, params: dict[str, Params], ids: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (name,) = self._models
        if name == "clip":
            context, pooled = self._models[name](params[name], ids[name])
            return context.astype(jnp.float32), pooled.astype(jnp.float32)
        context = self._models[name](params[name], ids[name]).astype(jnp.float32)
        own = (ids[name] != _T5_PADDING)[..., None]
        return context, jnp.sum(context * own, 1) / jnp.sum(own, 1)


def single_text_widths(place: str | Path) -> tuple[int, int]:
    """D, and the length of the pooled vector.

    Raises:
      NotFoundError: there is no such folder.
      UserError: it holds neither CLIP's text encoder nor T5's, or its config is damaged.
    """
    directory = expand(place)
    if not is_single_text(directory):
        raise NotFoundError(
            f"no config.json in {directory}: give a folder of CLIP's or T5's text encoder, with "
            f"its tokenizer"
        )
    if _kind(directory) == "clip":
        config = read_clip_text_config(directory)
        return config.hidden_size, config.projection_dim
    width = read_t5_config(directory).d_model
    return width, width


def load_single_text(
    directory: Path, dtype: Dtype, mesh: Mesh, length: int, batch: int
) -> SingleTextEncoder:
    """The encoder in a folder that also holds its tokenizer.

    Args:
      directory: folder written by `save_pretrained` of `CLIPModel`, `CLIPTextModelWithProjection`
        or `T5EncoderModel` (v1.1) and of the tokenizer.
      dtype: dtype of parameters and computation.
      mesh: devices of this process.
      length: T.
      batch: prompts encoded at once.

    Raises:
      NotFoundError: a file is not there.
      UserError: it is another model, CLIP reads fewer than T, or a tensor is missing or misshaped.
    """
    opened = open_single_text(directory, dtype, length)
    kind = _kind(directory)
    return SingleTextEncoder(
        {kind: PromptTokenizer(directory, length)},
        {kind: opened.model},
        {kind: opened.load(mesh)},
        t5_length=0,
        context_width=opened.config.hidden_size if kind == "clip" else opened.config.d_model,
        batch=batch,
        mesh=mesh,
    )


def open_single_text(directory: Path, dtype: Dtype, length: int) -> Opened:
    """Finds and checks the files of an encoder and its tokenizer; see `load_single_text`."""
    if _kind(directory) == "t5":
        opened = open_t5(directory, dtype)
    else:
        opened = open_clip_text(directory, dtype)
        if length > opened.config.max_position_embeddings:
            raise UserError(
                f"data.text_length is {length} and the CLIP of {directory} reads "
                f"{opened.config.max_position_embeddings} tokens: use that or less"
            )
    check_vocabulary(directory, opened.config.vocab_size)
    return opened


def is_single_text(directory: Path) -> bool:
    """Whether a folder holds a single encoder instead of a pipeline."""
    return (directory / "config.json").is_file()


def _kind(directory: Path) -> str:
    kind = str(read_config(directory).get("model_type", ""))
    if kind in _KINDS:
        return _KINDS[kind]
    raise UserError(
        f"{directory} holds a model of the type {kind!r}: give a folder of CLIP (clip), of CLIP's "
        f"text encoder with its projection (clip_text_model) or of T5's (t5), with its tokenizer"
    )
