"""Runs an ONNX file with ONNX Runtime, in one thread. Nothing else here imports ONNX Runtime.

Its official builds send data on their use to Microsoft unless they are told not to before they are
loaded (Privacy.md in its package).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from errors import UserError

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"


class OnnxFile:
    """A network whose input is `images`. Several threads may run it at the same time.

    Attributes:
        outputs: the names of what it computes.

    Raises:
        UserError: the file is missing or damaged.
    """

    def __init__(self, file: Path) -> None:
        os.environ[NO_TELEMETRY] = "1"
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._run_options = onnxruntime.RunOptions()
        self._run_options.only_execute_path_to_fetches = True
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has no common type for damaged files
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{file}: cannot be loaded ({reason}); export again") from error
        self.outputs = frozenset(output.name for output in self._session.get_outputs())

    def run(self, outputs: Sequence[str], images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """The named outputs for images uint8 [B, C, S, S]; no others are computed."""
        found: list[NDArray[Any]] = self._session.run(
            list(outputs), {"images": images}, self._run_options
        )
        return found
