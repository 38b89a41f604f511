"""Opens a finished run folder: settings, data, network, and what was labelled.

`open_run(path)` and, where no data set is needed, `open_model(path)` are what the other tools begin
with. Whatever is wrong with a folder is one `UserError` of one line.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from active_learning import LabeledPool
from data import Splits, channel_statistics
from errors import UserError
from resnet_custom import SplitNetwork
from run_folder.writer import damaged_files
from training.hyperparameters import Hyperparameters
from training.inference import Inference
from training.loading import load_data
from training.precision import compute_dtype
from training.seeds import make_generator

CHECKPOINTS = ("best", "last")
# Characters of an id that name it; a shorter word is a round, with whose digits an id may begin.
SHORTEST_ID = 4


def make_output_folder(folder: Path) -> None:
    """Make the folder that `--output-dir` names, unless it is there; UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output-dir {folder}: cannot be made ({error.strerror}); name another folder"
        ) from error


@dataclass(frozen=True)
class Model:
    """One checkpoint of a run and everything that was written down beside it, but for its data.

    The network in `inference` is on the GPU where there is one. `pool` is the checkpoint's: what
    its weights were trained on. `metrics` and `queries` are the rows of metrics.csv and
    queries.csv, of all rounds of the run.
    """

    path: Path
    hp: Hyperparameters
    seed: int
    dataset: str
    fingerprint: str
    uuid: str
    round: int
    val_loss: float
    class_names: tuple[str, ...]
    channels: int
    pool: LabeledPool
    inference: Inference
    metrics: list[dict[str, float]]
    queries: list[dict[str, str]]


@dataclass(frozen=True)
class Run(Model):
    """The same with its data set, which lies on the CPU."""

    splits: Splits


def open_model(path: Path, checkpoint: str = "best", data_dir: Path | None = None) -> Model:
    """The run at `path`, with its `checkpoint`: best, last, a round, or an id's beginning.

    The data set is not needed, unless the folder was written by a version that kept no classes and
    image statistics in run.json.

    Args:
        data_dir: where that data set lies, if not where the run's configuration says.

    Raises:
        UserError: no run, no whole checkpoint, or another data set than the run's.
        UserError: the data set is needed and cannot be had.
    """
    config, identity = _settings(path)
    hp = _hyperparameters(path, config)
    try:
        facts = _NetworkFacts.from_mapping(identity["network"])
    except KeyError:
        facts = _NetworkFacts.from_splits(_load_splits(path, hp, identity, data_dir))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}/run.json: damaged ({_line(error)}); name another run") from error
    return _model(path, hp, identity, facts, checkpoint)


def open_run(path: Path, checkpoint: str = "best", data_dir: Path | None = None) -> Run:
    """The same as `open_model`, with the data set that the run was trained on."""
    config, identity = _settings(path)
    hp = _hyperparameters(path, config)
    _checkpoint_entry(path, checkpoint)  # a wrong name is said before data are read
    splits = _load_splits(path, hp, identity, data_dir)
    model = _model(path, hp, identity, _NetworkFacts.from_splits(splits), checkpoint)
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return Run(**fields, splits=splits)


@dataclass(frozen=True)
class _NetworkFacts:
    """What the network is fed and what its outputs mean; mean and std float32 [channels]."""

    class_names: tuple[str, ...]
    channels: int
    mean: Tensor
    std: Tensor

    @classmethod
    def from_splits(cls, splits: Splits) -> _NetworkFacts:
        statistics = channel_statistics(splits.train.images)
        return cls(splits.class_names, splits.channels, *statistics)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> _NetworkFacts:
        """Those in run.json; ValueError or TypeError if something is missing or of another kind."""
        wanted = ("class_names", "channels", "mean", "std")
        missing = [name for name in wanted if name not in values]
        if missing:
            raise ValueError(f"network.{missing[0]} is missing")
        names, channels = tuple(map(str, values["class_names"])), int(values["channels"])
        mean, std = (torch.tensor(values[name], dtype=torch.float32) for name in ("mean", "std"))
        if not mean.shape == std.shape == (channels,):
            raise ValueError(f"network.mean and std are not {channels} numbers each")
        return cls(names, channels, mean, std)


def _hyperparameters(path: Path, config: Mapping[str, Any]) -> Hyperparameters:
    try:
        return Hyperparameters.from_mapping(config["hyperparameters"])
    except (UserError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}/config.yaml: {error}; give a run that this version wrote"
        ) from None


