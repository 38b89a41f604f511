"""What a run's network does on one whole split, measured; what evaluate and export report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data import ImageStore
from data_sources.folder_groups import group_images
from data_sources.sources import FileSources
from errors import UserError
from reporting.intervals import LEVEL, Estimate, share
from reporting.measures import confusion_counts, estimates
from run_folder.reader import Run
from training.calibration import fit_temperature
from training.seeds import make_generator

RESAMPLES = 1000
METHODS = {
    "shares": "Wilson's interval for the effective number of images",
    "auc": "DeLong's variance, Wilson's interval",
    "brier, ece": f"bias-corrected bootstrap, {RESAMPLES} resamples",
}


@dataclass(frozen=True)
class Groups:
    """Which images belong together: `names` of the groups, and for each image a position there.

    members: int64 [N].
    """

    names: tuple[str, ...]
    members: Tensor


@dataclass(frozen=True)
class Evaluation:
    """All on the CPU. N images, C classes.

    probabilities, calibrated: float64 [N, C], before and after temperature scaling.
    confusion: int64 [C, C], rows are true classes.
    scores: measures of the split, by the names of `reporting.measures.estimates`.
    class_scores: those of `PER_CLASS`, one for each class.
    groups: where the run's split keeps groups of images together.
    """

    split: str
    store: ImageStore
    probabilities: Tensor
    calibrated: Tensor
    temperature: float
    confusion: Tensor
    scores: dict[str, Estimate]
    class_scores: dict[str, list[Estimate]]
    groups: Groups | None


def evaluate_split(run: Run, split: str, group_by: str = "") -> Evaluation:
    """Measure `run` on all labelled images of its split `val` or `test`.

    The temperature is always fitted on the validation split; nothing is fitted on the test split.

    Args:
        group_by: says which images belong together; see `data_sources/folder_groups.py`. Empty:
            each image stands for itself.
    """
    val, val_logits = labelled_part(run, "val")
    store, logits = (val, val_logits) if split == "val" else labelled_part(run, split)
    groups = _groups(store, group_by) if group_by else None
    temperature = fit_temperature(val_logits, val.labels)
    probabilities = logits.softmax(1)
    calibrated = (logits / temperature).softmax(1)
    scores, class_scores = estimates(
        probabilities,
        calibrated,
        store.labels,
        None if groups is None else groups.members,
        RESAMPLES,
        make_generator(run.seed, "bootstrap"),
    )
    return Evaluation(
        split=split,
        store=store,
        probabilities=probabilities,
        calibrated=calibrated,
        temperature=temperature,
        confusion=confusion_counts(probabilities.argmax(1), store.labels, store.num_classes),
        scores=scores,
        class_scores=class_scores,
        groups=groups,
    )


def labelled_part(run: Run, split: str) -> tuple[ImageStore, Tensor]:
    """The labelled images of a split, and their logits with dropout off: float64 [N, C], CPU."""
    store: ImageStore = getattr(run.splits, split)
    known = store.labels >= 0
    if not known.any():
        raise UserError(f"{run.splits.name}: no image of the {split} split has a label; label some")
    if not known.all():
        store = store.subset(known.nonzero().flatten())
    embeddings = run.inference.embed(store.images, f"{split} images")
    logits = run.inference.logits(embeddings).double().cpu()
    if not logits.isfinite().all():
        raise UserError(
            f"{run.path}: the network of round {run.round} gives outputs that are no numbers; "
            "name an earlier round by --round"
        )
    return store, logits


def _groups(store: ImageStore, group_by: str) -> Groups:
    if not isinstance(store.sources, FileSources):
        raise UserError(
            f"--group-by {group_by}: the images come from an array and have no file names; leave "
            "it out"
        )
    grouping = group_images(store.sources.root, store.sources.paths, group_by)
    return Groups(grouping.names, torch.from_numpy(grouping.groups))


def group_accuracies(evaluation: Evaluation) -> list[tuple[str, int, Estimate]]:
    """Name, number of images and accuracy of each group, the least accurate first."""
    assert evaluation.groups is not None
    right = evaluation.probabilities.argmax(1) == evaluation.store.labels
    rows = []
    for number, name in enumerate(evaluation.groups.names):
        members = (evaluation.groups.members == number).nonzero().flatten()
        if len(members):
            estimate = share(right[members], members).estimate(None)
            rows.append((name, len(members), estimate))
    return sorted(rows, key=lambda row: (row[2].value, -row[1]))


def report(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    """All numbers, ready for JSON: NaN has become None."""
    names = run.splits.class_names
    support = evaluation.confusion.sum(1).tolist()
    numbers: dict[str, Any] = {
        "run": str(run.path),
        "checkpoint": {
            "uuid": run.uuid,
            "round": run.round,
            "val_loss": run.val_loss if math.isfinite(run.val_loss) else None,
            "best_by": run.description.goal.metric,
        },
        "dataset": run.splits.name,
        "fingerprint": run.splits.fingerprint(),
        "architecture": run.hp.architecture,
        "query_strategy": run.hp.query_strategy,
        "seed": run.seed,
        "labelled_images": len(run.pool.labelled),
        "pool_images": len(run.splits.train),
        "split": evaluation.split,
        "images": len(evaluation.store),
        "temperature": evaluation.temperature,
        "temperature_fitted_on": "val",
        "interval": {"level": LEVEL, "methods": METHODS},
        "scores": {name: _json(one) for name, one in evaluation.scores.items()},
        "classes": [
            {
                "name": name,
                "images": support[c],
                **{score: _json(values[c]) for score, values in evaluation.class_scores.items()},
            }
            for c, name in enumerate(names)
        ],
        "confusion_matrix": evaluation.confusion.tolist(),
    }
    if evaluation.groups is not None:
        numbers["groups"] = [
            {"name": name, "images": images, "accuracy": _json(accuracy)}
            for name, images, accuracy in group_accuracies(evaluation)
        ]
    return numbers


def _json(estimate: Estimate) -> dict[str, float | None]:
    values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if value != value else value for name, value in values.items()}
