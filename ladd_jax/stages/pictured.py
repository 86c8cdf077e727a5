"""Finished pictures of a model, found by prompt, seed and number of steps."""

from pathlib import Path

from ladd_jax.data.picture_folder import PictureFolder, png_text
from ladd_jax.errors import UserError
from ladd_jax.evaluation.arena.page import Sample
from ladd_jax.names import counted


class Pictured:
    """A folder of pictures with prompts.

    Pictures that `ladd_jax.sample` made carry their seed and number of steps. Of others the first
    one of a prompt has the first seed that is asked for, and the number of steps is unknown.

    Attributes:
      prompts: its prompts, each once.
      steps: its numbers of steps; None where unknown.
    """

    def __init__(self, path: Path, prompts: list[str] | None):
        """Looks for pictures, and reads their metadata.

        Args:
          path: the folder.
          prompts: as of `PictureFolder`, of pictures that do not tell theirs.

        Raises:
          NotFoundError: there is no picture.
          UserError: their prompts are unknown, or one is no picture.
        """
        self._path = path
        folder = PictureFolder(path)
        if folder.prompts is None and prompts is not None:
            folder = PictureFolder(path, prompts)
        if folder.prompts is None:
            raise UserError(
                f"pictures of {path} do not tell their prompts: give --prompts=FILE with one for "
                f"each, or for each run of equally many, in the order of their names"
            )
        self._files: dict[int | None, dict[str, list[Path]]] = {}
        self._seeds: dict[Path, int | None] = {}
        for file, prompt in zip(folder.files, folder.prompts, strict=True):
            steps = _number(file, "steps")
            self._files.setdefault(steps, {}).setdefault(prompt, []).append(file)
            self._seeds[file] = _number(file, "seed")
        self.prompts = list(dict.fromkeys(folder.prompts))
        self.steps = sorted(self._files, key=lambda steps: steps or 0)

    def find(self, sample: Sample, steps: int | None, first_seed: int) -> Path:
        """The picture of a prompt and a seed.

        Args:
          sample: both.
          steps: one of `steps`.
          first_seed: the seed that the first of pictures without one counts as.

        Raises:
          UserError: there is none.
        """
        files = self._files[steps].get(sample.prompt, [])
        known: dict[int | None, Path] = {}
        if all(self._seeds[file] is None for file in files):
            known = dict(enumerate(files, first_seed))
        for file in files if not known else ():
            seed = self._seeds[file]
            if seed is None:
                raise UserError(
                    f"{file} tells no seed, and others of its prompt do: leave one kind out"
                )
            if seed in known:
                raise UserError(
                    f"{file} and {known[seed].name} are of one prompt and seed{_in(steps)}: leave "
                    f"one of both out"
                )
            known[seed] = file
        if sample.seed not in known:
            seeds = ", ".join(str(seed) for seed in known)
            has = f"only of seed {seeds}" if files else "none at all"
            raise UserError(
                f"{self._path} has no picture{_in(steps)} of {sample.prompt[:60]!r} with seed "
                f"{sample.seed}, {has}: add it, or choose others by --prompts, --seed and --num"
            )
        return known[sample.seed]


def _number(file: Path, name: str) -> int | None:
    text = png_text(file, name)
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _in(steps: int | None) -> str:
    return "" if steps is None else f" in {counted(steps, 'step')}"
