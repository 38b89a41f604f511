"""Lets every Python process of a test see a folder in place of the root of a task's container.

With this file's folder on PYTHONPATH, Python runs it at its start, before anything else: so also in
the processes that Determined's launcher starts, of which a test sees nothing. CONTAINER_ROOT names
the folder.
"""

from __future__ import annotations

import os
from typing import Any


def relocate(root: str) -> None:
    """Make this process see `root` where Determined has fixed places in a container.

    Those are default arguments and constants of its own modules.
    """
    import determined as det
    from determined import constants
    from determined.common import constants as common_constants

    written: tuple[Any, ...] = (
        det.ClusterInfo,
        det.TrialInfo,
        det.RendezvousInfo,
        det.ResourcesInfo,
    )
    for kind in written:
        for function in (kind._from_file.__func__, kind._to_file):
            (path,) = function.__defaults__
            function.__defaults__ = (f"{root}{path}",)
    common_constants.SHARED_FS_CONTAINER_PATH = f"{root}/determined_shared_fs"
    constants.MANAGED_TRAINING_MODEL_COPY = f"{root}{constants.MANAGED_TRAINING_MODEL_COPY}"


if "CONTAINER_ROOT" in os.environ:
    relocate(os.environ["CONTAINER_ROOT"])
