"""Fits what an exported model needs besides its weights: temperature and outlier threshold."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from run_folder.reader import Run
from serving.exported import OutlierRule
from serving.outliers import NEIGHBOURS, PERCENTILE, Neighbours
from training.calibration import fit_temperature
from training.seeds import make_generator

MAX_REFERENCES = 20_000  # labelled images to compare with; a random draw where there are more


@dataclass(frozen=True)
class Calibration:
    """Everything that is fitted on the validation split, never on the test split.

    Attributes:
        temperature: divides the logits.
        rule: when an image is an outlier.
        references: embeddings of labelled training images, float32 [n, D].
    """

    temperature: float
    rule: OutlierRule
    references: NDArray[np.float32]


def calibrate(run: Run) -> Calibration:
    """Fit temperature and outlier threshold in float32, in which the service computes."""
    inference = dataclasses.replace(run.inference, compute_dtype=torch.float32, tf32=False)
    labelled = run.pool.labelled
    if len(labelled) > MAX_REFERENCES:
        order = torch.randperm(len(labelled), generator=make_generator(run.seed, "references"))
        labelled = labelled[order[:MAX_REFERENCES]].sort().values
    references = inference.embed(run.splits.train.images[labelled], "labelled images")
    embeddings = inference.embed(run.splits.val.images, "validation images")
    logits = inference.logits(embeddings)
    neighbours = Neighbours(references.cpu().numpy())
    distances = neighbours.distances(embeddings.cpu().numpy())
    rule = OutlierRule(
        neighbours=NEIGHBOURS,
        percentile=PERCENTILE,
        threshold=float(np.percentile(distances, PERCENTILE)),
        references=len(references),
        validation_images=len(distances),
    )
    temperature = fit_temperature(logits, run.splits.val.labels)
    return Calibration(temperature, rule, references.cpu().numpy())
