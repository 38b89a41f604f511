"""README.md and docs/: commands exist and parse, examples run, links resolve, tables are true."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest

from benchmarks.tables import MARKED, TABLES, documents, filled
from tests.conftest import ROOT

TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in documents()
}
BLOCKS = [
    block for text in TEXTS.values() for block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
]


def commands() -> list[str]:
    """Every command in a block of shell or in backticks, without its comment."""
    lines = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
    for text in TEXTS.values():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines += [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)]
    programs = ("python ", "make ", "det ", "torchrun ")
    found = (line.split("  #")[0].strip() for line in lines)
    return sorted({line for line in found if line.startswith(programs)})


COMMANDS = commands()
MODULES = sorted({line.split()[2] for line in COMMANDS if line.startswith("python -m ")})
RUNS = [line for line in COMMANDS if "model_def.py" in line]


def heading_anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def test_the_commands_that_matter_are_named() -> None:
    assert {"make run", "make test"} <= set(COMMANDS)
    named = {f"tools.{name}" for name in ("label", "compare", "export", "serve", "segment")}
    assert named <= set(re.findall(r"python -m (tools\.\w+)", TEXTS["README.md"]))
    assert any("--resume" in line for line in RUNS)
    assert any(line.startswith("det experiment create") for line in COMMANDS)


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 210


@pytest.mark.parametrize(
    "target", sorted({c.split()[1] for c in COMMANDS if c.startswith("make ")})
)
def test_make_targets_exist(target: str) -> None:
    dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr


# One process for all modules, because importing torch takes seconds.
ASK_FOR_HELP = """
import contextlib, io, json, runpy, sys
answers = {}
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = None
        except SystemExit as ended:
            status = ended.code
    answers[module] = [status, text.getvalue()]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int | None, str]]:
    """The exit status and the text of --help of every module."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK_FOR_HELP, *MODULES],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {module: (status, text) for module, (status, text) in json.loads(done.stdout).items()}


@pytest.mark.parametrize("module", MODULES)
def test_modules_answer_help(module: str, helps: dict[str, tuple[int | None, str]]) -> None:
    status, text = helps[module]
    assert status == 0
    lines = [line for line in COMMANDS if line.startswith(f"python -m {module} ")]
    for option in sorted({word for line in lines for word in re.findall(r"--[\w-]+", line)}):
        assert option in text, option


@pytest.mark.parametrize("line", RUNS)
def test_model_def_commands_parse(line: str) -> None:
    import model_def
    from training.experiment_config import load, override

    words = shlex.split(line.split("model_def.py", 1)[1])
    if not words:
        return
    parsed = model_def.parse_arguments(words)
    if parsed.resume is None:
        assert (ROOT / parsed.config).is_file()
        override(load(ROOT / parsed.config), parsed.set)


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("det experiment create ")])
def test_experiments_exist(line: str) -> None:
    configuration, context = line.split()[3:5]
    assert (ROOT / configuration).is_file()
    assert context == "."


@pytest.mark.parametrize("code", [block for language, block in BLOCKS if language == "python"])
def test_python_examples_run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"# prints: (.*)", code)
    assert expected
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("name", TEXTS)
def test_links_resolve(name: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), link
        if anchor:
            assert anchor in heading_anchors(path.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", TEXTS)
def test_tables_are_those_of_their_sources(name: str) -> None:
    assert filled(TEXTS[name]) == TEXTS[name], "run python -m benchmarks.tables"


def test_every_table_is_shown() -> None:
    shown = {match[1] for text in TEXTS.values() for match in MARKED.finditer(text)}
    assert shown == set(TABLES)


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_named_exist(name: str) -> None:
    folders = "|".join(
        path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."
    )
    for path in re.findall(rf"`((?:{folders})/[\w./]*)`", TEXTS[name]):
        if not path.startswith(("data/", "runs/")):  # made by users and runs
            assert (ROOT / path).exists(), path


def test_every_top_level_file_is_named() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {path.split("/")[0] for path in tracked if not path.startswith(".")}
    assert not [name for name in top - {"README.md"} if name not in TEXTS["README.md"]]
