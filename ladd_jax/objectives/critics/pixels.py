"""ADD's critic (Sauer et al. 2023): heads on a frozen DINOv2, which sees decoded pictures.

ADD takes StyleGAN-T's heads (Sauer et al. 2023): one-dimensional convolutions along the row of all
tokens, batch norm over a few samples of a device, and the embeddings of the text and of a picture
as condition. This critic has LADD's heads instead: two-dimensional convolutions on the grid of
patches, so that a picture may have any aspect; a group norm of each sample, so that the result does
not depend on the devices; and only the text as condition. Both kinds have spectral norm and the
inner product with the condition. Nothing is noised, so heads are given no t_hat.

B batch, H W latent grid, C channels, h w grid of patches, N = hw, D width, L blocks, K heads.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ladd_jax.diffusion.flow import interpolate, predict_x0
from ladd_jax.errors import UserError
from ladd_jax.models.base import Backbone, Cond, Model, Params, PictureDecoder
from ladd_jax.models.dinov2 import Dinov2, dinov2_flops, normalised
from ladd_jax.models.heads import refreshed
from ladd_jax.models.resize import bicubic
from ladd_jax.objectives.adversarial import Head, HeadLoss, Statistics, in_pairs, of_pairs
from ladd_jax.objectives.critics.base import Noise, Opened
from ladd_jax.objectives.critics.tokens import (
    Given,
    OpenedTokens,
    check_hooked,
    judging_tap,
    told,
)

DINO = "dino"
"""Name of DINOv2's parameters in `frozen`."""

DECODER = "decoder"
"""Name of the decoder's parameters in `frozen`."""


