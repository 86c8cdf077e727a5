"""Finished pictures of a model, found by prompt, seed and number of steps."""

from pathlib import Path

from ladd_jax.data.picture_folder import PictureFolder, png_text
from ladd_jax.errors import UserError
from ladd_jax.evaluation.arena.page import Sample
from ladd_jax.names import counted


class Pictured:
    """A folder of pictures with prompts.

    Pictures made by `ladd_jax.sample` carry their seed and number of steps. For other pictures the
    number of steps is unknown, and those of a prompt get consecutive seeds from the first one that
    is asked for.

    Attributes:
      prompts: the prompts of the pictures, each once.
      steps: the numbers of steps of the pictures, with None for unknown.
    """

    def __init__(self, path: Path, prompts: list[str] | None):
        """Finds the pictures, and reads their metadata.

        Args:
          path: the folder.
          prompts: prompts of pictures that do not carry theirs, see `PictureFolder`.

        Raises:
          NotFoundError: there is no picture.
          UserError: prompts are unknown, or a file is not a picture.
        """
        self._path = path
        folder = PictureFolder(path)
        if folder.prompts is None and prompts is not None:
            folder = PictureFolder(path, prompts)
        if folder.prompts is None:
            raise UserError(
                f"pictures of {path} do not carry their prompts: give --prompts=FILE with one for "
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
        """The file of the picture of a prompt and a seed.

        Args:
          sample: the prompt and the seed.
          steps: number of steps, one of the attribute `steps`.
          first_seed: the seed given to the first of the pictures without one.

        Raises:
          UserError: there is no such picture, or the seeds of pictures are ambiguous.
        """
        files = self._files[steps].get(sample.prompt, [])
        known: dict[int | None, Path] = {}
        if all(self._seeds[file] is None for file in files):
            known = dict(enumerate(files, first_seed))
        for file in files if not known else ():
            seed = self._seeds[file]
            if seed is None:
                raise UserError(
                    f"{file} has no seed, and other pictures of its prompt do: leave one kind out"
                )
            if seed in known:
                raise UserError(
                    f"{file} and {known[seed].name} have the same prompt and seed{_in(steps)}: "
                    f"leave one of them out"
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
