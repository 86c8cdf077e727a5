"""Files of the repository that are pages of the site too, with their links turned to match."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[1]
_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_FILES = ("LICENSE", "CITATION.cff")
_RESULTS = "benchmarks/results"


def _turned(text: str) -> str:
    """Text whose links, relative to the repository or to `docs/`, are relative to the site."""

    def turn(link: re.Match[str]) -> str:
        target = (link[1] or link[2]).removeprefix("../").removeprefix("docs/")
        target = target.replace(_RESULTS, "results")
        for source, page in _PAGES.items():
            target = target.replace(source, page)
        return f"]({target})" if link[1] else f'src="{target}"'

    return re.sub(r"\]\((?!https?:|#)([^)]+)\)|src=\"([^\"]+)\"", turn, text)


def on_files(files: Files, config: Any) -> Files:
    """Adds what is outside of `docs/`."""
    for source, page in _PAGES.items():
        files.append(File.generated(config, page, content=(_ROOT / source).read_text()))
    for name in _FILES:
        files.append(File.generated(config, name, abs_src_path=str(_ROOT / name)))
    for path in sorted((_ROOT / _RESULTS).rglob("*")):
        # Beside `x.md` and `x.html` the site has no room for both: pages come first.
        if path.is_file() and path.suffix != ".md":
            name = f"results/{path.relative_to(_ROOT / _RESULTS).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns the links of pages that are read on a git host too."""
    return markdown if page.url.startswith("reference/") else _turned(markdown)
