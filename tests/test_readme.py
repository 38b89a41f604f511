"""The README: its commands run, its links alive."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.strip()
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.strip() and not line.strip().startswith("#")
]


def test_there_are_commands() -> None:
    assert {"make run", "make test"} <= {command.split("  #")[0].strip() for command in COMMANDS}


@pytest.mark.parametrize("command", sorted({c.split()[1] for c in COMMANDS if "make " in c}))
def test_make_targets_exist(command: str) -> None:
    dry = subprocess.run(["make", "-n", command], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr


@pytest.mark.parametrize(
    "module",
    sorted(set(re.findall(r"python -m ((?:tools|benchmarks|tests\.reliability)\.\w+)", README))),
)
def test_modules_answer_help(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    options = set(re.findall(rf"python -m {re.escape(module)}[^`\n]*", README))
    for option in {word for line in options for word in re.findall(r"--[\w-]+", line)}:
        assert option in done.stdout, option


@pytest.mark.parametrize(
    "line", [c.split("  #")[0] for c in COMMANDS if c.startswith("python model_def.py")]
)
def test_model_def_commands_parse(line: str) -> None:
    import model_def
    from training.experiment_config import load, override

    words = line.split()[2:]
    parsed = model_def.parse_arguments(words)
    if parsed.resume is None:
        assert (ROOT / parsed.config).is_file()
        override(load(ROOT / parsed.config), parsed.set)


@pytest.mark.parametrize("code", [block for language, block in BLOCKS if language == "python"])
def test_python_examples_run(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"# prints: (.*)", code)
    assert expected
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_to_files_are_alive(link: str) -> None:
    if not link.startswith("http"):
        assert (ROOT / link).exists()


def test_every_top_level_file_is_named() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {path.split("/")[0] for path in tracked if not path.startswith(".")}
    assert not [name for name in top - {"README.md"} if name not in README]
