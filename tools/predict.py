"""Classifies images with the network of a finished run.

    python -m tools.predict RUN image.png folder/ file.npz file.h5
                            [--output predictions.csv | --output predictions.jsonl]

RUN is a run folder, or a checkpoint that was downloaded. Images are files, folders of them, and
arrays in NPZ or HDF5, of any size: they are resized to the network's. A table on the terminal, a
CSV file or a file of JSON lines has one row per image:

    image            the file, or the file, the array and the position in it
    class            the likeliest class
    probability      its probability, temperature-scaled as fitted on the validation images
    uncertainty      predictive entropy in nats, by the run's choice of MC dropout, test-time
                     augmentation or softmax, as in its queries
    outlier          whether the image is unlike all that was labelled: true or false
    outlier_distance mean distance to the five nearest labelled images
    size             the image's own size, width x height
    probability_*    the probability of each class; not in the table

The outlier flag needs the run's data set once; a file in the run folder keeps what it needs. Files
that cannot be read are listed on the standard error stream and left out; the exit status is then 1.
Memory does not grow with the number of images, and nothing is written beside them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import FAILED, OK, exit_status
from tools.run_arguments import add_run_arguments


def predict(arguments: argparse.Namespace) -> int:
    """Classify the images; the exit status."""
    from run_folder.reader import open_model
    from tools.image_inputs import find_inputs
    from tools.prediction.predictor import Predictor
    from tools.prediction.stream import predict_files
    from tools.prediction.writers import open_writer

    files = find_inputs(arguments.inputs)
    model = open_model(arguments.run, arguments.checkpoint)
    predictor = Predictor.of_run(model, arguments.run, arguments.checkpoint, arguments.data_dir)
    with open_writer(arguments.output, model.class_names) as writer:
        unreadable = predict_files(
            predictor, files, writer, arguments.max_pixels or model.hp.max_pixels
        )
    return FAILED if unreadable else OK


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.predict", description=__doc__.splitlines()[0]
    )
    add_run_arguments(parser)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IMAGES")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="a .csv file, or a .jsonl file of JSON lines; default: a table on the terminal",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="read image files of up to N pixels; default: the run's max_pixels",
    )
    arguments = parser.parse_args(argv)
    return exit_status(lambda: predict(arguments))


if __name__ == "__main__":
    sys.exit(main())