def _load_splits(
    path: Path, hp: Hyperparameters, identity: Mapping[str, Any], data_dir: Path | None
) -> Splits:
    splits = load_data(hp, data_dir, read_only=True)
    if splits.fingerprint() != identity.get("data"):
        raise UserError(
            f"{data_dir or hp.data_dir}: its {hp.dataset} is not what {path} was trained on "
            f"(fingerprint {splits.fingerprint()[:12]}, not {str(identity.get('data'))[:12]}); "
            "give the folder of the original by --data-dir"
        )
    return splits


def _model(
    path: Path,
    hp: Hyperparameters,
    identity: Mapping[str, Any],
    facts: _NetworkFacts,
    checkpoint: str,
) -> Model:
    entry = _checkpoint_entry(path, checkpoint)
    state = _load_checkpoint(path, entry)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed = int(identity["seed"])
    network = SplitNetwork(
        hp.architecture, len(facts.class_names), facts.channels, make_generator(seed, "unused")
    )
    try:
        weights = state["models_state_dict"][0]
        # Data parallel training puts this before every name.
        consume_prefix_in_state_dict_if_present(weights, "module.")
        network.load_state_dict(weights)
        learner = state["callbacks"]["active_learning"]
        pool = LabeledPool(len(learner["labels"]))
        pool.load_state_dict(learner)
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}/checkpoints/{entry['uuid']}: does not fit the run's settings "
            f"({_line(error)}); give a run that this version wrote"
        ) from error
    inference = Inference(
        network=network.to(device).to(memory_format=torch.channels_last).eval(),
        mean=facts.mean.to(device),
        std=facts.std.to(device),
        compute_dtype=compute_dtype(hp.precision, device),
        batch_size=hp.scoring_batch_size,
    )
    return Model(
        path=path,
        hp=hp,
        seed=seed,
        dataset=str(identity.get("dataset")),
        fingerprint=str(identity.get("data")),
        uuid=entry["uuid"],
        round=int(entry["round"]),
        val_loss=float(entry["val_loss"]),
        class_names=facts.class_names,
        channels=facts.channels,
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
        raise UserError(
            f"{path}: not a run folder ({_line(error)}); name one that model_def.py has written"
        ) from error
    if not isinstance(config, dict) or not isinstance(identity, dict) or "seed" not in identity:
        raise UserError(f"{path}: config.yaml or run.json is damaged; name another run")
    return config, identity


def _checkpoint_entry(path: Path, which: str) -> dict[str, Any]:
    """The entry of checkpoints.json that `which` means: best, last, a round or an id's beginning.

    Best is the one of the lowest validation loss. An id's beginning has `SHORTEST_ID` characters.
    """
    try:
        entries = json.loads((path / "checkpoints.json").read_text(encoding="utf-8"))
        best = min(entries, key=lambda one: one["val_loss"])
        last = max(entries, key=lambda one: one["round"])
        named = [one for one in entries if which == str(one["round"])]
        if not named and len(which) >= SHORTEST_ID:
            named = [one for one in entries if one["uuid"].startswith(which)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: no checkpoint ({_line(error)}); let the run finish its first round"
        ) from error
    if which in CHECKPOINTS:
        return dict(best if which == "best" else last)
    if len(named) != 1:
        there = ", ".join(f"{one['round']} ({one['uuid'][:8]})" for one in entries)
        raise UserError(
            f"--checkpoint {which}: {len(named)} checkpoints of {path} are called so; give best, "
            f"last, or a round or id that was kept: {there}"
        )
    return dict(named[0])


def _load_checkpoint(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's content on the CPU, read without running code that may be in it."""
    folder = path / "checkpoints" / str(entry["uuid"])
    other = "give another one by --checkpoint"
    digests = entry.get("blake2b")
    damage = damaged_files(folder, digests) if isinstance(digests, dict) else []
    if damage:
        raise UserError(f"{folder}: missing or damaged ({', '.join(damage)}); {other}")
    try:
        state = torch.load(folder / "state_dict.pth", map_location="cpu", weights_only=True)
    # zipfile, pickle and torch raise a dozen types on a bad file, which mean the same here.
    except Exception as error:
        raise UserError(f"{folder}/state_dict.pth: unreadable ({_line(error)}); {other}") from error
    if not isinstance(state, dict):
        raise UserError(f"{folder}/state_dict.pth: holds no checkpoint; {other}")
    return state


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({_line(error)}); name a whole run") from error


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
    add_checkpoint_arguments(parser)


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """--checkpoint and --data-dir."""
    parser.add_argument(
        "--checkpoint", default="best", help="best, last, a round, or 4 or more characters of an id"
    )
    parser.add_argument("--data-dir", type=Path, help="in place of the run's data_dir")
