"""CLIP: features of pictures, and how well these fit their prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from ladd_jax.errors import NotFoundError
from ladd_jax.evaluation.extractors import Given
from ladd_jax.evaluation.extractors.base import Extractor
from ladd_jax.evaluation.extractors.batches import Batched, rgb_bytes
from ladd_jax.weights.clip import load_clip
from ladd_jax.weights.pretrained import read_pretrained
from ladd_jax.weights.source import fetch_model

_BATCH = 32

Score = Callable[[np.ndarray, float], np.ndarray]
"""`score(cosine [n], scale) -> [n]`, from the cosine of picture and prompt, and CLIP's factor."""


def clip_score(cosine: np.ndarray, scale: float) -> np.ndarray:
    """100 max(cos, 0), CLIPScore (Hessel et al. 2021) with the factor of torchmetrics.

    torchmetrics takes the maximum after the mean over pictures, which is the same unless the cosine
    of a picture is negative.
    """
    del scale
    return 100 * np.maximum(cosine, 0)


class CLIPExtractor:
    """Pictures and prompts through the two towers of a CLIP.

    Features are the projected embeddings of pictures, of width F and length 1, on which CMMD is
    defined (Jayasumana et al. 2024). Pictures are rounded to bytes and prepared by the model's own
    processor, which for most models resizes the shorter side by a bicubic filter and crops the
    square in the middle. The authors of CMMD resize both sides instead, which is the same for
    square pictures. Prompts longer than the model's limit are cut before the end token.
    """

    def __init__(
        self,
        path: str,
        mesh: Mesh,
        score: Score = clip_score,
        processor: str | None = None,
        batch_size: int = _BATCH,
    ):
        """Reads a model.

        Args:
          path: folder of a CLIP in `transformers`' layout, with safetensors, or owner/name on the
            hub.
          mesh: mesh that the towers run on.
          score: function that computes alignment from cosines.
          processor: folder or name of a model whose tokenizer and image processor are used if the
            model comes without them.
          batch_size: pictures or prompts at once.

        Raises:
          NotFoundError: a file is missing, or cannot be fetched from the hub.
          UserError: the model is not a CLIP, or is damaged.
        """
        folder = fetch_model(path)
        parts = _processor_folder(folder, processor)
        # Uses PIL because PyTorch's kernels resize by another filter.
        self._prepare = read_pretrained("AutoImageProcessor", parts, backend="pil")
        self._tokenizer = read_pretrained("AutoTokenizer", parts)
        clip = load_clip(folder, mesh)
        self._length = clip.text_config.max_position_embeddings
        self._score, self._scale = score, clip.scale
        self._pictures = Batched(clip.vision, clip.params["vision"], mesh, batch_size)
        self._texts = Batched(
            lambda params, ids: clip.text(params, ids)[1], clip.params["text"], mesh, batch_size
        )
        self._batch = batch_size

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """Pictures as the vision tower reads them, float32 `[n, S, S, 3]`.

        Args:
          images: float32 `[n, H, W, 1 or 3]` in [-1, 1].
        """
        prepared = self._prepare(
            images=list(rgb_bytes(images)), return_tensors="np", input_data_format="channels_last"
        )
        return np.moveaxis(np.asarray(prepared["pixel_values"], np.float32), 1, -1)

    def look(
        self, images: np.ndarray, prompts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Extractor`."""
        parts = [images[i : i + self._batch] for i in range(0, len(images), self._batch)]
        pictures = _unit(np.concatenate([self._pictures(self.pixels(part)) for part in parts]))
        # Many pictures share a prompt, so each prompt is only encoded once.
        different, index = np.unique(np.asarray(prompts), return_inverse=True)
        ids = self._tokenizer(
            different.tolist(), padding="max_length", truncation=True, max_length=self._length
        )["input_ids"]
        texts = _unit(self._texts(np.asarray(ids, np.int32)))[index]
        cosine = np.sum(pictures * texts, axis=-1)
        return pictures[:, None], self._score(cosine, self._scale)


def _processor_folder(folder: Path, processor: str | None) -> Path:
    def has_all(place: Path) -> bool:
        tokenizer = any((place / f).is_file() for f in ("tokenizer.json", "vocab.json"))
        return tokenizer and (place / "preprocessor_config.json").is_file()

    if has_all(folder):
        return folder
    other = fetch_model(processor) if processor else folder
    if not has_all(other):
        raise NotFoundError(
            f"{other} has no preprocessor_config.json with a tokenizer.json or vocab.json: put "
            "the files of the CLIP that the model was made from beside its weights"
        )
    return other


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def open_extractor(given: Given) -> Extractor:
    """The CLIP at `given.path`."""
    return CLIPExtractor(given.path, given.mesh)
