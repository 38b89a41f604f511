"""model_def.py as one of several ranks, with something arranged for it first.

    torchrun --nproc-per-node 2 -m tests.rank_entry SETUP ARGUMENTS OF model_def.py

SETUP is JSON: `url` and `md5` of the file that BreastMNIST is downloaded from, and `fails`, "kill"
or "raise", for what becomes of the second rank within its fourth step. tests/test_distributed.py
runs it.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Any

from data_sources.medmnist_table import medmnist_sets
from tests.kill_points import KillPoint
from tests.reliability.processes import SCRIPT
from training.metrics import TrainingMeter


def arrange(setup: dict[str, Any], rank: int) -> None:
    """Arrange `setup` in this process."""
    if "url" in setup:
        medmnist_sets()["breastmnist"].update(url=setup["url"], MD5=setup["md5"])
    if rank == 1 and setup.get("fails") == "kill":
        KillPoint("training.metrics:TrainingMeter.update", call=4).arm()
    if rank == 1 and setup.get("fails") == "raise":
        update, calls = TrainingMeter.update, iter(range(4))

        def failing(meter: TrainingMeter, *arguments: Any) -> None:
            if next(calls) == 3:
                raise RuntimeError("the second rank has failed")
            update(meter, *arguments)

        setattr(TrainingMeter, "update", failing)  # noqa: B010 - mypy knows methods from values


if __name__ == "__main__":
    arrange(json.loads(sys.argv[1]), int(os.environ["RANK"]))
    sys.argv = [str(SCRIPT), *sys.argv[2:]]
    runpy.run_path(str(SCRIPT), run_name="__main__")
