"""Lays out what tools.explore found, for the terminal and as one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from data import Splits
from reporting.figures import Tile, pixels, shorten
from reporting.galleries import Card
from reporting.html_page import cards, page, plot, section, table
from run_folder.reader import Run
from tools.explore import figures
from tools.explore.examine import (
    NEAR,
    SPLIT_NAMES,
    Exploration,
    Place,
    Suspicion,
    Twins,
    channel_names,
    pair_counts,
    pixel_table,
    stores,
)
from training.seeds import make_generator

SAMPLES = 10  # of each class and split
CLASSES = 20  # of which samples are shown
CARDS = 24  # shown of each kind
NAME_WIDTH = 32
PAIRS = ("the same", "labelled differently", "nearly the same", "labelled differently")


def text_table(exploration: Exploration, run: Run | None) -> str:
    """The figures for a terminal."""
    names = exploration.splits.class_names
    lines = [f"{'class':{NAME_WIDTH}}  training  validation      test  brightness"]
    for name, counts, (mean, deviation) in zip(
        names, exploration.counts.T.tolist(), exploration.brightness.tolist(), strict=True
    ):
        numbers = f"{counts[0]:8}  {counts[1]:10}  {counts[2]:8}"
        lines.append(
            f"{shorten(name, NAME_WIDTH):{NAME_WIDTH}}  {numbers}  {mean:5.1f} ± {deviation:.1f}"
        )
    totals = exploration.counts.sum(1).tolist()
    lines += [f"{'all':{NAME_WIDTH}}  {totals[0]:8}  {totals[1]:10}  {totals[2]:8}", ""]
    lines.append("pixels              mean  deviation  lowest  highest   black   white")
    for row in pixel_table(exploration):
        name = f"{SPLIT_NAMES[row['split']]} {row['channel']}"
        lines.append(
            f"{name:16}  {row['mean']:6.1f}  {row['deviation']:9.1f}  {row['lowest']:6}  "
            f"{row['highest']:7}  {row['black']:6.1%}  {row['white']:6.1%}"
        )
    lines += ["", f"{'pairs of images':{NAME_WIDTH}}" + "".join(f"  {name}" for name in PAIRS)]
    for where, numbers_of_pairs in _pair_rows(exploration):
        columns = zip(PAIRS, numbers_of_pairs, strict=True)
        lines.append(f"{where:{NAME_WIDTH}}" + "".join(f"  {n:{len(name)}}" for name, n in columns))
    if exploration.suspicions is not None and run is not None:
        found = exploration.suspicions
        lines += ["", f"suspected labels, by checkpoint {run.uuid} of round {run.round}:"]
        lines += [f"{count:8}  {title}" for title, count in _suspicion_counts(found)]
        lines += [f"    {_said(one, names)}" for one in found[:10]]
    return "\n".join(lines)


def html_report(exploration: Exploration, run: Run | None) -> str:
    """The whole report, one self-contained HTML document."""
    splits = exploration.splits
    names = splits.class_names
    parts = stores(splits)
    words = list(SPLIT_NAMES.values())
    generator = make_generator(0, "samples")
    few = f" The first {CLASSES} classes are shown." if len(names) > CLASSES else ""
    sheets = "".join(
        plot(
            figures.sample_sheet(
                store.images, store.labels, names[:CLASSES], SAMPLES,
                f"{SPLIT_NAMES[split]} split", generator,
            ),
            f"images of each class of the {SPLIT_NAMES[split]} split",
        )
        for split, store in parts.items()
    )  # fmt: skip
    sections = [
        _summary(splits),
        section(
            "Classes",
            "Images of each class. Brightness is the mean over a class's training images of their "
            "mean grey level, 0 to 255, and its deviation: where classes differ in it, a network "
            "may tell them apart by the stain or the exposure alone.",
            plot(figures.class_shares(exploration.counts, words, names), "shares of the classes")
            + _class_table(exploration),
        ),
        section(
            "Samples",
            f"Drawn at random; numbers are indices in the split.{few}",
            sheets,
        ),
        section(
            "Pixels",
            "How often each value occurs, from 0 to 255. Curves that lie apart are a shift between "
            "the splits.",
            plot(
                figures.pixel_histograms(
                    exploration.histograms, words, channel_names(splits.channels)
                ),
                "histograms of pixel values",
            )
            + _pixel_table(exploration),
        ),
        section("Duplicates", *_duplicates(exploration)),
    ]
    if exploration.suspicions is not None and run is not None:
        sections.append(section("Suspected labels", *_suspicions(exploration.suspicions, run)))
    return page(f"{splits.name}: the data", sections)


def _summary(splits: Splits) -> str:
    size = splits.train.images.shape[-1]
    total = sum(map(len, stores(splits).values()))
    colour = {1: "grey", 3: "colour"}[splits.channels]
    counts = splits.train.labels.bincount(minlength=splits.num_classes)
    lines = [
        f"{total} images of {size} x {size} pixels, {colour}, in {splits.num_classes} classes.",
        f"The largest class has {counts.max() / counts.min():.1f} times as many training images "
        "as the smallest.",
        f"Fingerprint of the data: {splits.fingerprint()}.",
    ]
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _class_table(exploration: Exploration) -> str:
    rows = [
        [escape(name), *map(str, counts), f"{mean:.1f} &plusmn; {deviation:.1f}"]
        for name, counts, (mean, deviation) in zip(
            exploration.splits.class_names,
            exploration.counts.T.tolist(),
            exploration.brightness.tolist(),
            strict=True,
        )
    ]
    rows.append(["all", *map(str, exploration.counts.sum(1).tolist()), ""])
    return table(["class", *SPLIT_NAMES.values(), "brightness"], rows)


def _pixel_table(exploration: Exploration) -> str:
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
    header = ["", "mean", "deviation", "lowest", "highest", "0 (black)", "255 (white)"]
    return table(header, rows)


def _pair_rows(exploration: Exploration) -> list[tuple[str, list[int]]]:
    """Where pairs lie, and how many: the same, of those labelled differently, and nearly the same.

    The numbers are in the order of `PAIRS`.
    """
    counts = [
        pair_counts([one for one in twins if one.contradictory or not contradictory])
        for twins in (exploration.exact, exploration.near)
        for contradictory in (False, True)
    ]
    rows = []
    words = list(SPLIT_NAMES)
    for i, first in enumerate(words):
        for second in words[i:]:
            where = f"{SPLIT_NAMES[first]} and {SPLIT_NAMES[second]}"
            if first == second:
                where = f"within {SPLIT_NAMES[first]}"
            rows.append((where, [one[first, second] for one in counts]))
    return rows


def _duplicates(exploration: Exploration) -> tuple[str, str]:
    """Note and content."""
    threshold = exploration.near_threshold
    note = (
        "The same: equal pixels. Nearly the same: the pixels correlate at "
        f"{threshold:.3f} or more, so a copy that was compressed anew, or made brighter, counts, "
        "and one that was shifted or turned does not. Pairs across splits make test figures "
        "flatter; pairs labelled differently probably have a wrong label between them. Of several "
        "equal images only the first is compared for near copies."
    )
    if threshold > NEAR:
        note += f" More pairs than can be kept lie above {NEAR}: the bar was raised."
    rows = [[where, *map(str, numbers)] for where, numbers in _pair_rows(exploration)]
    content = table(["pairs of images", *PAIRS], rows)
    shown = sorted(
        [*exploration.exact, *exploration.near],
        key=lambda one: (not one.contradictory, not one.across, -one.similarity),
    )
    if len(shown) > CARDS:
        content += f"<p>{CARDS} of them, those labelled differently and across splits first:</p>"
    return note, content + cards([_twin_card(exploration.splits, one) for one in shown[:CARDS]])


def _twin_card(splits: Splits, twins: Twins) -> Card:
    alike = "the same" if twins.similarity == 1 else f"correlation {twins.similarity:.3f}"
    places = (twins.first, twins.second)
    return Card(alike, [_tile(splits, one, _where(one, splits.class_names)) for one in places])


def _tile(splits: Splits, place: Place, caption: str) -> Tile:
    return Tile(pixels(stores(splits)[place.split].images[place.index]), caption)


def _where(place: Place, names: Sequence[str]) -> str:
    return f"{SPLIT_NAMES[place.split]} #{place.index}: {shorten(names[place.label])}"


def _suspicion_counts(found: Sequence[Suspicion]) -> list[tuple[str, int]]:
    """How many suspicions there are of each kind of image."""
    kinds = Counter(
        "training, labelled: the network has learned this label"
        if one.trained_on
        else f"{SPLIT_NAMES[one.place.split]}, not seen by the network"
        for one in found
    )
    return kinds.most_common()


def _said(one: Suspicion, names: Sequence[str]) -> str:
    return (
        f"{SPLIT_NAMES[one.place.split]} #{one.place.index}: labelled {names[one.place.label]} "
        f"({one.given_probability:.0%}), looks like {names[one.suggested]} "
        f"({one.suggested_probability:.0%})"
    )


def _suspicions(found: Sequence[Suspicion], run: Run) -> tuple[str, str]:
    """Note and content."""
    splits = run.splits
    names = splits.class_names
    note = (
        f"Labels that the network of {run.path.name} (round {run.round}, "
        f"{len(run.pool.labelled)} labels) confidently disagrees with, by confident learning "
        "(Northcutt et al. 2021). It is a list to look at, not a verdict: most are the network's "
        "own mistakes where it is often wrong."
    )
    kinds = "".join(
        f"<li>{count} {escape(title)}</li>" for title, count in _suspicion_counts(found)
    )
    confusions = Counter((one.place.label, one.suggested) for one in found).most_common(10)
    content = f"<p>{len(found)} labels:</p><ul>{kinds}</ul>" + table(
        ["labelled", "looks like", "images"],
        [[escape(names[a]), escape(names[b]), str(count)] for (a, b), count in confusions],
    )
    shown = [
        Card(
            f"looks like {names[one.suggested]}",
            [
                _tile(
                    splits,
                    one.place,
                    f"{_where(one.place, names)}, {one.given_probability:.0%}; "
                    f"{shorten(names[one.suggested])}, {one.suggested_probability:.0%}",
                )
            ],
        )
        for one in found[:CARDS]
    ]
    return note, content + cards(shown)
