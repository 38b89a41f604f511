"""The main job, wherever there is Python: what `make run` runs.

    python -m tools.main_job [--config YAML] [--data-dir DIR] [--output-dir RUN]

Without --config it is configs/quick.yaml, on PathMNIST; where PathMNIST is neither there nor to be
downloaded it is configs/digits.yaml, on images that come with scikit-learn.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from errors import DownloadError

ROOT = Path(__file__).resolve().parent.parent
PATHMNIST, DIGITS = Path("configs/quick.yaml"), Path("configs/digits.yaml")


def missing_data(config: Path, data_dir: Path) -> str | None:
    """Why the data of `config` cannot be had, after an attempt at downloading them; None: here.

    Raises:
        UserError: they are there and unusable, which the user has to know.
    """
    from training.experiment_config import load
    from training.hyperparameters import Hyperparameters
    from training.loading import load_data

    hp = Hyperparameters.from_mapping(load(config)["hyperparameters"])
    try:
        load_data(hp, data_dir)
    except DownloadError as error:
        return str(error)
    return None


def main() -> None:
    """Choose the configuration and become `python model_def.py`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--output-dir", type=Path)
    arguments = parser.parse_args()
    config = arguments.config
    if config is None:
        config = PATHMNIST
        try:
            reason = missing_data(ROOT / config, arguments.data_dir)
        except ValueError as error:
            sys.exit(f"error: {error}")
        if reason is not None:
            config = DIGITS
            line = "*" * 78
            print(f"{line}\nNO PATHMNIST: {reason}", file=sys.stderr)
            print(f"RUNNING ON THE BUNDLED DIGITS INSTEAD ({config})\n{line}", file=sys.stderr)
    command = [sys.executable, str(ROOT / "model_def.py"), "--config", str(config)]
    command += ["--data-dir", str(arguments.data_dir)]
    if arguments.output_dir is not None:
        command += ["--output-dir", str(arguments.output_dir)]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
