"""Opens a finished run folder: settings, data, network, and what was labelled.

`open_run(path)` is what evaluate, predict and export begin with. Whatever is wrong with a folder
is one `RunError` of one line.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from active_learning import LabeledPool
from data import DataError, Splits, channel_statistics
from reporting.run_folder import damaged_files
from resnet_custom import SplitNetwork
from training.hyperparameters import HyperparameterError, Hyperparameters
from training.inference import Inference
from training.loading import load_data
from training.precision import compute_dtype
from training.seeds import make_generator

CHECKPOINTS = ("best", "last")


class RunError(ValueError):
    """A request that cannot be served: one line naming the thing, the value and the remedy."""


@dataclass(frozen=True)
class Run:
    """One checkpoint of a run, with its data and everything that was written down beside it.

    `splits` lie on the CPU, the network in `inference` on the GPU where there is one. `pool` is
    the checkpoint's: what its weights were trained on. `metrics` and `queries` are the rows of
    metrics.csv and queries.csv, of all rounds of the run.
    """

    path: Path
    hp: Hyperparameters
    seed: int
    uuid: str
    round: int
    val_loss: float
    splits: Splits
    pool: LabeledPool
    inference: Inference
    metrics: list[dict[str, float]]
    queries: list[dict[str, str]]


def open_run(path: Path, checkpoint: str = "best", data_dir: Path | None = None) -> Run:
    """The run at `path`, with its `checkpoint` of the lowest validation loss, or the last one.

    Args:
        data_dir: where the run's data set lies, if not where its configuration says.

    Raises:
        RunError: no run, no whole checkpoint, or another data set than the run's.
        DataError: the data set cannot be had.
    """
    config, identity = _settings(path)
    try:
        hp = Hyperparameters.from_mapping(config["hyperparameters"])
    except (HyperparameterError, KeyError, TypeError) as error:
        raise RunError(f"{path}/config.yaml: {error}; give a run that this version wrote") from None
    entry = _checkpoint_entry(path, checkpoint)
    state = _load_checkpoint(path, entry)
    splits = load_data(hp, data_dir)
    if splits.fingerprint() != identity.get("data"):
        raise RunError(
            f"{data_dir or hp.data_dir}: its {hp.dataset} is not what {path} was trained on "
            f"(fingerprint {splits.fingerprint()[:12]}, not {str(identity.get('data'))[:12]}); "
            "give the folder of the original by --data-dir"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed = int(identity["seed"])
    pool = LabeledPool(len(splits.train))
    network = SplitNetwork(
        hp.architecture, splits.num_classes, splits.channels, make_generator(seed, "unused")
    )
    try:
        weights = state["models_state_dict"][0]
        # Data parallel training puts this before every name.
        consume_prefix_in_state_dict_if_present(weights, "module.")
        network.load_state_dict(weights)
        pool.load_state_dict(state["callbacks"]["active_learning"])
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}/checkpoints/{entry['uuid']}: does not fit the run's settings "
            f"({_line(error)}); give a run that this version wrote"
        ) from error
    mean, std = channel_statistics(splits.train.images)
    inference = Inference(
        network=network.to(device).to(memory_format=torch.channels_last).eval(),
        mean=mean.to(device),
        std=std.to(device),
        compute_dtype=compute_dtype(hp.precision, device),
        batch_size=hp.scoring_batch_size,
    )
    return Run(
        path=path,
        hp=hp,
        seed=seed,
        uuid=entry["uuid"],
        round=int(entry["round"]),
        val_loss=float(entry["val_loss"]),
        splits=splits,
        pool=pool,
        inference=inference,
        metrics=[_numbers(row) for row in _table(path / "metrics.csv")],
        queries=_table(path / "queries.csv"),
    )


def _settings(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of config.yaml and run.json."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        identity = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(
            f"{path}: not a run folder ({_line(error)}); name one that model_def.py has written"
        ) from error
    if not isinstance(config, dict) or not isinstance(identity, dict) or "seed" not in identity:
        raise RunError(f"{path}: config.yaml or run.json is damaged; name another run")
    return config, identity


def _checkpoint_entry(path: Path, which: str) -> dict[str, Any]:
    """The entry of checkpoints.json that `which`, best or last, means."""
    try:
        entries = json.loads((path / "checkpoints.json").read_text(encoding="utf-8"))
        if which == "best":
            entry = min(entries, key=lambda one: one["val_loss"])
        else:
            entry = max(entries, key=lambda one: one["round"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"{path}: no checkpoint ({_line(error)}); let the run finish its first round"
        ) from error
    return dict(entry)


def _load_checkpoint(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's content on the CPU, read without running code that may be in it."""
    folder = path / "checkpoints" / str(entry["uuid"])
    other = "give the other one by --checkpoint best or last"
    digests = entry.get("blake2b")
    damage = damaged_files(folder, digests) if isinstance(digests, dict) else []
    if damage:
        raise RunError(f"{folder}: missing or damaged ({', '.join(damage)}); {other}")
    try:
        state = torch.load(folder / "state_dict.pth", map_location="cpu", weights_only=True)
    # zipfile, pickle and torch raise a dozen types on a bad file, which mean the same here.
    except Exception as error:
        raise RunError(f"{folder}/state_dict.pth: unreadable ({_line(error)}); {other}") from error
    if not isinstance(state, dict):
        raise RunError(f"{folder}/state_dict.pth: holds no checkpoint; {other}")
    return state


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path}: cannot be read ({_line(error)}); name a whole run") from error


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(text) for name, text in row.items() if text}


def _line(error: Exception) -> str:
    """`error` as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


# --- the command line that the tools share ---------------------------------------------------


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, --checkpoint and --data-dir."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that model_def.py wrote")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default="best")
    parser.add_argument("--data-dir", type=Path, help="in place of the run's data_dir")


def one_line_errors(tool: Callable[[], None]) -> int:
    """Run `tool`; the exit status. A request that cannot be served is one line and status 2."""
    try:
        tool()
    except (RunError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
