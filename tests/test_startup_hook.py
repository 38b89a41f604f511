"""startup-hook.sh, in an environment that has torch already: torch and numpy stay as they are.

pip is the real one, in a virtual environment that sees the packages of this one; what it could
install lies in a folder of made-up wheels, since no test needs a network.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pip
import pytest

from tests.conftest import ROOT

KEPT = ("torch", "torchvision", "numpy")
LEFT_OUT = ("determined", "onnx", "onnxruntime", "onnxscript", "safetensors")


def write_wheel(folder: Path, name: str, number: str, requires: tuple[str, ...] = ()) -> None:
    """A wheel of an empty package."""
    info = f"{name}-{number}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
    files = {
        f"{name}/__init__.py": f"__version__ = {number!r}\n",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {one}\n" for one in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD"
    lines = [
        f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in files.items()
    ]
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as wheel:
        for path, content in {**files, record: "".join([*lines, f"{record},,\n"])}.items():
            wheel.writestr(path, content)


def _digest(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def wanted() -> list[str]:
    """Names of the packages in requirements.txt that the hook is to have installed."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in lines if line[:1].isalpha()]
    return [name for name in names if name not in (*KEPT, *LEFT_OUT)]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A task image: an environment with pip, torch, torchvision and numpy, and nothing else."""
    folder = tmp_path / "image"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "pip").symlink_to(Path(pip.__file__).parent)
    for name in KEPT:  # all that pip sees of an installed package
        info = site / f"{name}-{version(name)}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version(name)}\n"
        (info / "METADATA").write_text(metadata)
        (info / "RECORD").write_text("")
        (info / "INSTALLER").write_text("conda\n")
    return folder


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """All that requirements.txt asks for, and a torch and a numpy newer than any."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in wanted():
        requires = ("torch>=2", "numpy>=1.20") if name == "medmnist" else ()
        write_wheel(folder, name.replace("-", "_"), "99.0", requires)
    for name in KEPT:
        write_wheel(folder, name, "99.0")
    return folder


LISTING = "python3 -m pip list --format=freeze"


def hook(image: Path, wheels: Path) -> subprocess.CompletedProcess[str]:
    """Source the hook as a container does before its workload; then list what is installed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        ["bash", "-c", f"set -e; source ./startup-hook.sh; {LISTING}"],
        cwd=ROOT,
        env={
            **environment,
            "PATH": f"{image}/bin:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_CONFIG_FILE": os.devnull,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


def installed(listing: str) -> dict[str, str]:
    pairs = (line.split("==") for line in listing.splitlines() if "==" in line)
    return {name.lower().replace("_", "-"): number for name, number in pairs}


def test_what_is_lacking_is_installed_and_torch_stays(image: Path, wheels: Path) -> None:
    done = hook(image, wheels)
    assert done.returncode == 0, done.stderr
    found = installed(done.stdout)
    assert {name: found[name] for name in KEPT} == {name: version(name) for name in KEPT}
    assert {name: found.get(name) for name in wanted()} == dict.fromkeys(wanted(), "99.0")
    assert found.keys().isdisjoint(LEFT_OUT)
    # Once more, as in every container of an experiment: nothing is left to do.
    again = hook(image, Path(os.devnull))
    assert (again.returncode, installed(again.stdout)) == (0, found), again.stderr


def test_it_fails_rather_than_replace_torch(image: Path, wheels: Path) -> None:
    (wheels / "medmnist-99.0-py3-none-any.whl").unlink()
    write_wheel(wheels, "medmnist", "99.0", ("torch>=99",))
    done = hook(image, wheels)
    assert done.returncode != 0
    assert "conflicting dependencies" in done.stderr
    python = image / "bin" / "python3"
    listed = subprocess.run([python, *LISTING.split()[1:]], capture_output=True, text=True)
    found = installed(listed.stdout)
    assert {name: found[name] for name in KEPT} == {name: version(name) for name in KEPT}
