"""Opens a run folder, or a checkpoint wherever it was written, for the tools.

`open_run(path)` and, where the data set is not needed, `open_model(path)` are what tools begin
with. `path` is a run folder, a checkpoint's folder in one, or a checkpoint that was downloaded from
a cluster.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data import Splits
from errors import UserError
from labelling.batch import BATCH_FILE, validation_folder
from labelling.validation import answered_labels
from resnet_custom import SplitNetwork
from run_folder import names
from run_folder.checkpoint import Progress, read_progress, read_tensors
from run_folder.description import DAMAGE, RunDescription, one_line, read_description
from run_folder.tables import MetricsTable, read_csv
from run_folder.writer import damaged_files, is_identifier
from training.hyperparameters import Hyperparameters
from training.inference import Inference
from training.loading import evaluated_part, load_data
from training.pool import Pool
from training.precision import compute_dtype
from training.seeds import make_generator

# Characters of an id that name it; a shorter word is a round, with whose digits an id may begin.
SHORTEST_ID = 4


@dataclass(frozen=True)
class Model:
    """One checkpoint and everything that stands beside it, but for the run's data.

    The network in `inference` is on the GPU where there is one. `pool` is the checkpoint's: what
    its weights were trained on. `metrics` and `queries` are the rows of metrics.csv and
    queries.csv, of all rounds up to the checkpoint. `temperature` was fitted on validation.
    """

    path: Path
    description: RunDescription
    hp: Hyperparameters
    uuid: str
    round: int
    val_loss: float
    temperature: float
    pool: Pool
    inference: Inference
    metrics: list[dict[str, float]]
    queries: list[dict[str, str]]

    @property
    def seed(self) -> int:
        """The trial's seed."""
        return self.description.seed

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return self.description.dataset

    @property
    def fingerprint(self) -> str:
        """A digest of the data set's content."""
        return self.description.fingerprint

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the network's outputs."""
        return self.description.class_names

    @property
    def channels(self) -> int:
        """Of an image: 1 or 3."""
        return self.description.channels


@dataclass(frozen=True)
class Run(Model):
    """The same with its data set, which lies on the CPU."""

    splits: Splits


def open_model(path: Path, checkpoint: str = "best") -> Model:
    """The network of the run or checkpoint at `path`.

    Args:
        checkpoint: which one of a run folder: best, last, a round, or an id's beginning.

    Raises:
        UserError: there is no run or checkpoint, or a damaged one.
    """
    folder = _checkpoint_folder(path, checkpoint)
    description, content = read_description(folder)
    hp = _hyperparameters(folder, description)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = SplitNetwork(
        hp.architecture,
        len(description.class_names),
        description.channels,
        make_generator(description.seed, "unused"),
        average_rotations=hp.averages_rotations,
    )
    try:
        network.load_state_dict(read_tensors(folder / names.WEIGHTS))
        tensors = read_tensors(folder / names.STATE)
        pool = Pool(len(tensors["pool.state"]))
        of_pool = {n.removeprefix("pool."): t for n, t in tensors.items() if n.startswith("pool.")}
        pool.load(of_pool, content["learner"]["pool"])
        progress: Progress = read_progress(content)
        metrics = list(MetricsTable.read(folder).rows.values())
        queries = read_csv(folder / names.QUERIES)
    except (RuntimeError, csv.Error, *DAMAGE) as error:
        raise UserError(
            f"{folder}: damaged ({one_line(error)}); give another checkpoint by --checkpoint"
        ) from error
    inference = Inference(
        network=network.to(device).to(memory_format=torch.channels_last).eval(),
        mean=torch.tensor(description.mean).to(device),
        std=torch.tensor(description.std).to(device),
        compute_dtype=compute_dtype(hp.precision, device),
        batch_size=hp.scoring_batch_size,
        tf32=hp.tf32,
    )
    return Model(
        path=path,
        description=description,
        hp=hp,
        uuid=folder.name,
        round=progress.round,
        val_loss=float("nan") if progress.val_loss is None else progress.val_loss,
        temperature=progress.temperature,
        pool=pool,
        inference=inference,
        metrics=metrics,
        queries=queries,
    )


def open_run(path: Path, checkpoint: str = "best", data_dir: Path | None = None) -> Run:
    """The same as `open_model`, with the data set that the run was trained on.

    Args:
        data_dir: where the data set lies, if not where the run's settings say.

    Raises:
        UserError: as `open_model`; or the data are missing or differ from the run's.
    """
    folder = _checkpoint_folder(path, checkpoint)  # a wrong name is reported before data are read
    description, _ = read_description(folder)
    splits = _load_splits(path, description, _hyperparameters(folder, description), data_dir)
    model = open_model(path, checkpoint)
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return Run(**fields, splits=splits)


