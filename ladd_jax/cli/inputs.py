"""What a run reads of others, opened before it starts: pipelines, prompts, pictures."""

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


def check_parts(config: Config, problems: Problems, place: Path | None = None) -> None:
    """Adds what is wrong with LoRA files, and with the encoders that the stages of a config use.

    Args:
      config: the run's config.
      problems: is added to.
      place: the directory of the run's data: what is encoded there already needs no encoder.
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
            read_prompt_set(config.evaluate.prompts)


def count_records(config: Config, place: Path | None = None) -> dict[Bucket, int]:
    """Records of each bucket that `encode` will write, as far as they are known without a look at
    pictures.

    Args:
      config: the run's config.
      place: the directory of the run's data: where it is encoded already nothing is read.

    Returns:
      Empty where nothing is known, or nothing is written.

    Raises:
      NotFoundError: the data are not there.
      UserError: they are damaged, or fill no batch of the trainings that read them.
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
    # As if they were spread evenly.
    return {bucket: -(-known // len(buckets)) for bucket in buckets if known}


def _is_encoded(place: Path | None) -> bool:
    if place is None:
        return False
    # Shards are read by libraries that take seconds to import.
    from ladd_jax.data.shard_sets import is_complete

    return is_complete(place / "encoded")
