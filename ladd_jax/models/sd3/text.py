"""The text encoders of Stable Diffusion 3: two of CLIP, and T5 (Esser et al. 2024).

B batch, T1 CLIP tokens, T2 T5 tokens, Dc width of the context, Dp width of the pooled vector.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ladd_jax.errors import DamagedError, UserError, brief
from ladd_jax.models.base import Model, Params
from ladd_jax.parallel.mesh import batch_sharding, check_batch_size
from ladd_jax.weights.pretrained import read_pretrained

CLIP_LENGTH = 77
"""T1 of all released models; the other tokens of the context are T5's."""

T5_LENGTH = 256
"""T2 that the released models were trained for."""


_TRIED = "a photo of a cat"


class PromptTokenizer:
    """A Hugging Face tokenizer whose rows are padded, or cut before the end token, to one length.

    Attributes:
      length: number of tokens in a row.
      truncated: number of prompts cut so far.
    """

    def __init__(self, directory: Path, length: int):
        self._directory = directory
        self._tokenizer = read_pretrained("AutoTokenizer", directory)
        self.length = length
        self.truncated = 0
        # Some damage only shows in use, so a prompt is tried before anything is encoded.
        self([_TRIED])
        self.truncated = 0

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids int32 `[n, length]`.

        Raises:
          DamagedError: the tokenizer cannot tokenize them.
        """
        try:
            return self._rows(prompts)
        # Tokenizers consist of several kinds of files, each with exceptions of its own.
        except Exception as error:
            raise DamagedError(
                f"the tokenizer in {self._directory} fails ({brief(error)}): get its files again"
            ) from error

    def _rows(self, prompts: Sequence[str]) -> np.ndarray:
        options = {"padding": "max_length", "truncation": True, "max_length": self.length}
        rows = self._tokenizer(list(prompts), **options)
        # Only a row without padding can have been cut.
        full = [
            prompt
            for prompt, mask in zip(prompts, rows["attention_mask"], strict=True)
            if all(mask)
        ]
        if full:
            whole = self._tokenizer(full, verbose=False)["input_ids"]
            self.truncated += sum(len(row) > self.length for row in whole)
        return np.asarray(rows["input_ids"], np.int32)


class SD3TextEncoder:
    """The text encoders of a Stable Diffusion 3 pipeline, as a `models.families.TextEncoder`.

    The context consists of the CLIP tokens, with the features of both encoders side by side and
    zeros up to Dc, followed by the T5 tokens, which are zeros without T5. The pooled vector is the
    concatenation of CLIP's two projected vectors.

    Attributes:
      length: T1 + T2.
      context_width: Dc.
      pooled_width: Dp.
      params: parameters of the encoders by name: `clip_l`, `clip_g`, `t5`.
    """

    def __init__(
        self,
        tokenizers: dict[str, PromptTokenizer],
        models: dict[str, Model],
        params: dict[str, Params],
        *,
        t5_length: int,
        context_width: int,
        batch: int,
        mesh: Mesh | None = None,
    ):
        """Joins tokenizers and encoders.

        Args:
          tokenizers: tokenizers of `clip_l`, `clip_g` and, if there is one, `t5`.
          models: encoders of the same names.
          params: the encoders' parameters, already on the mesh if there is one.
          t5_length: T2, even without T5.
          context_width: Dc, the width of T5.
          batch: number of prompts in one call of the program.
          mesh: mesh of this process's devices.

        Raises:
          UserError: the CLIP tokens are wider than Dc, the batch does not divide over the mesh,
            or the mesh has devices of other processes.
        """
        if mesh is not None:
            check_batch_size(batch, mesh)
            if mesh.is_multi_process:
                raise UserError(
                    "the mesh of the text encoders has devices of several processes: use those "
                    "of one, make_mesh(sizes, jax.local_devices())"
                )
        self._tokenizers, self._models, self.params = tokenizers, models, params
        self._batch, self._mesh = batch, mesh
        self._t5_length, self.context_width = t5_length, context_width
        self._program = jax.jit(self._forward)
        ids = {
            name: jax.ShapeDtypeStruct((1, tokenizer.length), jnp.int32)
            for name, tokenizer in tokenizers.items()
        }
        self._clip_width = sum(
            jax.eval_shape(models[name].__call__, params[name], ids[name])[0].shape[-1]
            for name in ("clip_l", "clip_g")
            if name in models
        )
        context, pooled = jax.eval_shape(self._forward, params, ids)
        self.length, self.pooled_width = context.shape[1], pooled.shape[1]

    @property
    def truncated(self) -> dict[str, int]:
        """How many prompts were cut so far because they did not fit, by tokenizer."""
        return {name: tokenizer.truncated for name, tokenizer in self._tokenizers.items()}

    @property
    def blocks(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """(rows, columns) of the CLIP tokens in the context, and of T5's tokens if there is T5."""
        length = self.length - self._t5_length
        t5_width = self.context_width if "t5" in self._models else 0
        return {"context": ((length, self._clip_width), (self._t5_length, t5_width))}

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Float32 `context` `[n, T, Dc]` and `pooled` `[n, Dp]`."""
        ids = {name: tokenizer(prompts) for name, tokenizer in self._tokenizers.items()}
        contexts, pooleds = [], []
        for start in range(0, len(prompts), self._batch):
            count = min(self._batch, len(prompts) - start)
            padded = {
                name: np.resize(rows[start : start + count], (self._batch, rows.shape[1]))
                for name, rows in ids.items()
            }
            if self._mesh is None:
                context, pooled = self._program(self.params, padded)
            else:
                placed = jax.device_put(padded, batch_sharding(self._mesh))
                with jax.set_mesh(self._mesh):
                    context, pooled = self._program(self.params, placed)
            contexts.append(np.asarray(context)[:count])
            pooleds.append(np.asarray(pooled)[:count])
        return {"context": np.concatenate(contexts), "pooled": np.concatenate(pooleds)}

    def _forward(
        self, params: dict[str, Params], ids: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        contexts, pooleds = zip(
            *(self._models[name](params[name], ids[name]) for name in ("clip_l", "clip_g")),
            strict=True,
        )
        clip = jnp.concatenate(contexts, axis=-1).astype(jnp.float32)
        b, _, width = clip.shape
        if width > self.context_width:
            raise UserError(
                f"the CLIP encoders are {width} wide together and the context is "
                f"{self.context_width} wide: use encoders of one pipeline"
            )
        clip = jnp.pad(clip, ((0, 0), (0, 0), (0, self.context_width - width)))
        if "t5" in self._models:
            t5 = self._models["t5"](params["t5"], ids["t5"]).astype(jnp.float32)
        else:
            t5 = jnp.zeros((b, self._t5_length, self.context_width), jnp.float32)
        pooled = jnp.concatenate(pooleds, axis=-1).astype(jnp.float32)
        return jnp.concatenate([clip, t5], axis=1), pooled
