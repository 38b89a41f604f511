"""What a run's network does on one whole split, measured; what evaluate and export report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data import ImageStore
from reporting.calibration import fit_temperature
from reporting.measures import Estimate, confusion_counts, estimates
from run_folder.reader import Run
from training.seeds import make_generator

SPLITS = ("val", "test")
RESAMPLES = 1000
PER_CLASS = ("precision", "recall", "f1", "class_auc")


@dataclass(frozen=True)
class Evaluation:
    """All on the CPU. N images, C classes.

    probabilities, calibrated: float64 [N, C], before and after temperature scaling.
    confusion: float64 [C, C], rows are true classes.
    scores: measures of the split, by the names of `reporting.measures.measures`.
    class_scores: those of `PER_CLASS`, one for each class.
    """

    split: str
    store: ImageStore
    probabilities: Tensor
    calibrated: Tensor
    temperature: float
    confusion: Tensor
    scores: dict[str, Estimate]
    class_scores: dict[str, list[Estimate]]


def evaluate_split(run: Run, split: str) -> Evaluation:
    """Measure `run` on all of its split `val` or `test`.

    The temperature is always fitted on the validation split; nothing is fitted on the test split.
    """
    val_logits = split_logits(run, "val")
    logits = val_logits if split == "val" else split_logits(run, split)
    store: ImageStore = getattr(run.splits, split)
    temperature = fit_temperature(val_logits, run.splits.val.labels)
    probabilities = logits.softmax(1)
    calibrated = (logits / temperature).softmax(1)
    generator = make_generator(run.seed, "bootstrap")
    found = estimates(probabilities, calibrated, store.labels, RESAMPLES, generator)
    ones = torch.ones(1, len(store))
    return Evaluation(
        split=split,
        store=store,
        probabilities=probabilities,
        calibrated=calibrated,
        temperature=temperature,
        confusion=confusion_counts(
            probabilities.argmax(1), store.labels, ones, store.num_classes
        ).squeeze(0),
        scores={name: value[0] for name, value in found.items() if name not in PER_CLASS},
        class_scores={name: found[name] for name in PER_CLASS},
    )


def split_logits(run: Run, split: str) -> Tensor:
    """Logits float64 [N, C], on the CPU, of all images of a split, with dropout off."""
    images = getattr(run.splits, split).images
    embeddings = run.inference.embed(images, f"{split} images")
    return run.inference.logits(embeddings).double().cpu()


def report(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    """All numbers, ready for JSON: NaN has become None."""
    names = run.splits.class_names
    support = evaluation.confusion.sum(1).tolist()
    return {
        "run": str(run.path),
        "checkpoint": {"uuid": run.uuid, "round": run.round, "val_loss": run.val_loss},
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
        "interval": {"level": 0.95, "method": "percentile bootstrap", "resamples": RESAMPLES},
        "scores": {name: _json(one) for name, one in evaluation.scores.items()},
        "classes": [
            {
                "name": name,
                "images": int(support[c]),
                **{score: _json(values[c]) for score, values in evaluation.class_scores.items()},
            }
            for c, name in enumerate(names)
        ],
        "confusion_matrix": evaluation.confusion.long().tolist(),
    }


def _json(estimate: Estimate) -> dict[str, float | None]:
    values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if value != value else value for name, value in values.items()}
