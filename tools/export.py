"""Writes a run's network for use elsewhere, with everything that the prediction service needs.

    python -m tools.export RUN --output DIR [--round N | --checkpoint best|last]
                           [--images image.png folder/ file.npz ...]
    python -m tools.export RUN --output DIR --verify [--round N ...] [--images ...]

RUN is a run folder or a checkpoint's. Of a run's rounds the last two and the best are kept, and the
best is exported unless --round or --checkpoint says otherwise. DIR then holds:

    config.json              classes, input, temperature, outlier threshold, training, version
    model.safetensors        weights, by the names of resnet_custom.SplitNetwork
    model.onnx               images uint8 [N, C, S, S] -> logits, probabilities, embeddings
    references.safetensors   embeddings of the labelled images, for the outlier flag
    README.md                the model card
    Dockerfile, service/     what it takes to serve the folder from a container

Everything written is read back and compared with the run's own network before DIR is there, on
validation images. Without the data set the comparison is on --images, or on random pixels. Then
DIR has no outlier flag, the temperature is the checkpoint's, and the card has the run's figures.
--verify writes nothing: it compares the ONNX file in DIR with the run's network in PyTorch on all
validation images, or on --images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import exit_status
from tools.run_arguments import add_run_arguments


def export(arguments: argparse.Namespace) -> None:
    """Write and check the folder that the command line asks for."""
    from tools.exporting import (
        Source,
        check_free,
        content_with_data,
        content_without_data,
        write_folder,
    )

    check_free(arguments.output)
    source = Source(arguments.run, arguments.checkpoint, arguments.data_dir)
    if arguments.images:
        content = content_without_data(source, arguments.images)
    else:
        content = content_with_data(source, evaluated=True)
    agreement = write_folder(content, arguments.output)
    print(f"written: {arguments.output}; {agreement} ({content.images_are})")
    if content.calibration is None:
        print("without the data set: no outlier flag", file=sys.stderr)


def verify(arguments: argparse.Namespace) -> None:
    """Compare the exported folder with the run."""
    from tools.exporting import Source, compare_folder

    source = Source(arguments.run, arguments.checkpoint, arguments.data_dir)
    agreement, kind = compare_folder(source, arguments.images, arguments.output)
    print(f"verified: {arguments.output}; {agreement} ({kind})")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_run_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--images", type=Path, nargs="+", help="real images to check on, without the data set"
    )
    parser.add_argument(
        "--verify", action="store_true", help="write nothing; compare what is in DIR with RUN"
    )
    arguments = parser.parse_args(argv)
    return exit_status(lambda: (verify if arguments.verify else export)(arguments))


if __name__ == "__main__":
    sys.exit(main())
