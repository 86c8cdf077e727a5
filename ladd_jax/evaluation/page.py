"""What pages that open offline share: their style, and embedded pictures."""

import base64
import html
import io

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #626a75; --line: #dfe3e8;
  --paper: #fff; --band: #f4f6f8; --good: #2f8f5b; --bad: #c2532d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #99a1ab; --line: #31363d;
  --paper: #15181c; --band: #1e2227; --good: #4cb07a; --bad: #e5794f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 66rem; margin: 2.5rem auto 4rem; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 46rem; margin: .4rem 0; }
.soft, figcaption, th { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { font-weight: 500; font-size: .87rem; vertical-align: bottom; }
th, td { padding: .28rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th.name, td.name { text-align: left; padding-left: .3rem; }
td.ratio { color: var(--soft); padding-left: 0; font-size: .87rem; }
tr.student td { background: var(--band); }
tr.first td { border-top: 2px solid var(--soft); }
.limit { display: block; font-size: .8rem; }
.track { position: relative; width: 7rem; height: .45rem; margin: .1rem 0 .15rem auto;
  border-radius: .2rem; background: var(--line); }
.fill { height: 100%; border-radius: .2rem; background: var(--good); }
.fill.missed { background: var(--bad); }
.track i { position: absolute; left: 66.67%; top: -.15rem; width: 2px; height: .75rem;
  background: var(--ink); }
.samples td { border: 0; padding: .22rem .5rem; text-align: left; vertical-align: middle; }
.samples th { text-align: left; padding: .2rem .5rem; border: 0; }
.samples td.name { white-space: nowrap; color: var(--soft); padding-right: 1rem; }
img { display: block; image-rendering: pixelated; }
div.row { display: flex; gap: 4px; }
figure { margin: .6rem 0 1.4rem; } figure img { max-width: 100%; image-rendering: auto; }
summary { cursor: pointer; }
.settings td { text-align: left; }
.numbers { margin: .8rem 0; } .numbers td { white-space: nowrap; }
"""
"""The style sheet, for light and dark screens."""


def head(title: str) -> list[str]:
    """The beginning of a page."""
    return [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>",
    ]


def embedded(data: bytes, text: str, width: int | None = None) -> str:
    """An image element with an embedded PNG, its alternative text, and its width in pixels."""
    size = f" width={width}" if width else ""
    source = base64.b64encode(data).decode()
    return f'<img{size} alt="{html.escape(text)}" src="data:image/png;base64,{source}">'


def plotted(data: bytes, text: str) -> str:
    """A plot as a figure, shown at half of its pixels so that it is sharp on a dense screen."""
    width = Image.open(io.BytesIO(data)).width // 2
    return f"<figure>{embedded(data, text, width)}</figure>"
