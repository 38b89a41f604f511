"""Takes files through the predictor to a writer, a batch at a time."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from errors import UserError
from tools.image_inputs import read_batches
from tools.prediction.predictor import Predictor
from tools.prediction.writers import Writer

SIZES_SHOWN = 5
SIZES_COUNTED = 1000  # different sizes of images that are told apart


def predict_files(
    predictor: Predictor, files: Sequence[Path], writer: Writer, max_pixels: int
) -> int:
    """Write a prediction for each image of `files`; how many files could not be read.

    Those, and image files of more than `max_pixels`, are listed on the standard error stream, which
    also says at the end what was resized.
    """
    model = predictor.model
    sizes: Counter[str] = Counter()
    unreadable = 0

    def report(error: UserError) -> None:
        nonlocal unreadable
        unreadable += 1
        tqdm.write(f"left out: {error}", file=sys.stderr)

    with tqdm(desc="predicting", unit=" images", leave=False, disable=None, delay=2) as bar:
        for batch in read_batches(
            files,
            model.hp.image_size,
            model.channels,
            model.hp.scoring_batch_size,
            max_pixels=max_pixels,
            on_damage=report,
        ):
            writer.write(predictor.predict(batch))
            for size in batch.sizes:
                known = size in sizes or len(sizes) < SIZES_COUNTED
                sizes[size if known else "others"] += 1
            bar.update(len(batch.names))
    print(_resize_note(sizes, model.hp.image_size), file=sys.stderr)
    if unreadable:
        print(f"{unreadable} files could not be read and are left out", file=sys.stderr)
    return unreadable


def _resize_note(sizes: Counter[str], size: int) -> str:
    """What was resized, in one line."""
    total = sizes.total()
    others = {one: count for one, count in sizes.most_common() if one != f"{size}x{size}"}
    if not others:
        return f"{total} images of {size}x{size} pixels, none resized"
    shown = [f"{one} ({count})" for one, count in list(others.items())[:SIZES_SHOWN]]
    more = f" and {len(others) - SIZES_SHOWN} other sizes" if len(others) > SIZES_SHOWN else ""
    return (
        f"{sum(others.values())} of {total} images resized to {size}x{size} pixels: "
        f"{', '.join(shown)}{more}"
    )
