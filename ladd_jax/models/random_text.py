"""Text encoders with random weights, which give context tokens and a pooled vector.

A `TextEncoder` joins a tokenizer and a text transformer. This one has bytes or words as tokens and
frozen random weights, which is enough for small vocabularies. It gives the same arrays as the
encoders of Stable Diffusion 3.
"""

import re
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from ladd_jax.models.base import Model, Params
from ladd_jax.models.clip import CLIPTextConfig, clip_text

# Kana and ideographs in all planes of Unicode.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


class Tokenizer:
    """Turns prompts into token ids, cut before the end token and padded with it to `length` tokens.

    Attributes:
      length: number of tokens in a row.
      truncated: number of prompts cut so far.
      eos_token_id: id of the end token.
      vocab_size: number of tokens.
    """

    eos_token_id: int
    vocab_size: int

    def __init__(self, length: int):
        self.length = length
        self.truncated = 0

    def tokens(self, prompt: str) -> list[int]:
        """All token ids of a prompt, without an end token."""
        raise NotImplementedError

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids int32 `[n, length]`."""
        ids = np.full((len(prompts), self.length), self.eos_token_id, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            tokens = self.tokens(prompt)
            self.truncated += len(tokens) >= self.length
            tokens = tokens[: self.length - 1]
            row[: len(tokens)] = tokens
        return ids


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes."""

    eos_token_id = 256
    vocab_size = 257

    def tokens(self, prompt: str) -> list[int]:
        """See `Tokenizer`."""
        return list(prompt.encode())


class WordTokenizer(Tokenizer):
    """Lower-case words and punctuation.

    The id of a word is a hash, so that any caption can be read; of 1,000 words about 115 share
    their id with another. Characters of Chinese and Japanese, which are written without spaces, are
    words of their own.
    """

    eos_token_id = 0
    vocab_size = 8191

    def tokens(self, prompt: str) -> list[int]:
        """See `Tokenizer`."""
        words = _WORD.findall(prompt.lower())
        return [1 + zlib.crc32(word.encode()) % (self.vocab_size - 1) for word in words]


TOKENIZERS: dict[str, type[Tokenizer]] = {"bytes": ByteTokenizer, "words": WordTokenizer}
"""Tokenizers, by their names in `data.text_tokens`."""


class TextEncoder:
    """A `models.families.TextEncoder`, in batches of one fixed size so that one program serves all.

    Attributes:
      context_width: Dc.
      pooled_width: Dp.
      length: T.
    """

    def __init__(self, tokenizer: Tokenizer, model: Model, params: Params, batch: int = 256):
        self._tokenizer, self._params, self._batch = tokenizer, params, batch
        self._model = jax.jit(model.__call__)
        ids = jax.ShapeDtypeStruct((1, tokenizer.length), jnp.int32)
        context, pooled = jax.eval_shape(model.__call__, params, ids)
        self.length, self.context_width = context.shape[1:]
        self.pooled_width = pooled.shape[1]

    @classmethod
    def random(
        cls,
        *,
        seed: int,
        length: int,
        width: int,
        layers: int,
        heads: int,
        pooled_width: int,
        tokens: str = "bytes",
    ) -> "TextEncoder":
        """A frozen encoder of random weights, the same for the same seed.

        Weights have variance 1 / fan-in, instead of CLIP's initial deviation of 0.02, since the
        blocks have to mix tokens without being trained.
        """
        tokenizer = TOKENIZERS[tokens](length)
        config = CLIPTextConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=length,
            projection_dim=pooled_width,
            eos_token_id=tokenizer.eos_token_id,
            initializer=initializers.lecun_normal(),
            # Each row is one vector of unit variance.
            token_initializer=jax.random.normal,
        )
        model = clip_text(config)
        params = jax.jit(model.init)(jax.random.PRNGKey(seed))
        return cls(tokenizer, model, params)

    @property
    def truncated(self) -> dict[str, int]:
        """How many prompts were cut so far because they were too long."""
        return {"data.text_length": self._tokenizer.truncated}

    @property
    def blocks(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Empty, since all arrays are full."""
        return {}

    def encode(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Float32 `context` `[n, T, Dc]` and `pooled` `[n, Dp]`."""
        ids = self._tokenizer(prompts)
        contexts, pooleds = [], []
        for start in range(0, len(ids), self._batch):
            part = ids[start : start + self._batch]
            padded = np.pad(part, ((0, self._batch - len(part)), (0, 0)))
            context, pooled = self._model(self._params, padded)
            contexts.append(np.asarray(context[: len(part)], np.float32))
            pooleds.append(np.asarray(pooled[: len(part)], np.float32))
        return {"context": np.concatenate(contexts), "pooled": np.concatenate(pooleds)}
