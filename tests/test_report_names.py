"""Names of classes and files in pictures, tables and pages: literal, whatever letters they have."""

from __future__ import annotations

import csv
import io
import logging
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from data_sources.names import printable
from reporting import fonts, prediction_figures, tile_sheet
from reporting.figures import learning_curve, png
from reporting.files import csv_text
from reporting.galleries import Card
from reporting.html_page import cards, page, table
from reporting.html_page import name as html_name
from reporting.intervals import Estimate
from reporting.names import columns, padded, shorten, wrapped

NAMES = (
    "US$_$tile", "a|b", "_hidden", "肺癌", "שלום עולם", "سرطان الرئة", "x" * 300, "100% {x}",
    "<b>&amp;", r"\alpha^2", "caf\udce9", "two\nlines", "#hash", "=1+1", " ",
)  # fmt: skip


def test_shortened_names_keep_both_ends() -> None:
    assert shorten("platelet") == "platelet"
    assert shorten("a" * 30 + "b", 10) == "a" * 6 + "…" + "aab"
    assert shorten("肺癌" * 20, 10) == "肺癌肺…癌"
    assert shorten("a\nb") == r"a\nb"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1, 2, 3, 10, 24])
def test_no_name_is_wider_than_asked_for(name: str, width: int) -> None:
    short = shorten(name, width)
    assert columns(short) <= width
    short.encode("utf-8")
    assert columns(padded(short, width)) == width
    lines = wrapped(name, width + 1, 3)
    assert len(lines) <= 3
    assert all(columns(line) <= width + 1 for line in lines)


def test_bytes_that_are_no_text_are_told_apart() -> None:
    assert printable("caf\udce9.png") == r"caf\xe9.png"
    assert printable("safe\u202egnp.exe") == r"safe\u202egnp.exe"
    assert printable("tab\tnew\nline\x00") == r"tab\tnew\nline\x00"
    assert printable("naïve 肺癌 سرطان") == "naïve 肺癌 سرطان"


def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is in the figures that are drawn from now on."""
    texts: list[str] = []
    inside = png

    def watched(figure: Figure) -> bytes:
        picture = inside(figure)
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            assert not text.get_parse_math()
            texts.append(text.get_text())
        return picture

    monkeypatch.setattr(prediction_figures, "png", watched)
    return texts


@pytest.mark.filterwarnings("error::UserWarning")
def test_every_diagram_draws_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = drawn_texts(monkeypatch)
    classes = len(NAMES)
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 9, (classes, classes), generator=generator)
    labels = torch.arange(4 * classes) % classes
    probabilities = torch.rand(4 * classes, classes, generator=generator).softmax(1)
    estimates = [Estimate(0.5, 0.4, 0.6)] * classes
    rows = [
        {"labeled_samples": n, **{f"val_recall_{name}": 0.5 for name in NAMES}} for n in (10, 20)
    ]
    for draw in (
        lambda: prediction_figures.confusion_matrix(counts, NAMES),
        lambda: prediction_figures.class_mix(counts[:3], NAMES, counts[3]),
        lambda: prediction_figures.class_curves(rows, NAMES),
        lambda: prediction_figures.roc_curves(probabilities, labels, estimates, NAMES),
        lambda: prediction_figures.precision_and_recall(estimates, estimates, NAMES),
        lambda: prediction_figures.embedding_map(
            torch.randn(4 * classes, 2, generator=generator), labels % 3, labels, NAMES
        ),
    ):
        texts.clear()
        assert draw().startswith(b"\x89PNG")
        for name in NAMES:
            assert any(shorten(name, 24) in text for text in texts), name
    assert learning_curve([{"labeled_samples": 1}], "run $a_$ 肺").startswith(b"\x89PNG")


def test_a_sheet_of_images_has_a_font_for_every_name() -> None:
    tiles = [tile_sheet.Tile(np.zeros((3, 5, 1), np.uint8), name) for name in NAMES]
    with Image.open(io.BytesIO(tile_sheet.tile_sheet(tiles, 4, "$_$ 肺癌"))) as image:
        assert image.convert("L").getextrema() == (0, 255)


class TestFonts:
    @pytest.fixture(autouse=True)
    def forgotten(self) -> None:
        fonts._fonts_with.cache_clear()
        fonts._installed.cache_clear()

    def test_a_font_that_has_the_letters_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The bold face of the default font plays the font that alone has the letters."""
        bold = font_manager.findfont(font_manager.FontProperties(weight="bold"))
        letters = fonts._letters
        monkeypatch.setattr(fonts, "_installed", lambda: [bold, fonts.default_file()])
        monkeypatch.setattr(
            fonts, "_letters", lambda file: letters(file) | ({ord("肺")} if file == bold else set())
        )
        assert fonts.font_files("肺 a") == [fonts.default_file(), bold]
        assert fonts.line_font_file("肺 a") == bold
        assert fonts.line_font_file("a") == fonts.default_file()
        figure = Figure()
        text = figure.text(0, 0, "肺")
        png(figure)
        assert text.get_fontfamily() == fonts.families("肺")

    def test_letters_that_no_font_has_are_warned_of_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(fonts, "_installed", lambda: [fonts.default_file()])
        with caplog.at_level(logging.WARNING):
            assert fonts.font_files("\U00012000 a") == [fonts.default_file()]
            fonts.font_files("\U00012000 b")
        (record,) = caplog.records
        assert "install" in record.message


def test_tables_and_pages_keep_every_name() -> None:
    rows = [[printable(name)] for name in NAMES]
    assert list(csv.reader(io.StringIO(csv_text(["class"], rows)))) == [["class"], *rows]
    document = page(
        "$a_$ </title><script>", "", [("A & B", table(["class"], [[html_name(n)] for n in NAMES]))]
    )
    document += cards([Card(NAMES[8], [tile_sheet.Tile(np.zeros((2, 2, 3), np.uint8), NAMES[8])])])
    document.encode("utf-8")
    words: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            assert tag != "script"

        def handle_data(self, data: str) -> None:
            words.append(data)

    Reader().feed(document)
    for name in NAMES:
        assert printable(name) in words


@pytest.mark.parametrize("classes", [200, 1000])
def test_confusion_matrices_of_many_classes_are_bounded(classes: int) -> None:
    counts = torch.diag(torch.full((classes,), 7))
    counts[3, 150] = counts[150, 3] = 5
    names = [f"class {c}" for c in range(classes)]
    assert {3, 150} <= set(prediction_figures.confused_classes(counts, 29))
    merged = prediction_figures._merged(counts, [3, 150])
    assert merged.tolist() == [[7, 5, 0], [5, 7, 0], [0, 0, 7 * (classes - 2)]]
    with Image.open(io.BytesIO(prediction_figures.confusion_matrix(counts, names))) as image:
        assert image.width * image.height < 6e6


def test_the_classes_that_tell_most_are_shown() -> None:
    ranks = torch.tensor([0.9, torch.nan, 0.1, 0.5])
    assert prediction_figures.telling_classes(ranks, 2) == [2, 3]
    assert prediction_figures.telling_classes(ranks, 9) == [0, 1, 2, 3]


def test_many_rounds_share_columns() -> None:
    counts = torch.ones(35, 2, dtype=torch.int64)
    merged, titles = prediction_figures._merged_rounds(counts)
    assert titles[:2] == ["0-2", "3-5"]
    assert titles[-1] == "33-34"
    assert merged.sum(0).tolist() == [35, 35]
    assert prediction_figures._merged_rounds(counts[:3])[1] == ["0", "1", "2"]
