"""Opens a run's inputs before it starts, to check them: pipelines, prompts, pictures."""

from pathlib import Path

from ladd_jax.config.architectures import student_architecture, weights_architecture
from ladd_jax.config.fields import Config
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.prompt_sets import read_prompt_set
from ladd_jax.data.sources import SOURCES, look, most
from ladd_jax.data.sources.fill_buckets import smallest_bucket
from ladd_jax.errors import Problems, UserError
from ladd_jax.methods import METHODS
from ladd_jax.models.families import family_of
from ladd_jax.stages.load import open_loras
from ladd_jax.stages.subjects import pair_conditions


def check_parts(config: Config, problems: Problems, place: Path | None = None) -> None:
    """Checks LoRA files, prompts to judge by, and the encoders that a config's stages use.

    Args:
      config: the run's config.
      problems: errors that are known; those found here are added.
      place: the directory of the run's data. If they are encoded already, no encoder is needed.
    """
    data, family = config.data, family_of(config)
    with problems.found():
        open_loras(family, weights_architecture(config), config.loras)
    encodes = "encode" in config.stages and not _is_encoded(place)
    judges = "evaluate" in config.stages
    text = data.text or config.weights
    if text and (encodes or (judges and config.evaluate.prompts)):
        with problems.found():
            family.check_text(text, student_architecture(config), data.text_length, data.tokenizers)
    shows = "distil" in config.stages and bool(config.log.samples_every) and config.log.decode
    sees = "distil" in config.stages and METHODS[config.distil.objective].in_pixels
    encodes_pictures = encodes and SOURCES[data.source].encoded
    if config.autoencoder and (encodes_pictures or judges or shows or sees):
        with problems.found():
            family.check_autoencoder(config.autoencoder, config.model.channels)
    if judges and config.evaluate.prompts:
        with problems.found():
            pair_conditions(config, len(read_prompt_set(config.evaluate.prompts)))


def count_records(config: Config, place: Path | None = None) -> dict[Bucket, int]:
    """Number of records that `encode` will write for each bucket, as far as known without a look at
    pictures.

    Args:
      config: the run's config.
      place: the directory of the run's data. If they are encoded already, nothing is read.

    Returns:
      The numbers; empty if they are not known, or nothing is written.

    Raises:
      NotFoundError: the data are not there.
      UserError: the data are damaged, or fill no batch of the trainings that read them.
    """
    data = config.data
    buckets = [Bucket.parse(name) for name in data.buckets]
    if "encode" not in config.stages or _is_encoded(place):
        return {}
    if SOURCES[data.source].path and not data.path:
        return {}
    found = look(config, buckets)
    if found is not None:
        return {bucket: len(texts) for bucket, texts in found.prompts.items()}
    known = most(config)
    if known and SOURCES[data.source].path:
        least, field = smallest_bucket(config)
        if known < least:
            raise UserError(
                f"{data.path} holds {known} records, fewer than one batch of {field} {least}: "
                f"lower it or add records"
            )
    # As if the records were spread evenly over the buckets.
    return {bucket: -(-known // len(buckets)) for bucket in buckets if known}


def _is_encoded(place: Path | None) -> bool:
    if place is None:
        return False
    # Shards are read by libraries that take seconds to import.
    from ladd_jax.data.shard_sets import is_complete

    return is_complete(place / "encoded")
