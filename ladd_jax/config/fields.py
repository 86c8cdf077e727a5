"""Every field of a config, with its default, and where the default comes from.

`known` marks what the paper states; all else is a default of this project. A config file starts
from `base_config()` and sets what differs: a misspelt field or a wrong type is an error that names
the nearest valid one. `typed` turns it into the dataclasses here, which refuse wrong values; what
depends on several sections or on the machine is checked in `cli/preflight.py`.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from ladd_jax.config.own import SECTIONS, not_installed, own_sections
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import MAX_PIXELS
from ladd_jax.data.joined import JOINED, joined_channels, kinds_of, pretrains
from ladd_jax.data.masks import KINDS
from ladd_jax.data.sources import SOURCES
from ladd_jax.diffusion.samplers import ALWAYS
from ladd_jax.diffusion.sampling import SAMPLERS, generator_samplers
from ladd_jax.errors import Problems, UserError
from ladd_jax.methods import METHODS
from ladd_jax.models.dinov2 import Dinov2Config
from ladd_jax.models.families import FAMILIES, family
from ladd_jax.models.heads import HeadSettings
from ladd_jax.models.lora import LoRA
from ladd_jax.models.random_text import TOKENIZERS
from ladd_jax.names import nearest
from ladd_jax.objectives.consistency import SOLVERS
from ladd_jax.objectives.critics.features import FeatureCritic
from ladd_jax.objectives.dpo import DPOSettings
from ladd_jax.objectives.flow_matching import FlowMatchingSettings
from ladd_jax.objectives.ladd_settings import LADDSettings
from ladd_jax.objectives.terms.own import OWN_TERMS, own_terms
from ladd_jax.ranges import (
    COUNT,
    FINITE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    STEPS,
    Range,
    check_choice,
    check_distinct,
    check_numbers,
)
from ladd_jax.training.optimizers import Optimizer
from ladd_jax.training.writers import WRITERS

STAGES = ("encode", "pretrain", "prefer", "synthesize", "finetune", "distil", "evaluate")

# The sections of networks have the fields of this family, with its defaults.
_NETWORK: Any = family("sd3").architecture


_SIZES = dict.fromkeys(("width", "num_heads", "patch", "mlp_ratio", "position_table"), COUNT)

# Ranges for a network whose depth is not 0.
_NETWORK_RANGES = {
    **_SIZES,
    "dual_attention": NOT_NEGATIVE,
    "position_base": POSITIVE,
    "position_start": FINITE,
}


def _are_ends(values: Sequence[Any], most: float) -> bool:
    """Whether values are two numbers from 0 to `most`, the first below the second."""
    numbers = all(isinstance(value, int | float) for value in values)
    return len(values) == 2 and numbers and 0 <= values[0] < values[1] <= most


def _scales_in_words(scales: Sequence[float]) -> str:
    return " to ".join(f"{scale:g}" for scale in scales)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Sizes of the mesh axes; one of them may be -1 and takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    # Number of TPU slices that a data-centre network joins: it divides `data`, while fsdp and
    # tensor stay inside a slice.
    slices: int = 1

    def __post_init__(self) -> None:
        check_numbers(self, {"slices": COUNT})
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            if size < 1 and size != -1:
                raise UserError(
                    f"{name} is {size}: use 1 or more, or -1 for the devices that are left"
                )

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by name, as `parallel.mesh.make_mesh` takes them."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Raw data, and how they are encoded. Lengths are in latent pixels."""

    source: str = "digits"  # digits, scenes, scene_edits, images, prompts
    # Where the prompts (txt, tsv, csv, jsonl) or the images are: a folder, tars, tables, or a
    # dataset's name on the hub.
    path: str = ""
    column: str = ""  # of the prompts in their table; empty: the only one that it can be
    image_column: str = ""  # of the images in a table; empty: the only one that it can be
    # Columns of a table: the picture that each was compared with (empty: records are not pairs),
    # and how far the record's own was preferred, a number from 0 to 1 or a bool; at 0.5 neither
    # was.
    other_column: str = ""
    preference_column: str = ""
    # With joined=edit: name, in a table or in metadata, of the picture that each is an edit of.
    # Empty: one of the usual names.
    source_column: str = ""
    split: str = "train"  # of a table or a dataset of the hub
    subset: str = ""  # of a dataset of the hub: name of its configuration
    stream: bool = False  # of the hub: fetch no more than `limit` asks for
    limit: int = 0  # of images: read only this many, from the first on; 0: all
    # Records that may be left out because they cannot be read, wherever their fault is: a share
    # and a number, of which the larger counts.
    max_unreadable: tuple[float, int] = (0.01, 0)
    # What to do about a damaged record of the shards: stop, or skip, which takes another one, up to
    # `max_unreadable`.
    on_corrupt: str = "stop"
    max_pixels: int = MAX_PIXELS  # of a picture; larger ones cannot be read
    # For images: a pipeline DIR whose DIR/vae makes the latents. Empty: that of `weights`, and
    # without weights the pixels are the latents.
    autoencoder: str = ""
    # What is joined to the channels of x_t: nothing; a mask and the latents of the masked picture,
    # the rest of which is to be filled (inpaint); or the latents of the picture that the record's
    # own is an edit of (edit).
    joined: str = ""
    # How often masks are drawn as strokes, as boxes, and as frames around what is known.
    mask_shares: tuple[float, float, float] = (0.4, 0.3, 0.3)
    # Rows x columns. Empty: a few for the aspects of the images, of about resolution^2 pixels, by
    # a source that chooses them.
    buckets: tuple[str, ...] = ("8x8", "8x16", "16x8")
    resolution: int = 0  # pixels
    max_buckets: int = 5  # most buckets that are chosen
    # What happens to a bucket with fewer records than a batch: merge puts them into the bucket of
    # the nearest aspect, drop leaves them out.
    small_buckets: str = "merge"
    bucket_weights: tuple[float, ...] = ()  # share of the prompts for each; empty: all the same
    examples: int = 1437  # number of digits, scenes or edits of scenes, for each bucket
    # How many of the test split are kept for judges, for each bucket; of single digits no more than
    # it has.
    held_out_examples: int = 600
    # Share of the pictures kept for judges, chosen by their bytes, and at least 16 of a bucket;
    # training reads none of them.
    held_out: float = 0.05
    records_per_shard: int = 512
    # On disk: float32, float16, or int8, which has a scale for each token of a text and for each
    # channel of a latent, and keeps the vector that sums up a prompt in float16.
    text_dtype: str = "float32"
    latents_dtype: str = "float32"
    text_batch_size: int = 256
    image_batch_size: int = 8
    # The text encoder: CLIP or T5 with its tokenizer from the folder `text`; or that of `weights`;
    # or a random frozen one, of the sizes here.
    text: str = ""
    # A pipeline whose tokenizers are read, where `weights` is a single file, which has none.
    tokenizers: str = ""
    text_length: int = 17  # tokens
    text_tokens: str = "bytes"  # of the random encoder: bytes, words
    text_width: int = 32
    text_layers: int = 2
    text_heads: int = 2
    pooled_width: int = 32

    def __post_init__(self) -> None:
        check_choice(self.source, "data.source", *SOURCES)
        if self.joined not in JOINED:
            raise UserError(
                f"data.joined {self.joined!r} is not one of {', '.join(filter(None, JOINED))}: use "
                f"one of them, or leave it empty"
            )
        check_choice(self.small_buckets, "data.small_buckets", "merge", "drop")
        check_choice(self.text_tokens, "data.text_tokens", *TOKENIZERS)
        check_choice(self.text_dtype, "data.text_dtype", "float32", "float16", "int8")
        check_choice(self.latents_dtype, "data.latents_dtype", "float32", "float16", "int8")
        counts = (
            "examples", "records_per_shard", "text_batch_size", "image_batch_size", "text_length",
            "text_width", "text_layers", "text_heads", "pooled_width", "max_buckets",
        )  # fmt: skip
        check_numbers(
            self,
            dict.fromkeys(counts, COUNT)
            | {
                "max_pixels": Range(least=1, most=MAX_PIXELS),
                "held_out_examples": Range(least=2),
                "limit": NOT_NEGATIVE,
                "resolution": NOT_NEGATIVE,
                "held_out": Range(least=0, below=1),
            },
        )
        check_choice(self.on_corrupt, "data.on_corrupt", "stop", "skip")
        numbers = all(isinstance(value, int | float) for value in self.max_unreadable)
        if (
            len(self.max_unreadable) != 2
            or not numbers
            or self.max_unreadable[0] not in SHARE
            or self.max_unreadable[1] not in NOT_NEGATIVE
        ):
            raise UserError(
                f"data.max_unreadable is {self.max_unreadable}: use a share from 0 to 1 and a "
                f"number of 0 or more, such as (0.01, 5)"
            )
        if bool(self.other_column) != bool(self.preference_column):
            raise UserError(
                f"data.other_column is {self.other_column!r} and data.preference_column is "
                f"{self.preference_column!r}: name both, of pairs of pictures, or neither"
            )
        if self.other_column and self.source != "images":
            raise UserError(
                f"data.other_column is {self.other_column!r} and data.source is {self.source!r}: "
                f"pairs are read by the source 'images' alone; set it, or leave data.other_column "
                f"and data.preference_column empty"
            )
        if not (all(share in NOT_NEGATIVE for share in self.mask_shares) and any(self.mask_shares)):
            raise UserError(
                f"data.mask_shares is {self.mask_shares}: use three numbers of 0 or more, not all "
                f"0, of {', '.join(KINDS)}"
            )
        if self.joined and (self.other_column or self.source == "prompts"):
            other = "the source 'prompts', which has no pictures"
            if self.other_column:
                other = f"data.other_column {self.other_column!r}, of pairs"
            raise UserError(f"data.joined is {self.joined!r} beside {other}: leave one of them out")
        of_edits = self.source == "scene_edits"
        if SOURCES[self.source].drawn and of_edits != (self.joined == "edit"):
            raise UserError(
                f"data.joined is {self.joined!r} and data.source is {self.source!r}: edits are of "
                f"the sources 'images' and 'scene_edits', the second of which has no other records"
            )
        if self.source_column and self.joined != "edit":
            raise UserError(
                f"data.source_column is {self.source_column!r} and data.joined is "
                f"{self.joined!r}: set that to edit, or leave data.source_column empty"
            )
        if not self.buckets and not SOURCES[self.source].chooses_buckets:
            raise UserError(
                f"data.buckets is empty and the source {self.source!r} chooses none for its "
                f"records: name one or more, such as 8x8"
            )
        if not self.buckets and not self.resolution:
            raise UserError(
                "data.buckets is empty and data.resolution 0: name buckets, such as 8x8, or set "
                "data.resolution, so that some are chosen"
            )
        for name in self.buckets:
            Bucket.parse(name)
        check_distinct(self, "buckets")
        weights, count = self.bucket_weights, len(self.buckets)
        valid = all(weight in NOT_NEGATIVE for weight in weights) and sum(weights) > 0
        if weights and (len(weights) != count or not valid):
            raise UserError(
                f"data.bucket_weights is {weights}: give {count} numbers of 0 or more, one for "
                f"each of data.buckets, or none"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The data generator, which the student starts from unless `student` is another network, and
    which is the teacher under the heads unless `teacher` is (known: the paper's default).

    A depth of 0 is for a network with `weights`: commands read the architecture from their files.
    """

    family: str = "sd3"  # a folder of models/
    depth: int = 24
    width: int = 1536
    num_heads: int = 24
    channels: int = _NETWORK.out_channels
    # Channels joined to those of the latents, from a condition that the data must have; 0: those of
    # `data.joined`.
    joined_channels: int = 0
    patch: int = _NETWORK.patch
    mlp_ratio: int = _NETWORK.mlp_ratio
    qk_norm: bool = _NETWORK.qk_norm
    dual_attention: tuple[int, ...] = _NETWORK.dual_attention
    position_table: int = _NETWORK.position_table
    position_base: float = _NETWORK.position_base
    position_start: float = _NETWORK.position_start
    remat: str = _NETWORK.remat  # none, full, attention, dots, dots_attention
    unroll: int = _NETWORK.unroll
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    # Dtype of the parameters of the teacher and of the frozen data generator: float32, bfloat16, or
    # int8, which is for the teacher under the heads alone; the data generator is then bfloat16.
    teacher_dtype: str = "float32"

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("depth", "channels", "unroll"), COUNT)
        check_numbers(self, _NETWORK_RANGES | counts | {"joined_channels": NOT_NEGATIVE})
        check_choice(self.dtype, "model.dtype", "float32", "bfloat16")
        check_choice(self.param_dtype, "model.param_dtype", "float32", "bfloat16")
        check_choice(self.teacher_dtype, "model.teacher_dtype", "float32", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherNetwork:
    """A network of another architecture than that of `model`, with the same fields; a depth of 0
    means that there is none.

    With `num_heads` 0, commands take all fields from `model` except the depth and a width that is
    not 0, with heads as wide as there.
    """

    depth: int = 0
    width: int = 0
    num_heads: int = 0
    patch: int = _NETWORK.patch
    mlp_ratio: int = _NETWORK.mlp_ratio
    qk_norm: bool = _NETWORK.qk_norm
    dual_attention: tuple[int, ...] = _NETWORK.dual_attention
    position_table: int = _NETWORK.position_table
    position_base: float = _NETWORK.position_base
    position_start: float = _NETWORK.position_start

    def __post_init__(self) -> None:
        section = type(self).__name__.lower()
        check_numbers(self, {"depth": NOT_NEGATIVE})
        for name in ("width", "num_heads"):
            if not self.depth and getattr(self, name):
                raise UserError(
                    f"{section}.{name} is {getattr(self, name)} and {section}.depth 0, which means "
                    f"no such network: give its depth, or leave the {name} out"
                )
        for name in _SIZES:
            if self.depth and getattr(self, name) < 1:
                raise UserError(
                    f"{section}.{name} is {getattr(self, name)} and {section}.depth is "
                    f"{self.depth}: use 1 or more, or a depth of 0 for the data generator's network"
                )
        if self.depth:
            check_numbers(self, _NETWORK_RANGES)
        if self.depth and self.width % self.num_heads:
            raise UserError(
                f"{section}.width {self.width} is not divisible by {section}.num_heads "
                f"{self.num_heads}: use those of one network"
            )

    @property
    def in_words(self) -> str:
        """Its size."""
        return f"{self.depth} blocks of width {self.width}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student(OtherNetwork):
    """A student of another size than the data generator (known: its size matters most).

    It starts from a network of its own, which `pretrain` trains from nothing as it does the data
    generator. With a depth of 0 the student starts from the data generator.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher(OtherNetwork):
    """Another teacher under the heads than the data generator (known: its size matters less than
    the student's).

    `weights` names its pipeline; with weights, a depth of 0 makes commands read the architecture
    from their files. Without weights, `pretrain` trains the teacher from nothing, as it does the
    data generator, and with a depth of 0 the data generator is the teacher.
    """

    weights: str = ""

    def __post_init__(self) -> None:
        if self.weights and not self.depth:
            raise UserError(
                f"teacher.weights is {self.weights} and teacher.depth is 0: set the sizes of that "
                f"network, as read_architectures does"
            )
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dino:
    """The DINOv2 under the heads of `distil.objective=add`; other objectives ignore this section.

    `weights` names it: a folder in transformers' layout, or owner/name of the hub, such as
    facebook/dinov2-small, which is ADD's. Its files decide the sizes; without weights they are
    those of dinov2-small, for commands that plan.
    """

    weights: str = ""
    blocks: tuple[int, ...] = (2, 5, 8, 11)  # blocks with a head; StyleGAN-T's, of 12
    # Shorter side of the pictures that it is shown, in pixels; a multiple of its patch.
    resolution: int = 224
    depth: int = Dinov2Config.num_hidden_layers
    width: int = Dinov2Config.hidden_size
    num_heads: int = Dinov2Config.num_attention_heads
    mlp_ratio: int = Dinov2Config.mlp_ratio
    swiglu: bool = Dinov2Config.use_swiglu_ffn
    patch: int = Dinov2Config.patch_size
    position_table: int = Dinov2Config().table  # patches on a side
    registers: int = Dinov2Config.num_register_tokens

    def __post_init__(self) -> None:
        counts = ("resolution", "depth", "width", "num_heads", "mlp_ratio", "patch",
                  "position_table")  # fmt: skip
        check_numbers(self, dict.fromkeys(counts, COUNT))
        check_numbers(self, dict.fromkeys(("blocks", "registers"), NOT_NEGATIVE))
        check_distinct(self, "blocks")
        if self.width % self.num_heads:
            raise UserError(
                f"dino.width {self.width} is not divisible by dino.num_heads {self.num_heads}: use "
                f"those of one network"
            )
        if not self.blocks:
            raise UserError("dino.blocks is (): name one or more, such as (2, 5, 8, 11)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads(HeadSettings):
    """The discriminator's heads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(FlowMatchingSettings):
    """The training of a data generator: from nothing where there are no weights, or from weights
    that do not read the channels of `data.joined` yet. A teacher and a student of other sizes are
    trained in the same way, each by itself."""

    steps: int = 10_000
    batch_size: int = 256
    optimizer: Optimizer = Optimizer(1e-4, clip_norm=1.0)

    def __post_init__(self) -> None:
        check_numbers(self, dict.fromkeys(("steps", "batch_size"), COUNT))
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefer(DPOSettings):
    """Diffusion-DPO: what people prefer, as a LoRA of the data generator (known: of rank 256, 3,000
    steps, before the distillation and again after it; open: beta, batch and rate).
    """

    steps: int = 0
    batch_size: int = 256  # pairs
    lora: LoRA = LoRA(rank=256)
    optimizer: Optimizer = Optimizer(1e-5, clip_norm=1.0)
    # Where the LoRA is added: before the distillation to the data generator, from which samples,
    # student and teacher come, unless they are networks of their own; after it to the student.
    applied: tuple[str, ...] = ("before", "after")

    @property
    def before(self) -> bool:
        """Whether the data generator has the LoRA."""
        return self.steps > 0 and "before" in self.applied

    @property
    def applied_in_words(self) -> str:
        """Where the LoRA is added."""
        return f"added {' and '.join(self.applied)} the distillation" if self.applied else "unused"

    @property
    def after(self) -> bool:
        """Whether the finished student is given the LoRA."""
        return self.steps > 0 and "after" in self.applied

    def __post_init__(self) -> None:
        check_numbers(self, {"steps": NOT_NEGATIVE, "batch_size": COUNT})
        for name in self.applied:
            check_choice(name, "prefer.applied", "before", "after")
        check_distinct(self, "applied")
        if self.steps and not self.lora.rank:
            raise UserError(
                f"prefer.lora.rank is 0 and prefer.steps {self.steps}: use a rank such as 256, or "
                f"0 steps"
            )
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(FlowMatchingSettings):
    """Flow matching of the student on the data of `distil`, before the heads judge it.

    The data generator's samples are guided, but the generator itself, as which the student starts
    unless it is a network of its own, predicts unguided ones, and so does such a network. At small
    t, where the heads say least, this training is what moves the student to the guided samples. The
    paper does without it: 0 steps.
    """

    steps: int = 0
    batch_size: int = 256
    optimizer: Optimizer = Optimizer(1e-4, clip_norm=1.0)
    # The student is sampled without guidance.
    text_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, {"steps": NOT_NEGATIVE, "batch_size": COUNT})
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesize:
    """The data generator's samples."""

    samples: int = 10_000  # for each bucket; 0: one for each encoded record
    batch_size: int = 256
    records_per_shard: int = 1024
    steps: int = 25
    guidance: float = 5.0  # known: one constant scale; its value is not
    # The least and the largest scale, between which each sample has one of its own. The student is
    # then told its scale, which is `guidance` where none is asked for. Empty: all have `guidance`.
    guidance_range: tuple[float, ...] = ()
    # Scale of guidance on the picture that is edited; 1 for none. Others take a third pass.
    image_guidance: float = 1.0
    # The same for `image_guidance`, beside `guidance_range`: a student is then told both scales.
    image_guidance_range: tuple[float, ...] = ()
    # The first and the last t with guidance. A step outside takes one pass of the network, not two.
    guidance_interval: tuple[float, float] = ALWAYS
    shift: float = 3.0
    # DPM-Solver++(2M), of second order; or euler, which takes two to four times as many steps.
    sampler: str = "dpmpp_2m"

    def __post_init__(self) -> None:
        check_choice(self.sampler, "synthesize.sampler", *generator_samplers())
        counts = dict.fromkeys(("batch_size", "records_per_shard"), COUNT)
        check_numbers(self, counts | {"steps": STEPS, "shift": POSITIVE})
        check_numbers(self, dict.fromkeys(("guidance", "image_guidance"), NOT_NEGATIVE))
        if self.samples < 0:
            raise UserError(
                f"synthesize.samples is {self.samples}: use 0 for one of each encoded record, or "
                f"more"
            )
        if not _are_ends(self.guidance_interval, 1):
            raise UserError(
                f"guidance_interval is {self.guidance_interval}: use the first and the last time "
                f"with guidance, from 0 to 1, such as (0.2, 0.9), or (0.0, 1.0) for all"
            )
        for name in ("guidance", "image_guidance"):
            scales, scale = getattr(self, f"{name}_range"), getattr(self, name)
            if scales and not _are_ends(scales, 100):
                raise UserError(
                    f"{name}_range is {scales}: use two numbers from 0 to 100, the first below the "
                    f"second, such as (1.0, 8.0), or none"
                )
            if scales and not scales[0] <= scale <= scales[1]:
                raise UserError(
                    f"{name}_range is {scales} and synthesize.{name} is {scale:g}, which is "
                    f"outside: use a scale within it"
                )
        if self.image_guidance_range and not self.guidance_range:
            raise UserError(
                f"image_guidance_range is {self.image_guidance_range} and "
                f"synthesize.guidance_range is empty: name both, or that of the text alone"
            )

    @property
    def ranges(self) -> tuple[tuple[float, ...], ...]:
        """The least and the largest of each scale that a student is told: of none, of the one on
        the text, or of those on text and image."""
        return tuple(filter(None, (self.guidance_range, self.image_guidance_range)))

    @property
    def sampling(self) -> dict[str, Any]:
        """How the data generator is sampled: arguments of `Sampling.generator`."""
        names = (
            "steps", "guidance", "guidance_interval", "shift", "sampler", "image_guidance",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def guidance_in_words(self) -> str:
        """Its scale, and where it is used if that is not everywhere."""
        low, high = self.guidance_interval
        where = "" if (low, high) == ALWAYS else f" for t from {low:g} to {high:g}"
        text = _scales_in_words(self.guidance_range or (self.guidance,))
        image = ""
        if self.image_guidance_range or self.image_guidance != 1:
            scales = self.image_guidance_range or (self.image_guidance,)
            image = f" on the text and {_scales_in_words(scales)} on the image"
        return f"guidance {text}{image}{where}"


# Settings of LADD alone that no recipe sets, with the values at which they do nothing. Objectives
# without heads would ignore other values.
_OF_HEADS = {
    "paired_weight": 0,
    "moments_weight": 0,
    "misaligned_share": 0,
    "r1_noise": 0,
    "refreshed_heads": 0,
    "student_interval": 1,
}

# Settings of `progressive` alone.
_OF_PHASES = ("halvings", "phase_steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distil(LADDSettings):
    """The distillation. Times are in [0, 1], with 1 pure noise.

    Known of its settings: timesteps, probabilities, warmup_probabilities and warmup_steps above
    512^2, renoise_mean, renoise_std, all blocks hooked, and no distillation loss with synthetic
    data.
    """

    # ladd; add: its forerunner, whose heads stand on DINOv2 and look at pictures (section `dino`);
    # lcm: the paper's baseline, consistency distillation along the data generator's guided
    # paths; dmd: distribution matching against the guided data generator, by a network that learns
    # the student's predictions and is trained by `head_updates` and `heads_optimizer`; progressive:
    # the guided data generator's velocity in one pass, and then half the steps in each phase.
    objective: str = "ladd"
    data: str = "synthesized"  # known; encoded: real images, with a distillation_weight
    steps: int = 10_000  # known
    batch_size: int = 256
    # Added to the run's seed: another training, with other heads and batches, on the same samples.
    seed: int = 0
    # Whose velocity lcm, dmd, progressive and the term of consistency follow: that of the guided
    # generator, or, without guidance, of the network that `finetune` has taught the student's data
    # (finetuned).
    follows: str = "generator"
    # Steps that its paths are cut into, for lcm and the term of consistency, and how each is taken:
    # euler, or midpoint, which is of second order and takes two passes.
    consistency_steps: int = 50
    consistency_solver: str = "euler"
    # Of progressive: how often the number of steps is halved, to one for each of `timesteps` in the
    # end, and the steps of training in each phase but the last, which takes those that are left.
    halvings: int = 3
    phase_steps: int = 2000
    # Blocks of the teacher with a head; empty: all. The teacher ends with the last one, unless more
    # of it is needed (a distillation_weight, a consistency_weight along its own paths).
    hooked_blocks: tuple[int, ...] = FeatureCritic.hooked_blocks
    # With a rank above 0 adapters are trained, and what the student begins as stays constant.
    lora: LoRA = LoRA()
    optimizer: Optimizer = Optimizer(1e-5, beta1=0.0, clip_norm=1.0)
    heads_optimizer: Optimizer = Optimizer(1e-4, beta1=0.0, clip_norm=1.0)

    @property
    def needs_start(self) -> bool:
        """Whether training, and whatever reads its adapters, need what the student began as."""
        followed = self.asks_a_network and self.follows == "finetuned"
        return self.lora.rank > 0 or followed

    @property
    def asks_a_network(self) -> bool:
        """Whether training follows the network that `follows` names."""
        return not METHODS[self.objective].has_heads or self.consistency_weight > 0

    def __post_init__(self) -> None:
        check_choice(self.data, "distil.data", "synthesized", "encoded")
        check_choice(self.objective, "distil.objective", *METHODS)
        if not METHODS[self.objective].has_heads:
            for name, none in _OF_HEADS.items():
                if (value := getattr(self, name)) != none:
                    raise UserError(
                        f"distil.{name} is {value} and distil.objective {self.objective}, which "
                        f"has no heads: use {none}"
                    )
            if self.ramp.ramped:
                raise UserError(
                    f"distil.ramp has factors of {', '.join(self.ramp.ramped)} and "
                    f"distil.objective is {self.objective}, whose loss has one term: leave them "
                    f"at 1"
                )
        check_choice(self.follows, "distil.follows", "generator", "finetuned")
        check_choice(self.consistency_solver, "distil.consistency_solver", *SOLVERS)
        counts = dict.fromkeys(("steps", "batch_size", "phase_steps"), COUNT)
        check_numbers(self, {"halvings": Range(least=1, most=10)})
        check_numbers(self, {"consistency_steps": Range(least=2)})
        check_numbers(self, counts | {"seed": SEED, "hooked_blocks": NOT_NEGATIVE})
        check_distinct(self, "hooked_blocks")
        self._check_phases()
        if self.student_interval > self.steps:
            raise UserError(
                f"distil.student_interval is {self.student_interval} and distil.steps is "
                f"{self.steps}, in which the student is never updated: use {self.steps} or less"
            )
        if self.ramp.ramped and self.ramp.steps[0] >= self.steps:
            raise UserError(
                f"distil.ramp.steps is {self.ramp.steps} and begins after the last of "
                f"{self.steps} distil.steps: let it begin before"
            )
        if self.paired_weight and self.data != "synthesized":
            raise UserError(
                f"distil.paired_weight is {self.paired_weight} with distil.data={self.data}, which "
                f"was not made from noise: use 0, or distil.data=synthesized"
            )
        super().__post_init__()

    @property
    def last_phase(self) -> int:
        """Step at which the last phase of a progressive distillation begins."""
        # What `finetune` made is not learned once more.
        return (self.halvings - (self.follows == "finetuned")) * self.phase_steps

    def _check_phases(self) -> None:
        """Raises UserError where phases would do nothing, or the last one never begins."""
        if self.objective != "progressive":
            for name in _OF_PHASES:
                value, default = getattr(self, name), getattr(Distil, name)
                if value != default:
                    raise UserError(
                        f"distil.{name} is {value} and distil.objective {self.objective}, which "
                        f"has no phases: leave it at {default}, or use objective=progressive"
                    )
            return
        if self.own_share:
            raise UserError(
                f"distil.own_share is {self.own_share} and distil.objective progressive, which "
                f"begins each step at noised data: use 0"
            )
        if self.steps <= self.last_phase:
            raise UserError(
                f"distil.steps is {self.steps} and the last phase begins after {self.last_phase} "
                f"(halvings {self.halvings}, phase_steps {self.phase_steps}): use more steps, or "
                f"fewer of a phase"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What is measured of data generator and student."""

    student: str = "ema"  # ema, or params, which sample and export call student
    # How pictures are looked at, a name of `EXTRACTORS` in evaluation/extractors; empty: the
    # source's own, where it has one, or else `own`.
    extractor: str = ""
    extractor_weights: str = ""  # a folder, or owner/name of the hub, for extractors that have some
    metrics: tuple[str, ...] = ("fd", "fd_real", "alignment", "diversity", "deviation", "outside")
    # A file like data.path, or SET:FILE such as parti128:PartiPrompts.tsv, for every bucket and
    # without real pictures to compare with; empty: the prompts of the held-out records.
    prompts: str = ""
    # NAME=VALUE or NAME=FILE, as `sample --condition` takes them, of what a network of another
    # package reads beside these prompts: one for all prompts, one for each, or several for one.
    conditions: tuple[str, ...] = ()
    samples: int = 400  # for each bucket
    per_prompt: int = 4  # samples of a prompt, at least
    resamples: int = 50  # of the bootstrap, for each interval
    student_steps: tuple[int, ...] = (1, 2, 4)
    teacher_steps: tuple[int, ...] = (50,)
    # Further scales at which the data generator, and a student that is told the scale, are sampled
    # to see which is best.
    guidances: tuple[float, ...] = ()
    batch_size: int = 400
    shown_prompts: int = 10  # columns of the report's grids

    def __post_init__(self) -> None:
        check_choice(self.student, "evaluate.student", "ema", "params")
        counts = ("batch_size", "shown_prompts", "samples", "per_prompt", "student_steps",
                  "teacher_steps")  # fmt: skip
        check_numbers(self, dict.fromkeys(counts, COUNT) | {"resamples": NOT_NEGATIVE})
        if self.conditions and not self.prompts:
            raise UserError(
                f"conditions is {self.conditions} and prompts is empty, so that held-out records "
                f"are judged, which have their own: leave conditions out, or name prompts"
            )
        if not self.teacher_steps:
            raise UserError("teacher_steps is (): name one or more, such as 50")
        if not all(scale in COUNT for scale in self.guidances):
            raise UserError(f"guidances is {self.guidances}: use 1, for none, or more")
        check_distinct(self, "student_steps", "teacher_steps", "metrics", "guidances")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When a training is saved, and how many of its checkpoints stay."""

    every: int = 1000  # steps
    minutes: float = 30.0  # since the last save, looked at where a record is due; 0: never by time
    keep: int = 2

    def __post_init__(self) -> None:
        check_numbers(self, {"every": COUNT, "keep": COUNT, "minutes": NOT_NEGATIVE})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """What counts as a training gone wrong, and what is done then."""

    max_skips: int = 10  # steps in a row whose gradient is not finite, which stop it
    # What `distil` does when metrics say that it collapses: warn, stop, back (to the last
    # checkpoint before, with a lower rate), or off.
    collapse: str = "warn"
    records: int = 5  # records in a row, one every log.every steps, that say so
    accuracy: float = 0.95  # accuracy of the heads from which they count as always winning
    # Limits as multiples of the first record's: for x0_hat_std both, for seed spread the lower one.
    lowest: float = 0.5
    highest: float = 2.0
    lower: float = 0.5  # what a rate is multiplied by on the way back
    returns: int = 3  # how often it goes back; then it stops

    def __post_init__(self) -> None:
        check_choice(self.collapse, "watch.collapse", "warn", "stop", "back", "off")
        check_numbers(
            self,
            {
                "max_skips": COUNT,
                "records": COUNT,
                "accuracy": SHARE,
                "lowest": Range(least=0, below=1),
                "highest": Range(above=1),
                "lower": Range(above=0, below=1),
                "returns": COUNT,
            },
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """What a training reports while it runs."""

    every: int = 50  # steps between records; training waits for the device at each
    samples_every: int = 500  # steps between previews, for which training waits too; 0: none
    # Samples for the metrics of a preview, for each number of steps, in all buckets together; 0:
    # none.
    quick_samples: int = 256
    # Whether previews show latents decoded by their autoencoder, not by a quick map to colours.
    decode: bool = False
    writers: tuple[str, ...] = ("tensorboard",)  # tensorboard, wandb, mlflow
    profile: str = ""  # START:STOP, an xprof trace of steps START to STOP - 1 of each training

    def __post_init__(self) -> None:
        check_numbers(
            self, {"every": COUNT, "samples_every": NOT_NEGATIVE, "quick_samples": NOT_NEGATIVE}
        )
        for name in self.writers:
            check_choice(name, "log.writers", *WRITERS)
        check_distinct(self, "writers")
        match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", self.profile)
        if self.profile and not (match and 1 <= int(match[1]) < int(match[2])):
            raise UserError(
                f"log.profile {self.profile!r} is not START:STOP with 1 <= START < STOP: use a "
                f"range such as 10:13 for steps 10, 11 and 12"
            )

    @property
    def traced(self) -> range:
        """The steps that `profile` names, counted from 1; none where it is empty."""
        return range(*map(int, self.profile.split(":"))) if self.profile else range(0)


def _without_heads(config: "Config") -> None:
    """Raises UserError where a config names a network under heads that do not exist."""
    objective = config.distil.objective
    if config.teacher.depth or config.teacher.weights:
        raise UserError(
            f"distil.objective is {objective}, without heads, and the section teacher names a "
            f"network under them: leave it empty"
        )
    if config.model.teacher_dtype == "int8":
        raise UserError(
            f"distil.objective is {objective} and model.teacher_dtype int8, which is for a teacher "
            f"under heads: use bfloat16"
        )
    for term in own_terms(config):
        raise UserError(
            f"distil.objective is {objective}, whose loss has one term, and the term {term.name} "
            f"has a weight of {term.weight:g}: leave it out"
        )


def _check_own(config: "Config") -> None:
    """Raises UserError where a package's section belongs to none, or a factor to no term."""
    sections = [
        field.name
        for field in dataclasses.fields(config)
        if dataclasses.is_dataclass(getattr(config, field.name)) and field.name != "own"
    ]
    for name in config.own.__dataclass_fields__:
        check_choice(SECTIONS[name].beside, f"beside of the section own.{name}", *sections)
    ramp, terms = config.distil.ramp, [term.name for term in own_terms(config)]
    for name in ramp.ramped:
        if name in OWN_TERMS and name not in terms:
            raise UserError(
                f"distil.ramp.{name} is {getattr(ramp, name)} and the loss has no such term, which "
                f"no factor changes: set the fields that give it a weight, or use factors of 1"
            )


def _check_family(config: "Config") -> None:
    """Raises UserError where a network's section has what its family does not."""
    name = config.model.family
    if name not in FAMILIES:
        # It is refused where networks are made.
        return
    kind: Any = family(name).architecture
    has = {field.name for field in dataclasses.fields(kind)}
    lacking = {field.name for field in dataclasses.fields(_NETWORK)} - has
    for section in ("model", "student", "teacher"):
        network = getattr(config, section)
        for field in dataclasses.fields(network):
            value = getattr(network, field.name)
            if field.name in lacking and value != field.default:
                raise UserError(
                    f"{section}.{field.name} is {value} and networks of model.family {name!r} have "
                    f"no {field.name}: leave it at {field.default}"
                )


def _in_pixels(config: "Config") -> None:
    """Raises UserError where a config has what a critic in pixels does not read, or its own fields
    do not fit each other."""
    distil, dino = config.distil, config.dino
    objective = distil.objective
    if distil.hooked_blocks:
        raise UserError(
            f"distil.hooked_blocks is {distil.hooked_blocks} and distil.objective {objective}, "
            f"whose heads stand on DINOv2: use () and dino.blocks"
        )
    if not distil.distillation_weight:
        if config.teacher.depth or config.teacher.weights:
            raise UserError(
                f"distil.objective is {objective} with distillation_weight 0, and the section "
                f"teacher names a network that nothing uses: leave it empty, or use a weight such "
                f"as 2.5"
            )
        if config.model.teacher_dtype == "int8":
            raise UserError(
                f"distil.objective is {objective} with distillation_weight 0 and "
                f"model.teacher_dtype int8, which is for a teacher that is used: use bfloat16"
            )
    deepest = max(dino.blocks)
    if deepest >= dino.depth:
        raise UserError(
            f"dino.blocks names block {deepest} of a DINOv2 of {dino.depth}: use blocks 0 to "
            f"{dino.depth - 1}"
        )


def _check_student(config: "Config") -> None:
    """Raises UserError where a student of another size has nothing to start from, or is to be given
    what fits the data generator alone."""
    depth = config.student.depth
    if config.weights:
        raise UserError(
            f"student.depth is {depth} and weights is {config.weights}, from which such a student "
            f"cannot start: use student.depth 0, so that it starts from them, or no weights"
        )
    if config.prefer.after:
        raise UserError(
            f"student.depth is {depth} and prefer.applied is {', '.join(config.prefer.applied)}: "
            f"its LoRA is of the data generator, and a student of another size cannot be given it; "
            f"use ('before',), or prefer.steps 0"
        )


def _check_pictures(config: "Config") -> None:
    """Raises UserError where there is no picture to guide on, or the data generator never learned
    to do without the picture or the text, which guidance needs."""
    joined, stage = config.data.joined, config.synthesize
    guiding = {
        "synthesize.image_guidance": stage.image_guidance != 1,
        "synthesize.image_guidance_range": bool(stage.image_guidance_range),
    }
    dropping = {
        "pretrain.image_dropout": config.pretrain.image_dropout > 0,
        "finetune.image_dropout": config.finetune.image_dropout > 0,
    }
    for path, given in (guiding | dropping).items():
        if given and not joined_channels(config):
            raise UserError(
                f"{path} is set and the network is given no picture: set data.joined=edit, or "
                f"leave it at its default"
            )
        if given and joined == "inpaint":
            raise UserError(
                f"{path} is set and data.joined is {joined!r}, where zeros say that nothing is to "
                f"be filled, and not that there is no picture: leave it at its default"
            )
    if not any(guiding.values()) or not pretrains(config):
        return
    guided = next(path for path, given in guiding.items() if given)
    for name in ("image_dropout", "text_dropout"):
        if not getattr(config.pretrain, name):
            missing = name.removesuffix("_dropout")
            raise UserError(
                f"pretrain.{name} is 0 and {guided} is set, which guides by samples without "
                f"{missing}: use a share such as 0.1, so that `pretrain` learns them, or leave "
                f"{guided} at its default"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    seed: int = 0
    stages: tuple[str, ...] = STAGES
    mesh: Mesh = Mesh()
    # A released pipeline, whose transformer is the data generator, which the student starts from,
    # and the teacher, unless `teacher` names another: a folder, or owner/name of the hub. Empty:
    # `pretrain` makes the data generator, and what `student` and `teacher` describe.
    weights: str = ""
    # LoRA files that are added to `weights` before all else: PATH, or PATH:SCALE, with a factor of
    # its change. A path is a file, its folder, or owner/name of the hub.
    loras: tuple[str, ...] = ()
    data: Data = Data()
    model: Model = Model()
    student: Student = Student()
    teacher: Teacher = Teacher()
    heads: Heads = Heads()
    dino: Dino = Dino()
    pretrain: Pretrain = Pretrain()
    prefer: Prefer = Prefer()
    synthesize: Synthesize = Synthesize()
    finetune: Finetune = Finetune()
    # Made for each config: its ramp has a field for each term of other packages.
    distil: Distil = dataclasses.field(default_factory=Distil)
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    watch: Watch = Watch()
    log: Log = Log()
    # A section for each package that has registered one, see `config.own`.
    own: Any = dataclasses.field(default_factory=own_sections)
    # Compiled programs stay here for the next start: in the workdir, unless it is an absolute path
    # or an address (gs://...). Empty keeps none.
    compilation_cache: str = "compilation_cache"
    # What happens if results of this run's stages were made with other fields or other data: stop,
    # or redo, which makes what differs, and what depends on it, again.
    on_change: str = "stop"

    @property
    def autoencoder(self) -> str:
        """Where the autoencoder of the run's latents is; empty where latents are pixels."""
        return self.data.autoencoder or self.weights

    def __post_init__(self) -> None:
        check_numbers(self, {"seed": SEED})
        if self.seed + self.distil.seed not in SEED:
            raise UserError(
                f"seed is {self.seed} and distil.seed {self.distil.seed}: use {SEED} for their sum"
            )
        if not self.stages:
            raise UserError(f"stages is empty: name one or more of {', '.join(STAGES)}")
        for name in self.stages:
            check_choice(name, "stages", *STAGES)
        check_choice(self.on_change, "on_change", "stop", "redo")
        check_distinct(self, "stages")
        _check_own(self)
        _check_family(self)
        distil = self.distil
        if not METHODS[distil.objective].has_heads:
            _without_heads(self)
        if METHODS[distil.objective].in_pixels:
            _in_pixels(self)
        if distil.follows == "finetuned" and distil.asks_a_network and not self.finetune.steps:
            raise UserError(
                f"distil.follows is {distil.follows} and finetune.steps is 0: use more steps, or "
                f"follows=generator"
            )
        if self.synthesize.guidance_range and self.distil.data != "synthesized":
            raise UserError(
                f"distil has data={self.distil.data}, which was made without guidance, and "
                f"synthesize.guidance_range is {self.synthesize.guidance_range}: leave one of them "
                f"out"
            )
        if distil.paired_weight and SAMPLERS[self.synthesize.sampler].keyed:
            raise UserError(
                f"distil.paired_weight is {distil.paired_weight} and synthesize.sampler "
                f"{self.synthesize.sampler}, whose samples do not follow from the noise that they "
                f"start from: use 0, or another sampler such as dpmpp_2m"
            )
        if self.synthesize.guidance_range and self.distil.lora.rank:
            raise UserError(
                f"distil has lora.rank={self.distil.lora.rank} and synthesize.guidance_range is "
                f"{self.synthesize.guidance_range}: the guidance that a student is told needs "
                f"layers that adapters do not have, so use one of the two"
            )
        kinds = kinds_of(self.model.joined_channels, self.model.channels)
        if self.weights and kinds and not self.data.joined:
            raise UserError(
                f"weights is {self.weights}, which read "
                f"{' or '.join(JOINED[kind].words for kind in kinds)}: set "
                f"data.joined={' or '.join(kinds)}, with data of pictures, or use weights that "
                f"read text alone"
            )
        wanted = JOINED[self.data.joined].channels(self.model.channels)
        if self.data.joined and joined_channels(self) != wanted:
            raise UserError(
                f"model.joined_channels is {self.model.joined_channels} and data.joined "
                f"{self.data.joined!r}, which joins {wanted}: use weights that read as many, or 0"
            )
        _check_pictures(self)
        if self.student.depth:
            _check_student(self)
        if self.loras and not self.weights:
            raise UserError(
                f"loras is {', '.join(self.loras)} and weights is empty: name the weights that "
                f"they are added to"
            )


def base_config() -> ConfigDict:
    """All fields with their defaults, locked: other fields and other types are refused."""
    return ConfigDict(dataclasses.asdict(Config())).lock()


def typed(config: ConfigDict) -> Config:
    """The dataclasses of a config.

    Raises:
      UserError: a field is unknown, is missing or has another type than its default, or a section
        refuses a value; the message names it and the remedy. Several are reported at once.
    """
    found, refused = partly_typed(config)
    problems = Problems()
    for error in (error for errors in refused.values() for error in errors):
        problems.add(error)
    problems.tell()
    return found


def partly_typed(config: ConfigDict) -> tuple[Config, dict[str, list[UserError]]]:
    """The dataclasses of a config as far as its sections accept their values.

    Returns:
      The config, in which refused values are at their defaults; and the errors by the name of their
      section, or of a field that is in no section. Errors for which no field is to blame have an
      empty name, and the config is then the default one. Those that arise only because of the
      refused values are left out.

    Raises:
      UserError: a field is unknown, is missing or has another type than its default.
    """
    values = config.to_dict()
    compare(base_config().to_dict(), values, "")
    refused: dict[str, list[UserError]] = {}
    return _like(Config(), values, "", refused, []), refused


def _like(
    default: Any, value: Any, path: str, refused: dict[str, list[UserError]], lost: list[str]
) -> Any:
    """A value of the default's own type; `path` names it in errors, and is empty for the config.

    Errors are added to `refused`, and the fields whose values are dropped for them to `lost`.
    """
    if not dataclasses.is_dataclass(default):
        return float(value) if isinstance(default, float) else value
    kind: Any = type(default)
    prefix = f"{path}." if path else ""
    fields = {
        name: _like(getattr(default, name), field, f"{prefix}{name}", refused, lost)
        for name, field in value.items()
    }
    for name, hint in get_type_hints(kind).items():
        if not _has_elements(hint, fields[name]):
            whole = f"{prefix}{name}"
            words = str(hint).replace("tuple", "a tuple", 1)
            wrong = UserError(f"{whole} is {fields[name]!r}: use {words}")
            refused.setdefault(path.partition(".")[0] or name, []).append(wrong)
            fields[name] = getattr(default, name)
            lost.append(whole)
    while True:
        try:
            return kind(**fields)
        except UserError as error:
            # Many errors name their field without the section of the config that it is in.
            first = str(error).split(" ", 1)[0]
            name = first.removeprefix(prefix)
            told = UserError(f"{prefix}{error}") if first in fields else error
            told.__cause__ = error
            section = path.partition(".")[0] or (name if name in fields else "")
            sentences = refused.setdefault(section, [])
            # What follows from a default instead of the user's value is not the user's mistake.
            if not _names_one(told, lost):
                sentences.append(told)
            # The other fields are checked with this one at its default.
            if name not in fields or fields[name] == getattr(default, name):
                lost += [f"{prefix}{each}" for each in fields] if path else []
                return default
            fields[name] = getattr(default, name)
            lost.append(f"{prefix}{name}")


def _names_one(error: UserError, fields: Sequence[str]) -> bool:
    """Whether an error names one of the fields."""
    return any(re.search(rf"\b{re.escape(field)}\b", str(error)) for field in fields)


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a value is of a type; a whole number that a float can hold counts as a float."""
    if kind is float and type(value) is int:
        return value in FINITE
    return type(value) is kind


def _has_elements(kind: Any, value: Any) -> bool:
    """Whether a value's elements are of a field's type; true for fields that are not tuples."""
    elements = get_args(kind)
    if get_origin(kind) is not tuple:
        return True
    if elements[1:] == (...,):
        return all(_is_of(elements[0], element) for element in value)
    return len(value) == len(elements) and all(map(_is_of, elements, value))


def to_dict(config: Any) -> dict[str, Any]:
    """A config or a section of it as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def compare(base: dict[str, Any], given: dict[str, Any], prefix: str) -> None:
    """Raises UserError where a field is unknown, is missing, or has another type than in `base`."""
    for name in given.keys() - base.keys():
        if gone := not_installed(f"{prefix}{name}"):
            raise UserError(f"unknown config field {gone}: install it")
        near = nearest(name, base)
        if prefix == "distil.ramp.":
            near += ", or it is of a package that is not installed here"
        raise UserError(f"unknown config field {prefix}{name}{near}")
    for name in base.keys() - given.keys():
        raise UserError(f"config field {prefix}{name} is missing: start from base_config()")
    for name, default in base.items():
        value, path = given[name], f"{prefix}{name}"
        if isinstance(default, dict):
            if not isinstance(value, dict):
                raise UserError(f"{path} is {value!r}: use fields {', '.join(default)}")
            compare(default, value, f"{path}.")
        elif not _is_of(type(default), value):
            raise UserError(
                f"{path} is {value!r} of type {type(value).__name__}: "
                f"use a {type(default).__name__}, such as {default!r}"
            )
