"""What tools.explore found as text: the tables for a terminal, and lists as CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data_sources.names import printable
from reporting.files import csv_text
from reporting.names import padded, shorten
from run_folder.reader import Run
from tools.explore.examine import (
    SPLIT_NAMES,
    Exploration,
    Place,
    Suspicion,
    copy_counts,
    pixel_table,
)

NAME_WIDTH = 32
SUSPICIONS = 10  # shown on the terminal
COPIES = ("equal", "of another class", "nearly equal", "of another class")
PLACE_COLUMNS = ("split", "index", "image", "class")
DUPLICATE_COLUMNS = (
    *(f"first_{name}" for name in PLACE_COLUMNS),
    *(f"second_{name}" for name in PLACE_COLUMNS),
    "similarity",
)
SUSPICION_COLUMNS = (
    *PLACE_COLUMNS, "suggested", "given_probability", "suggested_probability", "trained_on",
)  # fmt: skip


def text_table(exploration: Exploration, run: Run | None) -> str:
    """The figures for a terminal."""
    splits = exploration.splits
    lines = [f"warning: {warning}" for warning in splits.notes.warnings]
    lines += [f"{'class':{NAME_WIDTH}}  training  validation      test  brightness"]
    for name, counts, (mean, deviation) in zip(
        splits.class_names,
        exploration.counts.T.tolist(),
        exploration.brightness.tolist(),
        strict=True,
    ):
        numbers = f"{counts[0]:8}  {counts[1]:10}  {counts[2]:8}"
        brightness = f"{mean:5.1f} ± {deviation:.1f}" if mean == mean else "    -"
        lines.append(f"{_name(name)}  {numbers}  {brightness}")
    if any(exploration.unlabelled):
        counts = exploration.unlabelled
        lines.append(f"{_name('(unlabelled)')}  {counts[0]:8}  {counts[1]:10}  {counts[2]:8}")
    totals = [len(store) for store in (splits.train, splits.val, splits.test)]
    lines += [f"{_name('all')}  {totals[0]:8}  {totals[1]:10}  {totals[2]:8}", ""]
    lines.append("pixels              mean  deviation  lowest  highest   black   white")
    for row in pixel_table(exploration):
        name = f"{SPLIT_NAMES[row['split']]} {row['channel']}"
        lines.append(
            f"{name:16}  {row['mean']:6.1f}  {row['deviation']:9.1f}  {row['lowest']:6}  "
            f"{row['highest']:7}  {row['black']:6.1%}  {row['white']:6.1%}"
        )
    lines += ["", _name("images with a copy") + "".join(f"  {title}" for title in COPIES)]
    for where, numbers_of_images in copy_rows(exploration):
        columns = zip(COPIES, numbers_of_images, strict=True)
        lines.append(_name(where) + "".join(f"  {n:{len(title)}}" for title, n in columns))
    if exploration.suspicions is not None and run is not None:
        lines += ["", f"suspected labels, by checkpoint {run.uuid} of round {run.round}:"]
        lines += [
            f"{count:8}  {title}" for title, count in suspicion_counts(exploration.suspicions)
        ]
        lines += [
            f"    {_in_words(exploration, one)}" for one in exploration.suspicions[:SUSPICIONS]
        ]
    return "\n".join(lines)


def _name(name: str) -> str:
    return padded(shorten(name, NAME_WIDTH), NAME_WIDTH)


def copy_rows(exploration: Exploration) -> list[tuple[str, list[int]]]:
    """Which splits, and how many images of the later one have a copy in the earlier.

    The numbers are in the order of `COPIES`; those of another class are among those before them.
    """
    counts = []
    for twins in (exploration.exact, exploration.near):
        counts += [copy_counts(twins), copy_counts(one for one in twins if one.contradictory)]
    rows = []
    names = list(SPLIT_NAMES)
    for place, second in enumerate(names):
        for first in names[: place + 1]:
            where = f"{SPLIT_NAMES[second]}, copy in {SPLIT_NAMES[first]}"
            rows.append((where, [one[first, second] for one in counts]))
    return rows


def suspicion_counts(suspicions: Sequence[Suspicion]) -> list[tuple[str, int]]:
    """How many suspicions there are of each kind of image."""
    kinds = Counter(
        "training, labelled: the network has learned this label"
        if one.trained_on
        else f"{SPLIT_NAMES[one.place.split]}, not seen by the network"
        for one in suspicions
    )
    return kinds.most_common()


def _in_words(exploration: Exploration, one: Suspicion) -> str:
    return (
        f"{SPLIT_NAMES[one.place.split]} #{one.place.index} "
        f"({shorten(exploration.source(one.place), 60)}): labelled "
        f"{shorten(exploration.class_name(one.place.label))} ({one.given_probability:.0%}), looks "
        f"like {shorten(exploration.class_name(one.suggested))} ({one.suggested_probability:.0%})"
    )


def duplicates_csv(exploration: Exploration) -> str:
    """Every listed pair, equal ones first; similarity 1 is equal."""
    return csv_text(
        DUPLICATE_COLUMNS,
        (
            (
                *_place(exploration, one.first),
                *_place(exploration, one.second),
                f"{one.similarity:.6f}",
            )
            for one in (*exploration.exact, *exploration.near)
        ),
    )


def suspected_labels_csv(exploration: Exploration) -> str:
    """Every suspected label, the most doubtful first."""
    return csv_text(
        SUSPICION_COLUMNS,
        (
            (
                *_place(exploration, one.place),
                printable(exploration.class_name(one.suggested)),
                f"{one.given_probability:.6f}",
                f"{one.suggested_probability:.6f}",
                str(one.trained_on).lower(),
            )
            for one in exploration.suspicions or ()
        ),
    )


def _place(exploration: Exploration, place: Place) -> tuple[str, int, str, str]:
    name = printable(exploration.class_name(place.label))
    return place.split, place.index, exploration.source(place), name
