"""Draws the README's figures: of data and method, or of what a run found.

    python -m tools.figures --data-dir data
    python -m tools.figures --run runs/NAME

The first writes images/pathmnist_samples.png (three training images of each class),
images/tensor.png (one image and the numbers it is made of) and images/round.png (the order of a
round's steps). The second writes, of the run's best checkpoint, images/DATASET_learning_curve.png,
DATASET_map.png (the pool) and DATASET_mistakes.png (on test images, with Grad-CAM).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import exit_status

IMAGES = Path(__file__).resolve().parent.parent / "images"


def draw_run(arguments: argparse.Namespace) -> None:
    """Write the figures of the run."""
    from reporting.files import write_atomically
    from run_folder.reader import open_run
    from tools.readme_figures import run_figures

    run = open_run(arguments.run, data_dir=arguments.data_dir)
    for name, picture in run_figures(run).items():
        write_atomically(IMAGES / f"{run.dataset}_{name}.png", picture)


def draw_method(data_dir: Path) -> None:
    """Write the figures of data and method."""
    from data import load_splits
    from reporting.files import write_atomically
    from tools.readme_figures import round_figure, sample_sheet, tensor_figure

    splits = load_splits(
        "pathmnist",
        data_dir,
        image_size=28,
        split_seed=0,
        validation_fraction=0.15,
        test_fraction=0.15,
    )
    write_atomically(IMAGES / "pathmnist_samples.png", sample_sheet(splits.train))
    write_atomically(IMAGES / "tensor.png", tensor_figure(splits.train))
    write_atomically(IMAGES / "round.png", round_figure())


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and draw; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.figures", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--run", type=Path, metavar="RUN", help="draw what this run found")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where PathMNIST, or the run's data, lie"
    )
    arguments = parser.parse_args(argv)
    if arguments.run is not None:
        return exit_status(lambda: draw_run(arguments))
    if arguments.data_dir is None:
        parser.error("give --data-dir, or --run")
    return exit_status(lambda: draw_method(arguments.data_dir))


if __name__ == "__main__":
    sys.exit(main())
