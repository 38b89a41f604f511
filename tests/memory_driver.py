"""One active-learning run on an HDF5 set, in little memory: a child process of test_disk_images.

    python -m tests.memory_driver DATA_DIR IMAGE_SIZE MEMORY_SHARE LIMIT

MEMORY_SHARE is that of data_sources.disk_images; LIMIT: MiB that may be allocated from the moment
on in which everything is imported. The system refuses whatever goes beyond; file mappings that are
only read do not count. Prints by how many MiB the resident set has grown at most, mappings
included.
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch

import data
from active_learning import ActiveLearner, run
from data_sources import disk_images, hdf5
from tests.conftest import measure, small_values
from training.hyperparameters import Hyperparameters
from training.loading import load_data
from training.oracle import SimulatedOracle

MIB = 2**20


def status(name: str) -> int:
    """A size from /proc/self/status, in MiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) // 1024


def main(data_dir: str, image_size: str, share: str, limit: str) -> None:
    """Load the set, run two rounds on it, sweep all of it, print the growth."""
    torch.set_num_threads(1)
    # Blocks are of a size for real sets, many times this one's.
    hdf5.BLOCK_BYTES = data.STATISTICS_BLOCK_BYTES = MIB
    data.FINGERPRINT_ROWS = 64
    disk_images.MEMORY_SHARE = float(share)
    changes = {"dataset": "hdf5:made_up", "data_dir": data_dir, "image_size": int(image_size)}
    hp = Hyperparameters.from_mapping(small_values(**changes, rounds=2, scoring_batch_size=4))
    warm_up = ActiveLearner(
        hp,
        store := data.ImageStore(
            torch.zeros(200, 3, hp.image_size, hp.image_size, dtype=torch.uint8),
            torch.arange(200) % 2,
            ("a", "b"),
        ),
        0,
    )
    next(run(warm_up, SimulatedOracle(store.labels), store, store))
    before = status("VmHWM")
    allowed = (status("VmData") + int(limit)) * MIB
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    splits = load_data(hp)
    splits.fingerprint()
    learner = ActiveLearner(hp, splits.train, 0)
    oracle = SimulatedOracle(splits.train.labels)
    assert len(list(run(learner, oracle, splits.val, splits.test))) == hp.rounds
    measure(learner, splits.train)
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
