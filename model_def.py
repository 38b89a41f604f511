"""Active learning for image classification: the entry point, on a cluster and on a laptop.

On a cluster:   det experiment create config.yaml .
On a laptop:    python model_def.py --config configs/quick.yaml
Several CPUs or GPUs of one machine:
                torchrun --nproc-per-node 2 model_def.py --config configs/quick.yaml
Resume:         python model_def.py --resume runs/NAME

The trial that Determined's Trainer calls is in cluster/trial.py. A laptop needs no Determined.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import exit_status


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, as the README describes it."""
    parser = argparse.ArgumentParser(description="Active learning for image classification.")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--config", type=Path, default=Path("configs/quick.yaml"), metavar="YAML")
    start.add_argument("--resume", type=Path, metavar="RUN", help="continue this run folder")
    parser.add_argument("--data-dir", type=Path, help="in place of hyperparameters.data_dir")
    parser.add_argument("--output-dir", type=Path, help="run folder to make; default runs/...")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--wait", action="store_true", help="with oracle: people, stay until a round is labelled"
    )
    parser.add_argument("--traceback", action="store_true", help="show tracebacks of errors")
    parsed = parser.parse_args(arguments)
    if parsed.resume and (parsed.set or parsed.output_dir):
        parser.error("--resume continues with the run's own settings; leave the others out")
    return parsed


def is_cluster_trial() -> bool:
    """Whether this process is a trial's on a cluster, and not a notebook's or shell's there."""
    return os.environ.get("DET_TASK_TYPE") == "TRIAL"


def main(argv: Sequence[str] | None = None) -> int:
    """Run on the cluster that the environment names, or on this machine; the exit status."""
    arguments = parse_arguments(argv)
    # Imports take seconds; a wrong command line is refused before them.
    if is_cluster_trial():
        from cluster.entry import run_on_cluster

        return exit_status(run_on_cluster, arguments.traceback)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    from local.run import Request, run_locally

    request = Request(
        config=arguments.config,
        resume=arguments.resume,
        data_dir=arguments.data_dir,
        output_dir=arguments.output_dir,
        settings=tuple(arguments.set),
        wait=arguments.wait,
    )
    return exit_status(lambda: run_locally(request), arguments.traceback)


if __name__ == "__main__":
    sys.exit(main())
