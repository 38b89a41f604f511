"""A report as one HTML file that needs nothing else: pictures inside, no scripts, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

from reporting.figures import Tile
from reporting.galleries import Card

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff;
  max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { line-height: 1.2; margin-bottom: .2em; }
h2 { border-bottom: 2px solid #0072B2; padding-bottom: .15em; margin-top: 2em; }
p, li { max-width: 46em; }
.note { color: #444; }
.plot { display: block; max-width: 100%; height: auto; }
.pixels { width: 84px; height: 84px; image-rendering: pixelated; border: 1px solid #999; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1em 0; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ccc; }
th:first-child, td:first-child { text-align: left; max-width: 20em; }
thead th { border-bottom: 2px solid #111; }
.interval { color: #444; font-size: .85em; white-space: nowrap; }
.cards { display: flex; flex-wrap: wrap; gap: 1em; }
.card { border: 1px solid #bbb; border-radius: 6px; padding: .6em .8em; width: min-content; }
.card h3 { font-size: .95em; margin: 0 0 .4em; overflow-wrap: anywhere; }
.row { display: flex; gap: .8em; }
figure { margin: 0; width: 96px; }
figcaption { font-size: .75em; line-height: 1.25; overflow-wrap: anywhere; }
@media print {
  body { font-size: 10.5pt; max-width: none; margin: 0; padding: 0; }
  h2, h3, .note { break-after: avoid; break-inside: avoid; }
  tr, .card, figure, .block { break-inside: avoid; }
  .plot { max-height: 11.5cm; }
  .card, th, td { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""


def page(title: str, sections: Iterable[str]) -> str:
    """The whole document; `sections` are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def section(title: str, note: str, content: str) -> str:
    """A heading, a line or two of plain text on how to read what follows, and HTML."""
    text = f'<p class="note">{escape(note)}</p>\n' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{text}{content}\n</section>"


def plot(png: bytes, alt: str) -> str:
    """A diagram, no wider than the page; `alt` says what it shows."""
    # Browsers keep a heading together with a following block, but not with a bare image.
    image = f'<img class="plot" alt="{escape(alt)}" src="{_data_uri(png)}">'
    return f'<div class="block">{image}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; the first column is of names."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def cards(items: Sequence[Card]) -> str:
    """Cards, as many beside each other as the page has room for."""
    return '<div class="cards">\n' + "\n".join(map(_card, items)) + "\n</div>"


def _card(item: Card) -> str:
    row = "".join(map(_picture, item.tiles))
    return f'<div class="card"><h3>{escape(item.title)}</h3><div class="row">{row}</div></div>'


def _picture(tile: Tile) -> str:
    """A small image with enlarged pixels and a caption."""
    buffer = io.BytesIO()
    Image.fromarray(tile.pixels.squeeze(2) if tile.pixels.shape[2] == 1 else tile.pixels).save(
        buffer, "PNG"
    )
    text = escape(tile.caption)
    source = _data_uri(buffer.getvalue())
    return (
        f'<figure><img class="pixels" alt="{text}" src="{source}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
