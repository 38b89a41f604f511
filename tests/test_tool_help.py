"""Every tool answers `--help` at once: nothing heavy is imported before arguments are parsed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Each takes between half a second and four seconds to import.
HEAVY = (
    "determined", "matplotlib", "medmnist", "onnx", "onnxruntime", "scipy", "skimage", "sklearn",
    "tensorboard", "torch", "torchvision",
)  # fmt: skip
PROGRAM = f"""
import json, runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
print("\\n" + json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
MOST_SECONDS = 1.5


def commands() -> list[str]:
    """The modules under tools/ that are run from the command line."""
    files = [*(ROOT / "tools").glob("*.py"), *(ROOT / "tools").glob("*/__main__.py")]
    return sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for file in files
        if '__name__ == "__main__"' in file.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("command", commands())
def test_help_imports_nothing_heavy(command: str) -> None:
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, command],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    after = os.times()
    assert done.returncode == 0, done.stderr
    text, _, last = done.stdout.rstrip().rpartition("\n")
    assert json.loads(last) == [0, []]
    assert "usage: " in text
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < MOST_SECONDS


def test_the_tools_are_found() -> None:
    assert {"tools.evaluate", "tools.explore", "tools.predict", "tools.figures"} <= set(commands())
