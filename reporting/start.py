"""The log lines at the start of a run."""

from __future__ import annotations

import logging

from active_learning import ActiveLearner
from data import Splits

logger = logging.getLogger("active_learning")


def log_start(learner: ActiveLearner, splits: Splits, val: int, test: int) -> None:
    """Log data, budget, network, seed and settings; `val` and `test` count the evaluated images."""
    sizes = learner.query_sizes
    logger.info(
        "%s: %d training images of %d classes, %d of %d validation images, %d of %d test images; "
        "%d rounds label %s; %s in %s on %s, seed %d",
        splits.name, len(splits.train), splits.num_classes, val, len(splits.val), test,
        len(splits.test), len(sizes), " + ".join(map(str, sizes)), learner.hp.architecture,
        str(learner.compute_dtype).removeprefix("torch."), learner.device, learner.seed,
    )  # fmt: skip
    differences = learner.hp.differences()
    if differences:
        text = ", ".join(f"{name}: {value}" for name, value in differences.items())
        logger.info("settings that differ from the defaults: %s", text)
