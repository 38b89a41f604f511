"""Examines a data set: table, exploration.html, exploration.json, and lists as CSV.

    python -m tools.explore --config configs/bloodmnist.yaml [--data-dir DIR] [--output-dir DIR]
    python -m tools.explore --run RUN [--round N] [--data-dir DIR] [--output-dir DIR]

Classes, samples, pixel statistics, exact and near duplicates within and across splits; with --run,
on that run's data set, also the labels that its network confidently disagrees with. If --config
and --run are both given, they must name the same data. The files go into RUN/exploration, or
runs/exploration_DATASET, unless --output-dir says otherwise; nothing is written beside the data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from errors import UserError, exit_status
from tools.run_arguments import add_checkpoint_arguments

if TYPE_CHECKING:
    from run_folder.reader import Run
    from training.hyperparameters import Hyperparameters

# Settings that say which data set is meant and how it is read.
DATA_SETTINGS = (
    *("dataset", "image_size", "split_seed", "validation_fraction", "test_fraction"),
    "group_by",
)


def explore(arguments: argparse.Namespace) -> None:
    """Examine the data set and write the report."""
    import json

    from run_folder.reader import make_output_folder, open_run
    from tools.explore.examine import explore_data, report
    from tools.explore.report import html_report
    from tools.explore.tables import duplicates_csv, suspected_labels_csv, text_table
    from tools.output_folder import write_output
    from training.loading import load_data

    run: Run | None = None
    hp = None if arguments.config is None else _hyperparameters(arguments.config)
    if arguments.run is not None:
        run = open_run(arguments.run, arguments.checkpoint, arguments.data_dir)
        if hp is not None:
            _check_same_data(arguments.config, hp, run)
        splits = run.splits
        default = arguments.run / "exploration"
    elif hp is not None:
        splits = load_data(hp, arguments.data_dir, read_only=True)
        default = Path("runs") / f"exploration_{splits.name}"
    else:
        raise UserError("nothing to explore; name a configuration by --config, or a run by --run")
    folder: Path = arguments.output_dir or default
    make_output_folder(folder)
    exploration = explore_data(splits, run)
    print(text_table(exploration, run))
    numbers = json.dumps(report(exploration, run), indent=2, allow_nan=False)
    files = {
        "exploration.html": html_report(exploration, run),
        "exploration.json": numbers + "\n",
        "duplicates.csv": duplicates_csv(exploration),
    }
    if run is not None:
        files["suspected_labels.csv"] = suspected_labels_csv(exploration)
    write_output(folder, files)
    print(f"\nwritten to {folder}: {', '.join(files)}")


def _hyperparameters(config: Path) -> Hyperparameters:
    """Those of a configuration; of a search, one sample, as all samples use the same data."""
    from training.experiment_config import load, sample
    from training.hyperparameters import Hyperparameters

    values, _ = sample(load(config)["hyperparameters"], 0)
    return Hyperparameters.from_mapping(values)


def _check_same_data(config: Path, hp: Hyperparameters, run: Run) -> None:
    for name in DATA_SETTINGS:
        of_config, of_run = getattr(hp, name), getattr(run.hp, name)
        if of_config != of_run:
            raise UserError(
                f"--config {config}: hyperparameters.{name} is {of_config!r}, and {of_run!r} in "
                f"{run.path}; leave --config out, or give the run's own"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.explore", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="explore its data set")
    parser.add_argument("--run", type=Path, metavar="RUN", help="explore a run's data and labels")
    add_checkpoint_arguments(parser)
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="where the report goes")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: explore(arguments))


if __name__ == "__main__":
    sys.exit(main())
