"""Lays out what tools.explore found as one HTML page."""

from __future__ import annotations

from collections import Counter
from html import escape

from data import Splits
from reporting.duplicates import MOST_COPIES
from reporting.galleries import Card
from reporting.html_page import bullets, cards, name, note, page, plot, table
from reporting.names import shorten
from reporting.prediction_figures import BARS
from reporting.tile_sheet import Tile, pixels
from run_folder.reader import Run
from tools.explore import figures
from tools.explore.examine import (
    NEAR,
    SPLIT_NAMES,
    Exploration,
    Place,
    Twins,
    channel_names,
    pixel_table,
    stores,
)
from tools.explore.tables import COPIES, copy_rows, suspicion_counts
from training.seeds import make_generator

SAMPLES = 10  # of each class and split
CLASSES = 20  # of which samples are shown
CARDS = 24  # shown of each kind
CONFUSIONS = 10


def html_report(exploration: Exploration, run: Run | None) -> str:
    """The whole report, one self-contained HTML document."""
    splits = exploration.splits
    sections = [
        ("Classes", _classes(exploration)),
        ("Samples", _samples(splits)),
        ("Pixels", _pixels(exploration)),
        ("Duplicates", _duplicates(exploration)),
    ]
    if exploration.suspicions is not None and run is not None:
        sections.append(("Suspected labels", _suspicions(exploration, run)))
    return page(f"{splits.name}: the data", _summary(exploration), sections)


def _summary(exploration: Exploration) -> str:
    splits = exploration.splits
    size = splits.train.images.shape[-1]
    total = sum(map(len, stores(splits).values()))
    colour = {1: "grey", 3: "colour"}[splits.channels]
    counts = exploration.counts[0]
    lines = [
        f"{total} images of {size} x {size} pixels, {colour}, in {splits.num_classes} classes."
    ]
    if int(counts.min()):
        lines.append(
            f"The largest class has {counts.max() / counts.min():.1f} times as many training "
            "images as the smallest."
        )
    if any(exploration.unlabelled):
        lines.append(f"{sum(exploration.unlabelled)} images have no label.")
    lines += splits.notes.facts
    lines += [f"Warning: {warning}" for warning in splits.notes.warnings]
    lines.append(f"Fingerprint of the data: {splits.fingerprint()}.")
    return bullets(map(name, lines))


def _classes(exploration: Exploration) -> str:
    classes = exploration.splits.class_names
    words = list(SPLIT_NAMES.values())
    few = f" The {BARS} smallest classes are drawn." if len(classes) > BARS else ""
    rows = [
        [
            name(one),
            *map(str, counts),
            f"{mean:.1f} &plusmn; {deviation:.1f}" if mean == mean else "&ndash;",
        ]
        for one, counts, (mean, deviation) in zip(
            classes, exploration.counts.T.tolist(), exploration.brightness.tolist(), strict=True
        )
    ]
    rows.append(["all", *map(str, exploration.counts.sum(1).tolist()), ""])
    return (
        note(
            "Images of each class. Brightness is the mean over a class's training images of their "
            "mean grey level, 0 to 255, and its deviation: where classes differ in it, a network "
            f"may tell them apart by the stain or the exposure alone.{few}"
        )
        + plot(
            figures.class_shares(exploration.counts, words, classes),
            "Shares of the classes in each split; the table below has the numbers.",
        )
        + table(["class", *words, "brightness"], rows)
    )


def _samples(splits: Splits) -> str:
    classes = splits.class_names
    generator = make_generator(0, "samples")
    few = f" The first {CLASSES} classes are shown." if len(classes) > CLASSES else ""
    sheets = "".join(
        plot(
            figures.sample_sheet(
                store.images, store.labels, store.sources, classes[:CLASSES], SAMPLES,
                f"{SPLIT_NAMES[split]} split", generator,
            ),
            f"Images of each class of the {SPLIT_NAMES[split]} split.",
        )
        for split, store in stores(splits).items()
    )  # fmt: skip
    return note(f"Drawn at random.{few}") + sheets


