"""What the outlier flag needs of a run: embeddings of labelled images and a threshold.

They come from the run's data set. Embedding it takes a while, so `RUN/outliers_CHECKPOINT` keeps
the result where the run folder can be written to.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from reporting.files import write_atomically
from run_folder.reader import Model, open_run
from tools.calibrating import calibrate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutlierReference:
    """embeddings: float32 [n, D], of labelled images. threshold: distances above it are outliers.

    temperature: fitted on the same validation images.
    """

    embeddings: NDArray[np.float32]
    threshold: float
    temperature: float


def outlier_reference(
    model: Model, path: Path, checkpoint: str, data_dir: Path | None
) -> OutlierReference:
    """The reference of `model`, which was opened from `path`: the kept one, or a new one.

    Raises:
        UserError: there is none yet, and the run's data set cannot be had.
    """
    file = path / f"outliers_{model.uuid}.safetensors"
    reference = _read(file, model)
    if reference is None:
        calibration = calibrate(open_run(path, checkpoint, data_dir))
        reference = OutlierReference(
            calibration.references, calibration.rule.threshold, calibration.temperature
        )
        _keep(file, reference)
    return reference


def _read(file: Path, model: Model) -> OutlierReference | None:
    """What an earlier call kept; None where there is nothing usable."""
    try:
        with safe_open(file, framework="numpy") as content:
            numbers = json.loads((content.metadata() or {})["outliers"])
            embeddings = content.get_tensor("embeddings")
        reference = OutlierReference(
            embeddings, float(numbers["threshold"]), float(numbers["temperature"])
        )
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        logger.warning("%s: damaged; it is made anew from the data set", file)
        return None
    size = model.inference.network.embedding_size
    usable = embeddings.ndim == 2 and embeddings.shape[1] == size and len(embeddings)
    return reference if usable and embeddings.dtype == np.float32 else None


def _keep(file: Path, reference: OutlierReference) -> None:
    numbers = {"threshold": reference.threshold, "temperature": reference.temperature}
    content = save({"embeddings": reference.embeddings}, {"outliers": json.dumps(numbers)})
    try:
        write_atomically(file, content)
    except OSError as error:
        logger.info("%s: not kept (%s); the next call embeds the data again", file, error.strerror)
