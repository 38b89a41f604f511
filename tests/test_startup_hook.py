"""startup-hook.sh, in an environment that has torch already: torch and numpy stay as they are.

pip is the real one, in a virtual environment that sees the packages of this one. What it can
install lies in a folder of made-up wheels, since no test needs a network. `tests.clean_image`
tries the same with real packages.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import packaging
import pip
import pytest
from packaging.requirements import Requirement

from data_sources.medmnist_table import medmnist_sets
from tests.conftest import ROOT
from training.experiment_config import load

CONFIGS = [ROOT / "config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]
OF_THE_IMAGE = ("torch", "torchvision", "numpy")
PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}  # by the module's name
SECONDS = 2.0  # the hook's time when nothing is missing, on a machine that is not busy


def required(path: Path) -> list[Requirement]:
    """The packages that a requirements file lists."""
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def missing_names() -> list[str]:
    """Names of the packages that the hook installs in an image with torch alone."""
    names = [package.name for package in required(ROOT / "requirements.txt")]
    return [name for name in names if name not in (*OF_THE_IMAGE, "determined")]


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


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A task image: an environment with pip, torch, torchvision and numpy, and nothing else."""
    folder = tmp_path / "image"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "pip").symlink_to(Path(pip.__file__).parent)
    for name in OF_THE_IMAGE:  # all that pip sees of an installed package
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
    for name in missing_names():
        # One of them depends on torch, and would pull a newer one in.
        requires = ("torch>=2", "numpy>=1.20") if name == "safetensors" else ()
        write_wheel(folder, name.replace("-", "_"), "99.0", requires)
    for name in OF_THE_IMAGE:
        write_wheel(folder, name, "99.0")
    return folder


