"""One round of the digits in a task image that has nothing but torch, torchvision, numpy and
determined, as on a cluster: startup-hook.sh installs what is missing, with the real pip.

It needs a package index, so `make test` leaves it out and `.ci/run` calls it:

    python -m pytest tests/clean_image.py
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from importlib.metadata import distribution, distributions
from pathlib import Path

import pip
import pytest
from determined.common.context import read_v1_context
from packaging.requirements import Requirement

from tests.conftest import ROOT
from tests.fake_master import FakeMaster, Trial
from tests.test_cluster import experiment
from tests.test_startup_hook import SECONDS, processor_seconds

OF_THE_IMAGE = ("torch", "torchvision", "numpy", "determined")
CONTAINER = "set -e; set -x; source ./startup-hook.sh; set +x; exec sh -c"  # as Determined does


def with_dependencies(names: tuple[str, ...]) -> set[str]:
    """Names of these packages and of all that they depend on."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An environment with links to this one's packages, as far as a task image brings them."""
    folder = tmp_path / "image"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "pip").symlink_to(Path(pip.__file__).parent)
    for name in with_dependencies(OF_THE_IMAGE):
        package = distribution(name)
        tops = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))))
    return folder


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A container's working directory: what `det experiment create` sends to the master."""
    folder = tmp_path / "workdir"
    for file in read_v1_context(ROOT, []):
        path = folder / file.path
        if file.type == ord(tarfile.DIRTYPE):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(file.content))
    return folder


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    with FakeMaster() as master:
        yield Trial(master, tmp_path / "container", experiment(rounds=1))


def run_container(trial: Trial, image: Path, workdir: Path, command: str) -> str:
    """Source the hook and run `command` as the trial's next container; what it printed."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    environment = {
        **kept,
        **trial.environment(),
        "PATH": f"{image}/bin:{os.environ['PATH']}",
        "DET_PYTHON_EXECUTABLE": str(image / "bin" / "python3"),
    }
    # Determined's entry point writes these files before the hook.
    code = (
        "import sys; from pathlib import Path; from tests.fake_master import enter_container; "
        "enter_container(Path(sys.argv[1]))"
    )
    prepare = [sys.executable, "-c", code, str(trial.folder)]
    subprocess.run(prepare, cwd=ROOT, env={**os.environ, **environment}, check=True)
    # The same versions as here: pip need not replace a package that is linked.
    constraints = trial.folder / "versions.txt"
    constraints.write_text("".join(f"{d.name}=={d.version}\n" for d in distributions()))
    result = subprocess.run(
        ["bash", "-c", f'{CONTAINER} "$0"', command],
        cwd=workdir,
        env={
            **environment,
            "PIP_CONSTRAINT": str(constraints),
            "CONTAINER_ROOT": str(trial.folder),
            "PYTHONPATH": str(ROOT / "tests" / "container"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_a_bare_task_image_trains_a_round(image: Path, workdir: Path, trial: Trial) -> None:
    python = image / "bin" / "python3"
    bare = subprocess.run([python, "-c", "import safetensors"], capture_output=True, text=True)
    assert "No module named 'safetensors'" in bare.stderr

    output = run_container(trial, image, workdir, trial.config["entrypoint"])
    assert output.count("startup-hook.sh: the task image lacks") == 1
    (validation,) = trial.master.of_group("validation")
    assert 0 <= validation.values["val_accuracy"] <= 1
    assert trial.master.refused == []
    assert len(trial.master.checkpoints) == 1

    before = processor_seconds()
    subprocess.run(
        ["bash", "-c", "source ./startup-hook.sh"],
        cwd=workdir,
        env={**os.environ, "DET_PYTHON_EXECUTABLE": str(python)},
        check=True,
    )
    assert processor_seconds() - before < SECONDS
