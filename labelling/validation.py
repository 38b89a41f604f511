"""The labels that people gave to the validation images of a run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from labelling.batch import VALIDATION, validation_folder
from labelling.outcome import close_batch, corrections


def answered_labels(run: Path, labels: Tensor) -> Tensor:
    """`labels` of the validation sample, int64 [N], with people's answers and corrections.

    Raises:
        UserError: images still wait for an answer, or a file is damaged.
    """
    answered = labels.clone()
    given = {**close_batch(validation_folder(run)).labels, **corrections(run, VALIDATION)}
    for index, label in given.items():
        answered[index] = label
    return answered