def _pixels(exploration: Exploration) -> str:
    channels = channel_names(exploration.splits.channels)
    rows = [
        [
            f"{SPLIT_NAMES[row['split']]}, {row['channel']}",
            f"{row['mean']:.1f}",
            f"{row['deviation']:.1f}",
            str(row["lowest"]),
            str(row["highest"]),
            f"{row['black']:.1%}",
            f"{row['white']:.1%}",
        ]
        for row in pixel_table(exploration)
    ]
    header = ["channel", "mean", "deviation", "lowest", "highest", "0 (black)", "255 (white)"]
    return (
        note(
            "How often each value occurs, from 0 to 255. Curves that lie apart are a shift between "
            "the splits."
        )
        + plot(
            figures.pixel_histograms(exploration.histograms, list(SPLIT_NAMES.values()), channels),
            "Histograms of pixel values in each split; the table below has their statistics.",
        )
        + table(header, rows)
    )


def _duplicates(exploration: Exploration) -> str:
    reading = (
        "How many images of one split have a copy in it or in an earlier split, and how many of "
        "these have a copy of another class. Nearly equal: the pixels correlate at "
        f"{NEAR} or more, so a copy that was compressed anew or made brighter counts, and one that "
        "was shifted or turned does not. A test image with a copy in the training split makes test "
        "figures flatter; of two copies with different classes, one label is probably wrong. Of "
        "several equal images only the first is compared for nearly equal ones. duplicates.csv "
        f"lists the pairs, at most {MOST_COPIES} of an image in each split."
    )
    rows = [[where, *map(str, numbers)] for where, numbers in copy_rows(exploration)]
    content = note(reading) + table(["images with a copy", *COPIES], rows)
    shown = sorted(
        [*exploration.exact, *exploration.near],
        key=lambda one: (not one.contradictory, not one.across, -one.similarity),
    )
    if len(shown) > CARDS:
        content += f"<p>{CARDS} of them, those of different classes and across splits first:</p>"
    return content + cards([_twin_card(exploration, one) for one in shown[:CARDS]])


def _twin_card(exploration: Exploration, twins: Twins) -> Card:
    alike = "equal" if twins.similarity == 1 else f"correlation {twins.similarity:.3f}"
    tiles = [_tile(exploration, one, "") for one in (twins.first, twins.second)]
    return Card(alike, tiles)


def _tile(exploration: Exploration, place: Place, more: str) -> Tile:
    """The image with its split, source and class below it."""
    label = shorten(exploration.class_name(place.label))
    source = shorten(exploration.source(place), figures.SOURCE_WIDTH)
    image = stores(exploration.splits)[place.split].images[place.index]
    caption = f"{SPLIT_NAMES[place.split]} #{place.index}: {label}{more}; {source}"
    return Tile(pixels(image), caption)


def _suspicions(exploration: Exploration, run: Run) -> str:
    classes = exploration.splits.class_names
    suspicions = exploration.suspicions or []
    reading = (
        f"Labels that the network of {run.path.name} (round {run.round}, "
        f"{len(run.pool.labelled)} labels) confidently disagrees with, by confident learning "
        "(Northcutt et al. 2021). It is a list of images to check, not a verdict: most are the "
        "network's own mistakes where it is often wrong. suspected_labels.csv has all of them."
    )
    kinds = bullets(f"{count} {escape(title)}" for title, count in suspicion_counts(suspicions))
    confusions = Counter((one.place.label, one.suggested) for one in suspicions)
    rows = [
        [name(classes[label]), name(classes[suggested]), str(count)]
        for (label, suggested), count in confusions.most_common(CONFUSIONS)
    ]
    shown = [
        Card(
            f"looks like {classes[one.suggested]}",
            [
                _tile(
                    exploration,
                    one.place,
                    f", {one.given_probability:.0%}; {shorten(classes[one.suggested])}, "
                    f"{one.suggested_probability:.0%}",
                )
            ],
        )
        for one in suspicions[:CARDS]
    ]
    return (
        note(reading)
        + f"<p>{len(suspicions)} labels:</p>"
        + kinds
        + table(["labelled", "looks like", "images"], rows, names=2)
        + cards(shown)
    )