@dataclasses.dataclass(frozen=True)
class PixelCritic:
    """Independent heads on the patches' tokens after some of DINOv2's blocks.

    The token of the whole picture is added to each patch's token, as in StyleGAN-T.

    Attributes:
      dino: the network under the heads, up to the last block with a head; its parameters are
        `frozen["dino"]`.
      head: one head, `head(params, tokens, grid, None, condition) -> logits [B, h, w]`.
      heads: stack of heads, one for each hooked block, under the name `heads`.
      hooked_blocks: blocks with a head.
      resolution: pixels of a picture's shorter side as DINOv2 sees it, a multiple of its patch.
      summary: name of the array in a cond that sums the cond up.
      guidance_ranges: see `FeatureCritic`.
      decoder: network that turns latents into pictures; its parameters are `frozen["decoder"]`.
        None if latents are pictures.
      teacher: network that predicts x_0 from re-noised latents, for terms that need it; its
        parameters are `frozen["teacher"]`. None: no term does.
    """

    dino: Dinov2
    head: Model
    heads: Model
    hooked_blocks: tuple[int, ...]
    resolution: int
    summary: str
    guidance_ranges: tuple[tuple[float, ...], ...] = ()
    decoder: PictureDecoder | None = None
    teacher: Backbone | None = None

    def __post_init__(self) -> None:
        config = self.dino.config
        blocks = config.num_hidden_layers
        check_hooked(self.heads, self.hooked, blocks, "a DINOv2", "dino.blocks")
        if self.resolution < 1 or self.resolution % config.patch_size:
            least = max(self.resolution // config.patch_size, 1) * config.patch_size
            raise UserError(
                f"dino.resolution {self.resolution} is not a multiple of DINOv2's patch of "
                f"{config.patch_size}: use {least}"
            )

    @property
    def hooked(self) -> tuple[int, ...]:
        """Blocks with a head, in order of depth."""
        return tuple(sorted(set(self.hooked_blocks)))

    @property
    def networks(self) -> dict[str, Model]:
        """See `Critic.networks`."""
        found: dict[str, Model] = {DINO: self.dino}
        if self.decoder is not None:
            found[DECODER] = self.decoder
        if self.teacher is not None:
            found["teacher"] = self.teacher
        return found

    def units(self, passes: float, predictions: float) -> dict[str, float]:
        """See `Critic.units`.

        A prediction takes one forward pass of the teacher. The distillation term takes a further
        forward pass of the decoder, for the teacher's x_0, and a backward pass. Recomputation for
        gradients does not count.
        """
        found = {DINO: passes}
        if self.decoder is not None:
            found[DECODER] = passes + 2 * predictions
        if self.teacher is not None:
            found["teacher"] = predictions
        return found

    def flops(self, height: int, width: int) -> dict[str, int]:
        """See `Critic.flops`."""
        reduction = 1 if self.decoder is None else self.decoder.reduction
        sides = self.seen_sides(height * reduction, width * reduction)
        found = {DINO: dinov2_flops(self.dino.config, *sides)}
        if self.decoder is not None:
            found[DECODER] = self.decoder.flops(height, width)
        return found

    def seen_sides(self, height: int, width: int) -> tuple[int, int]:
        """Sides of a picture as DINOv2 sees it: the shorter has `resolution` pixels, and the longer
        one keeps the aspect, rounded to a multiple of the patch."""
        patch, shorter = self.dino.config.patch_size, min(height, width)
        rows, columns = (
            max(round(self.resolution * side / shorter / patch), 1) * patch
            for side in (height, width)
        )
        return rows, columns

    def pictures(self, frozen: dict[str, Any], x_0: jax.Array) -> jax.Array:
        """Latents as pictures, float32 `[B, H', W', 1 or 3]`."""
        if self.decoder is None:
            return x_0.astype(jnp.float32)
        return self.decoder(frozen[DECODER], x_0)

    def prepared(self, pictures: jax.Array) -> jax.Array:
        """Pictures as DINOv2 sees them, float32 `[B, h p, w p, 3]`.

        They are resized as DINOv2's processor does, but neither cropped nor rounded to bytes.
        """
        sides = self.seen_sides(*pictures.shape[1:3])
        return normalised(bicubic(pictures, *sides, antialias=True))

    def judge(
        self,
        heads: Params,
        frozen: dict[str, Any],
        x_0: jax.Array,
        noise: Noise,
        cond: Cond,
        loss: HeadLoss,
    ) -> tuple[Params, Statistics]:
        """See `Critic.judge`; the noise is ignored."""
        pixels = self.prepared(self.pictures(frozen, jax.lax.stop_gradient(x_0)))
        blocks = self.dino.config.num_hidden_layers
        tap, judged = judging_tap(self, heads, self._given(pixels, cond), loss, blocks)

        def read(block: jax.Array, tokens: jax.Array) -> Any:
            return tap(block, self.dino.places(tokens))

        return judged(self.dino(frozen[DINO], pixels, tap=read)[1])

    def open(
        self, frozen: dict[str, Any], x_0: jax.Array, noise: Noise, cond: Cond
    ) -> "OpenedPictures":
        """See `Critic.open`: one forward pass of decoder and DINOv2, and the backward pass of both.

        The noise is for the teacher's prediction, which is made only when a term needs it.
        """
        pictures, decode_vjp = jax.vjp(lambda x: self.pictures(frozen, x), x_0)
        pixels, prepare_vjp = jax.vjp(self.prepared, pictures)
        tokens, dino_vjp = self.dino.features_vjp(frozen[DINO], pixels)
        after = jnp.asarray(self.hooked) + 1  # The tokens before the first block come first.
        read, read_vjp = jax.vjp(lambda tokens: self.dino.places(tokens[after]), tokens)

        def back(read_bar: jax.Array) -> jax.Array:
            (tokens_bar,) = read_vjp(read_bar)
            (pictures_bar,) = prepare_vjp(dino_vjp(tokens_bar))
            return decode_vjp(pictures_bar)[0]

        def predict() -> jax.Array:
            if self.teacher is None:
                raise UserError(
                    "a critic in pixels without a teacher predicts no x_0, which a term of the "
                    "student's loss needs: give the critic a teacher"
                )
            x_t_hat = interpolate(x_0, noise.eps, noise.t_hat)
            v = self.teacher(frozen["teacher"], x_t_hat, noise.t_hat, cond)
            return jax.lax.stop_gradient(predict_x0(x_t_hat, v, noise.t_hat))

        return OpenedPictures(
            critic=self,
            given=self._given(pixels, cond),
            tokens=read,
            places=tuple(range(len(self.hooked))),
            tokens_vjp=back,
            pictures=pictures,
            pictures_vjp=lambda bar: decode_vjp(bar)[0],
            decode=lambda latents: self.pictures(frozen, latents),
            predict=predict,
        )

    def refreshed(self, heads: Params, share: float, key: jax.Array) -> Params:
        """See `Critic.refreshed`."""
        return refreshed(self.heads, heads, share, key)

    def _given(self, pixels: jax.Array, cond: Cond) -> Given:
        patch = self.dino.config.patch_size
        grid = pixels.shape[1] // patch, pixels.shape[2] // patch
        return Given(grid, None, told(cond[self.summary], cond, self.guidance_ranges))

    def at_head(self, given: Given) -> Callable[[Params], Head]:
        """See `OnTokens.at_head`."""
        return lambda params: lambda tokens: self.head(params, tokens, *given)


@dataclasses.dataclass(frozen=True)
class OpenedPictures(OpenedTokens):
    """Latents as pictures, and as tokens of the hooked blocks: see `Opened`.

    Attributes:
      pictures: the pictures, float32 `[B, H', W', 1 or 3]`.
      pictures_vjp: function from a gradient at `pictures` to one at the latents.
      decode: function that turns other latents into pictures.
      predict: function that makes the prediction of `predicted_x0`.
    """

    pictures: jax.Array
    pictures_vjp: Callable[[jax.Array], jax.Array]
    decode: Callable[[jax.Array], jax.Array]
    predict: Callable[[], jax.Array]

    def beside(self, real: Opened) -> "OpenedPictures":
        """See `Opened.beside`."""
        assert isinstance(real, OpenedPictures)
        return OpenedPictures(
            **self.tokens_beside(real),
            pictures=in_pairs(self.pictures, real.pictures),
            pictures_vjp=lambda bar: self.pictures_vjp(of_pairs(bar)[0]),
            decode=self.decode,
            predict=lambda: in_pairs(self.predict(), real.predict()),
        )

    def predicted_x0(self) -> jax.Array:
        """See `Opened.predicted_x0`.

        Raises:
          UserError: the critic has no teacher.
        """
        return self.predict()
