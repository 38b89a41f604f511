"""A report as one HTML file that needs nothing else: pictures inside, no scripts, no network.

It reads on a phone (wide tables and diagrams scroll by themselves), prints, and says in words or
numbers what each diagram shows. Names of classes and files pass through `name`, which keeps a name
in a right-to-left script from reordering the text around it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from data_sources.names import printable
from reporting.galleries import Card
from reporting.tile_sheet import Tile, image_png, tile_image

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff;
  max-width: 1100px; margin: 2em auto; padding: 0 1em; -webkit-text-size-adjust: 100%; }
h1 { line-height: 1.2; margin-bottom: .2em; overflow-wrap: anywhere; }
h2 { border-bottom: 2px solid #0072B2; padding-bottom: .15em; margin-top: 2em; }
p, li { max-width: 46em; overflow-wrap: anywhere; }
a { color: #00558a; }
nav ul { columns: 14em; padding-left: 1.2em; }
.note { color: #444; }
.block { overflow-x: auto; margin: 1em 0; }
.plot { display: block; max-width: 100%; height: auto; }
.pixels { width: 84px; height: 84px; object-fit: contain; image-rendering: pixelated;
  border: 1px solid #999; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #444; padding-bottom: .3em; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ccc; }
td { white-space: nowrap; }
th { font-weight: 600; }
tbody th { font-weight: 400; }
.name { text-align: left; white-space: normal; min-width: 9em; max-width: 20em;
  overflow-wrap: break-word; }
thead th { border-bottom: 2px solid #111; vertical-align: bottom; }
.interval { color: #444; font-size: .85em; white-space: nowrap; }
summary { cursor: pointer; color: #00558a; }
.cards { display: flex; flex-wrap: wrap; gap: 1em; }
.card { border: 1px solid #bbb; border-radius: 6px; padding: .6em .8em; width: min-content; }
.card h3 { font-size: .95em; margin: 0 0 .4em; overflow-wrap: anywhere; }
.row { display: flex; gap: .8em; }
figure { margin: 0; width: 96px; }
figcaption { font-size: .75em; line-height: 1.25; overflow-wrap: anywhere; }
@media (max-width: 700px) {
  body { margin: 1em auto; }
  .plot { max-width: none; width: 600px; }
  .plot.narrow { max-width: 100%; width: auto; }
  th:first-child { position: sticky; left: 0; background: #fff; }
  .cards { display: block; }
  .card { width: auto; margin-bottom: 1em; }
  .row { flex-wrap: wrap; }
}
@media print {
  body { font-size: 10.5pt; max-width: none; margin: 0; padding: 0; }
  nav, summary { display: none; }
  details::details-content { content-visibility: visible; }
  .block { overflow: visible; }
  h2, h3, .note { break-after: avoid; break-inside: avoid; }
  thead { display: table-header-group; }
  tr, .card, figure, .picture { break-inside: avoid; }
  .plot, .plot.narrow { width: auto; max-width: 100%; max-height: 11.5cm; }
  .card, th, td { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
NARROW = 560  # pixels of width up to which a diagram is shrunk to a phone's screen


def page(title: str, opening: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole document.

    Args:
        title: plain text.
        opening: HTML, before the table of contents.
        sections: title, plain text, and HTML of each.
    """
    contents = "".join(
        f'<li><a href="#section-{number}">{escape(heading)}</a></li>'
        for number, (heading, _) in enumerate(sections)
    )
    body = "\n".join(
        f'<section id="section-{number}">\n<h2>{escape(heading)}</h2>\n{content}\n</section>'
        for number, (heading, content) in enumerate(sections)
    )
    heading = escape(printable(title))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{heading}</h1>\n{opening}\n"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n{body}\n'
        "</main>\n</body>\n</html>\n"
    )


def name(text: str) -> str:
    """The name of a class or file as HTML."""
    return f"<bdi>{escape(printable(text))}</bdi>"


def note(text: str) -> str:
    """A line or two of plain text on how to read what follows."""
    return f'<p class="note">{escape(text)}</p>\n'


def bullets(lines: Iterable[str]) -> str:
    """A list of lines of HTML."""
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def plot(png: bytes, alt: str) -> str:
    """A diagram; `alt` says in words what it shows."""
    width = int.from_bytes(png[16:20], "big")  # where every PNG file has it
    kind = "plot narrow" if width <= NARROW else "plot"
    image = f'<img class="{kind}" alt="{escape(printable(alt))}" src="{_data_uri(png)}">'
    # Browsers keep a heading together with a following block, but not with a bare image.
    return f'<div class="block picture">{image}</div>\n'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A table of HTML cells; its first `names` columns are names and stand to the left."""
    head = "".join(
        f'<th scope="col"{_kind(place, names)}>{cell}</th>' for place, cell in enumerate(header)
    )
    body = "\n".join(f"<tr>{_cells(row, names)}</tr>" for row in rows)
    return (
        f'<div class="block"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n"
    )


def _cells(row: Sequence[str], names: int) -> str:
    first, *others = row
    return f'<th scope="row"{_kind(0, names)}>{first}</th>' + "".join(
        f"<td{_kind(place, names)}>{cell}</td>" for place, cell in enumerate(others, start=1)
    )


def _kind(place: int, names: int) -> str:
    return ' class="name"' if place < names else ""


def details(summary: str, content: str) -> str:
    """Content that opens on a click, such as the numbers behind a diagram; printed always."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>\n"


def cards(items: Sequence[Card]) -> str:
    """Cards, as many beside each other as the page has room for."""
    return '<div class="cards">\n' + "\n".join(map(_card, items)) + "\n</div>\n"


def _card(item: Card) -> str:
    row = "".join(map(_picture, item.tiles))
    return f'<div class="card"><h3>{name(item.title)}</h3><div class="row">{row}</div></div>'


def _picture(tile: Tile) -> str:
    """A small image with enlarged pixels and a caption."""
    source = _data_uri(image_png(tile_image(tile)))
    # The caption is the text alternative; saying it twice would make a screen reader repeat it.
    return (
        f'<figure><img class="pixels" alt="image" src="{source}">'
        f"<figcaption>{name(tile.caption)}</figcaption></figure>"
    )


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