@pytest.fixture
def working_directory(tmp_path: Path) -> Path:
    """A container's working directory, with the files that the hook needs."""
    folder = tmp_path / "workdir"
    folder.mkdir()
    for name in ("startup-hook.sh", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def source_hook(
    folder: Path, image: Path, wheels: Path, then: str = "true"
) -> subprocess.CompletedProcess[str]:
    """Source the hook as Determined's entry point does; then run the command `then`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        ["bash", "-c", f"set -e; set -x; source ./startup-hook.sh; {then}"],
        cwd=folder,
        env={
            **environment,
            # Not the python3 on the PATH: images have several.
            "DET_PYTHON_EXECUTABLE": str(image / "bin" / "python3"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_CONFIG_FILE": os.devnull,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


def processor_seconds() -> float:
    """What ended child processes have computed so far; a busy machine does not change it."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def installed(image: Path) -> dict[str, str]:
    """Names and versions of the packages in the image."""
    listing = subprocess.run(
        [image / "bin" / "python3", "-m", "pip", "list", "--format=freeze"],
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (line.split("==") for line in listing.stdout.splitlines() if "==" in line)
    return {name.lower().replace("_", "-"): number for name, number in pairs}


def test_missing_packages_are_installed_once_and_torch_stays(
    working_directory: Path, image: Path, wheels: Path
) -> None:
    result = source_hook(working_directory, image, wheels)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert line.startswith("INFO: startup-hook.sh: the task image lacks ")
    assert all(name in line for name in missing_names())
    found = installed(image)
    assert {name: found[name] for name in OF_THE_IMAGE} == {n: version(n) for n in OF_THE_IMAGE}
    assert {name: found.get(name) for name in missing_names()} == dict.fromkeys(
        missing_names(), "99.0"
    )
    assert "determined" not in found

    # The next container: the hook does nothing, says nothing and does without pip.
    (site,) = image.glob("lib/python3*/site-packages")
    (site / "packaging").symlink_to(Path(packaging.__file__).parent)
    (site / "pip").unlink()
    before = processor_seconds()
    result = source_hook(working_directory, image, wheels)
    seconds = processor_seconds() - before
    assert (result.returncode, result.stdout) == (0, "")
    echoed = [line for line in result.stderr.splitlines() if "startup-hook" not in line]
    assert echoed == [], result.stderr
    assert seconds < SECONDS


def test_the_hook_fails_rather_than_replace_torch(
    working_directory: Path, image: Path, wheels: Path
) -> None:
    (wheels / "safetensors-99.0-py3-none-any.whl").unlink()
    write_wheel(wheels, "safetensors", "99.0", ("torch>=99",))
    result = source_hook(working_directory, image, wheels, then="echo the workload runs")
    assert result.returncode != 0
    assert "the workload runs" not in result.stdout
    assert "conflicting dependencies" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ERROR: startup-hook.sh: pip failed")
    assert "Dockerfile" in last
    found = installed(image)
    assert {name: found[name] for name in OF_THE_IMAGE} == {n: version(n) for n in OF_THE_IMAGE}


def test_a_package_that_is_too_old_is_replaced(
    working_directory: Path, image: Path, wheels: Path
) -> None:
    (working_directory / "requirements.txt").write_text("h5py>=3.10  # data sets\n")
    write_wheel(wheels, "h5py", "3.9")
    python = image / "bin" / "python3"
    options = ["--quiet", "--no-index", "--find-links", str(wheels)]
    subprocess.run([python, "-m", "pip", "install", *options, "h5py==3.9"], check=True)
    result = source_hook(working_directory, image, wheels)
    assert result.stdout == (
        "INFO: startup-hook.sh: the task image lacks h5py>=3.10; pip installs them now\n"
    )
    assert installed(image)["h5py"] == "99.0"


def test_containers_of_one_agent_share_their_downloads(
    tmp_path: Path, image: Path, wheels: Path
) -> None:
    agent = tmp_path / "agent"
    agent.mkdir()
    for container in ("first", "second"):
        folder = tmp_path / container
        folder.mkdir()
        shutil.copy(ROOT / "startup-hook.sh", folder)
        (folder / "requirements.txt").write_text("")
        (folder / "agent_tmp").symlink_to(agent)  # stands for the bind mount
        result = source_hook(folder, image, wheels, then="echo $AGENT_FOLDER")
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{folder}/agent_tmp/determined_active_learning\n"
    (tmp_path / "first" / "data" / "file").write_text("downloaded")
    assert (tmp_path / "second" / "data" / "file").read_text() == "downloaded"
    # All users of the agent may write to it, as to /tmp.
    assert (agent / "determined_active_learning").stat().st_mode & 0o7777 == 0o1777


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_mount_what_the_hook_links(path: Path) -> None:
    config = load(path)
    mounts = {(m["host_path"], m["container_path"]) for m in config.get("bind_mounts", [])}
    assert mounts <= {("/tmp", "agent_tmp")}
    dataset = str(config["hyperparameters"]["dataset"])
    needs_download = dataset in medmnist_sets()
    assert bool(mounts) == (needs_download or dataset == "digits")
    assert Path(config["hyperparameters"].get("data_dir", "data")).parts[0] == "data"


def test_a_data_folder_of_ones_own_is_left_alone(
    working_directory: Path, image: Path, wheels: Path
) -> None:
    (working_directory / "requirements.txt").write_text("")
    for name in ("agent_tmp", "data"):
        (working_directory / name).mkdir()
    result = source_hook(working_directory, image, wheels, then="echo $AGENT_FOLDER")
    assert not (working_directory / "data").is_symlink()
    # Trials still see each other.
    assert result.stdout == f"{working_directory}/agent_tmp/determined_active_learning\n"


def test_requirements_name_every_package_that_a_trial_imports() -> None:
    listed = {package.name.lower() for package in required(ROOT / "requirements.txt")}
    modules, waiting, unlisted = set(), ["model_def"], set()
    while waiting:
        module = waiting.pop()
        path = file_of(module)
        if module in modules or path is None:
            continue
        modules.add(module)
        for name in imports_of(module, path):
            package = name.partition(".")[0]
            if (ROOT / package).exists() or (ROOT / f"{package}.py").exists():
                waiting.append(name)
            elif (
                package not in sys.stdlib_module_names
                and PACKAGES.get(package, package) not in listed
            ):
                unlisted.add(f"{module} imports {package}")
    assert len(modules) > 20
    assert not unlisted


def file_of(module: str) -> Path | None:
    """The file of a module of this repository."""
    path = ROOT.joinpath(*module.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def imports_of(module: str, path: Path) -> set[str]:
    """Names of the modules that `module` imports, wherever in its file it does."""
    names = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            # `from package import module` names a module too, where there is such a file.
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names
