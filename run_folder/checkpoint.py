"""One checkpoint: a folder that explains itself, the same on a laptop and on a cluster.

It is written into an empty folder, and read without pickle. `names.py` lists its files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from active_learning import ActiveLearner
from errors import UserError
from run_folder.description import DAMAGE, RunDescription, one_line, read_description
from run_folder.names import DESCRIPTION, METRICS, OPTIMIZER, QUERIES, STATE, WEIGHTS
from run_folder.tables import MetricsTable

SAFETENSORS_METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Progress:
    """Where a run stood when a checkpoint was written.

    round: the last round that was evaluated; -1 before the first.
    labeled_samples: labels in the pool.
    temperature: fitted on validation in that round; 1 before the first.
    goal_value: the value of the run's goal metric in that round.
    val_loss: in that round, nats.
    """

    round: int
    labeled_samples: int
    temperature: float
    goal_value: float | None
    val_loss: float | None


def progress_of(learner: ActiveLearner, metrics: MetricsTable, goal_metric: str) -> Progress:
    """Where `learner` stands, by the rows of `metrics` that belong to evaluated rounds."""
    round_ = len(learner.results) - 1
    row = metrics.rows.get(round_, {})
    return Progress(
        round=round_,
        labeled_samples=len(learner.pool.labelled),
        temperature=float(row.get("temperature", 1.0)),
        goal_value=row.get(goal_metric),
        val_loss=row.get("val_loss"),
    )


def write_checkpoint(
    folder: Path,
    description: RunDescription,
    learner: ActiveLearner,
    metrics: MetricsTable,
    queries: str,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write everything that the run needs to continue, and that others need to use its network.

    The optimizer's state is left out at the end of a round after which the weights start anew,
    since the next step would clear it.

    Args:
        folder: exists.
        queries: the text of queries.csv.
        origin: names the experiment and trial on a cluster.
    """
    tensors, values = learner.state()
    _save(folder / WEIGHTS, learner.network.state_dict())
    _save(folder / STATE, tensors)
    starts_anew = learner.hp.between_rounds != "keep"
    if not (starts_anew and learner.step % learner.hp.batches_per_round == 0):
        _save(folder / OPTIMIZER, _optimizer_tensors(learner.optimizer))
    (folder / METRICS).write_text(metrics.to_csv(), encoding="utf-8")
    (folder / QUERIES).write_text(queries, encoding="utf-8")
    progress = progress_of(learner, metrics, description.goal.metric)
    content = {"progress": vars(progress), "learner": values, "origin": dict(origin or {})}
    (folder / DESCRIPTION).write_text(description.to_json(content), encoding="utf-8")


def restore_checkpoint(folder: Path, learner: ActiveLearner) -> MetricsTable:
    """Put `learner` where it was when the checkpoint in `folder` was written.

    Returns:
        The metrics so far.

    Raises:
        UserError: the checkpoint is damaged, or belongs to another network or pool.
    """
    _, content = read_description(folder)
    try:
        learner.network.load_state_dict(read_tensors(folder / WEIGHTS))
        learner.load_state(read_tensors(folder / STATE), content["learner"])
        if (folder / OPTIMIZER).exists():
            _load_optimizer(learner.optimizer, read_tensors(folder / OPTIMIZER))
        return MetricsTable.read(folder)
    except (RuntimeError, *DAMAGE) as error:
        raise UserError(
            f"{folder}: does not fit this run ({one_line(error)}); resume with the settings and "
            "data that the checkpoint was written with"
        ) from error


def read_progress(content: Mapping[str, Any]) -> Progress:
    """The progress in the content of a checkpoint's run.json; KeyError where there is none."""
    return Progress(**content["progress"])


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)}); use another one") from error


def _save(file: Path, tensors: Mapping[str, Tensor]) -> None:
    # Not by save_file, which makes files that only their owner can read.
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    file.write_bytes(save(whole, metadata=SAFETENSORS_METADATA))


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors, each named by its parameter's position and its own name."""
    return {
        f"{position}.{name}": value
        for position, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `_optimizer_tensors` returned; param groups follow from the settings."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        position, _, name = key.partition(".")
        parameter = parameters[int(position)]
        if value.shape == parameter.shape:
            # In the parameter's memory layout, as the optimizer made it.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(position), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