def is_checkpoint(path: Path) -> bool:
    """Whether the folder at `path` is a checkpoint, and not a run folder that holds some."""
    return (path / names.WEIGHTS).exists()


def _hyperparameters(folder: Path, description: RunDescription) -> Hyperparameters:
    try:
        return Hyperparameters.from_mapping(description.settings)
    except UserError as error:
        raise UserError(
            f"{folder}/{names.DESCRIPTION}: {error}; give a run that this version wrote"
        ) from None


def _load_splits(
    path: Path, description: RunDescription, hp: Hyperparameters, data_dir: Path | None
) -> Splits:
    splits = load_data(hp, data_dir, read_only=True)
    fingerprint = splits.fingerprint()
    if fingerprint != description.fingerprint:
        raise UserError(
            f"{data_dir or hp.data_dir}: its {hp.dataset} is not what {path} was trained on "
            f"(fingerprint {fingerprint[:12]}, not {description.fingerprint[:12]}); give the "
            "folder of the original by --data-dir"
        )
    if hp.oracle != "people" or not (validation_folder(path) / BATCH_FILE).exists():
        return splits
    val = evaluated_part(splits.val, hp.evaluation_size)  # what people were asked about
    labels = answered_labels(path, val.labels)
    return dataclasses.replace(splits, val=dataclasses.replace(val, labels=labels))


def _checkpoint_folder(path: Path, which: str) -> Path:
    """The folder of the checkpoint that `which` means; `path` itself where it is a checkpoint."""
    if is_checkpoint(path):
        _check_is_meant(path, which)
        return path
    description, _ = read_description(path)
    entry = _checkpoint_entry(path, description, which)
    folder = path / names.CHECKPOINTS / str(entry["uuid"])
    damaged = damaged_files(folder, dict(entry["blake2b"]))
    if damaged:
        raise UserError(
            f"{folder}: missing or damaged ({', '.join(damaged)}); give another one by --checkpoint"
        )
    return folder


def _check_is_meant(checkpoint: Path, which: str) -> None:
    """Refuse a word that means another checkpoint than the one at hand."""
    _, content = read_description(checkpoint)
    try:
        round_ = read_progress(content).round
    except DAMAGE as error:
        raise UserError(
            f"{checkpoint}: damaged ({one_line(error)}); name another checkpoint"
        ) from error
    is_id = len(which) >= SHORTEST_ID and checkpoint.resolve().name.startswith(which)
    if which not in ("best", "last", str(round_)) and not is_id:
        raise UserError(
            f"{checkpoint}: is the checkpoint of round {round_}, not one {_wanted(which)}; name "
            "that one, or its run's folder"
        )


def _wanted(which: str) -> str:
    """Which checkpoint the command line asks for, as a message says it."""
    return f"of round {which}" if len(which) < SHORTEST_ID else f"called {which}"


def _checkpoint_entry(path: Path, description: RunDescription, which: str) -> Mapping[str, Any]:
    """The entry of checkpoints.json that `which` means: best, last, a round or an id's beginning.

    Best is by the metric that the run was asked to optimise. An id's beginning has `SHORTEST_ID`
    characters.
    """
    try:
        entries = json.loads((path / names.CHECKPOINT_LIST).read_text(encoding="utf-8"))
        named = {"best": description.goal.best(entries), "last": entries[-1]}
        matching = [one for one in entries if which == str(one["round"])]
        if not matching and len(which) >= SHORTEST_ID:
            matching = [one for one in entries if one["uuid"].startswith(which)]
        known = ", ".join(f"round {one['round']} ({one['uuid'][:8]})" for one in entries)
    except DAMAGE as error:
        raise UserError(
            f"{path}: no checkpoint ({one_line(error)}); let the run finish its first round"
        ) from error
    if which in named:
        return _checked(path, named[which])
    if len(matching) != 1:
        raise UserError(
            f"{path}: {len(matching)} checkpoints {_wanted(which)}; those kept are of {known}; "
            "give one of these, best or last"
        )
    return _checked(path, matching[0])


def _checked(path: Path, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """`entry`, whose id is used as a folder's name."""
    if not is_identifier(str(entry["uuid"])):
        raise UserError(
            f"{path}/{names.CHECKPOINT_LIST}: {entry['uuid']!r} is not a checkpoint's id; put the "
            "file back as the run wrote it"
        )
    return entry


def make_output_folder(folder: Path) -> None:
    """Make the folder that `--output-dir` names, unless it is there; UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output-dir {folder}: cannot be made ({error.strerror}); name another folder"
        ) from error
