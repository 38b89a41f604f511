"""docs/smears.md from the first command to the last, on small drawn smears."""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.service_clients import running
from benchmarks.smears import WHITE_KINDS, Look, draw_smear, write_smears
from errors import AWAITING_LABELS, OK
from labelling.batch import batch_folders, read_batch
from tests.conftest import ROOT

SMALL = Look(height=200, width=260, diameter=60, white=4, red=8)
FAST = {
    "image_size": 16,
    "architecture": "small_cnn",
    "batches_per_round": 30,
    "evaluation_size": 10,
    "tensorboard_pictures": False,
}
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "smears.md").read_text(), re.S)
    for line in block.splitlines()
]
RAN: set[str] = set()


def run(line: str, *more: str) -> int:
    """Run a command of the page in this process; the exit status."""
    assert line in COMMANDS, f"docs/smears.md has no command {line}"
    RAN.add(line)
    words = shlex.split(line)[1:]
    if words[0] == "-m":
        return int(importlib.import_module(words[1]).main([*words[2:], *more]))
    assert words[0] == "model_def.py"
    return int(importlib.import_module("model_def").main([*words[1:], *more]))


def kinds_of_crops(cells: Path, smears: Path) -> dict[str, str]:
    """The kind of cell that was drawn where each crop was cut out, by the crop's file name."""
    with (smears / "truth.csv").open(newline="") as file:
        drawn = [row for row in csv.DictReader(file) if row["kind"] in WHITE_KINDS]
    kinds = {}
    with (cells / "cells.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            x, y = float(row["centre_x"]), float(row["centre_y"])
            for one in drawn:
                left, top, right, bottom = (
                    int(one[side]) for side in ("left", "top", "right", "bottom")
                )
                if one["image"] == row["image"] and left <= x < right and top <= y < bottom:
                    kinds[Path(row["file"]).name] = one["kind"]
    return kinds


@contextlib.contextmanager
def started(line: str) -> Iterator[str]:
    """Start a server by a command of the page, at a free port; yields its address."""
    assert line in COMMANDS, f"docs/smears.md has no command {line}"
    RAN.add(line)
    with running(*shlex.split(line)[2:]) as (_, port):
        yield f"http://127.0.0.1:{port}"


def answer(page: str, folder: Path, kinds: dict[str, str]) -> int:
    """Answer the open batch as a person would who knows every cell; the number of images."""
    sources = {item.index: item.source for item in read_batch(batch_folders(folder)[-1]).images}
    batch = httpx.get(f"{page}/api/batch?annotator=ann").json()
    answers = []
    for index, *_ in batch["images"]:
        kind = kinds.get(sources[index])
        skip = None if kind else "unusable"
        answers.append({"image": index, "answer": kind, "skip": skip, "seconds": 1})
    body = {"batch": batch["batch"], "annotator": "ann", "answers": answers}
    assert httpx.post(f"{page}/api/answers", json=body).status_code == 200
    return len(answers)


def test_from_smears_to_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "model_def.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the servers
    RAN.clear()

    # 1. and 2. Smears, smaller than those of the page's command, and their cells.
    drawing = "python -m benchmarks.smears --output data/smears --images 150 --seed 0"
    assert run(drawing, "--images", "1", "--output", "data/one") == OK
    assert len(list(Path("data/one").iterdir())) == 2
    write_smears(Path("data/smears"), images=48, seed=0, look=SMALL)
    assert run("python -m tools.segment data/smears --output data/cells") == OK
    kinds = kinds_of_crops(Path("data/cells"), Path("data/smears"))
    crops = list(Path("data/cells/crops").iterdir())
    assert len(kinds) >= 0.95 * len(crops) >= 120

    # 3. Label 100 and train.
    (listing,) = [line for line in COMMANDS if line.startswith("printf")]
    classes, target = re.fullmatch(r"printf '(.*)' > (\S+)", listing).groups()  # type: ignore[union-attr]
    Path(target).write_text(classes.encode().decode("unicode_escape"))
    RAN.add(listing)
    settings = [f"hyperparameters.{name}={value}" for name, value in FAST.items()]
    start = "python model_def.py --config configs/smears.yaml --output-dir runs/smears"
    status, asked = run(start, "--set", *settings), []
    with started("python -m tools.label runs/smears") as page:
        while status == AWAITING_LABELS:
            asked.append(answer(page, Path("runs/smears"), kinds))
            status = run("python model_def.py --resume runs/smears")
    assert status == OK
    assert sum(asked[1:]) >= 100
    with Path("runs/smears/metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["labeled_samples"]) == 100
    assert float(last["val_accuracy"]) > 0.5  # four classes

    # 4. and 5. Serve, and ask about a new smear.
    assert run("python -m tools.export runs/smears --output exported") == OK
    pixels, _ = draw_smear(np.random.default_rng(99), SMALL)
    Image.fromarray(pixels).save("new_smear.png")
    new = "python -m tools.segment new_smear.png --output new_cells --cell-diameter 170"
    assert run(new, "--cell-diameter", "60") == OK
    (upload,) = [line for line in COMMANDS if line.startswith("curl")]
    if not shutil.which("curl"):
        pytest.skip("curl is not installed, for the last command")
    with started("python -m tools.serve exported") as address:
        command = shlex.split(upload.replace("http://127.0.0.1:8080", address))
        found = subprocess.run(command, capture_output=True, check=True).stdout
    RAN.add(upload)
    (prediction,) = json.loads(found)["predictions"]
    assert set(prediction["probabilities"]) == set(WHITE_KINDS)
    assert set(COMMANDS) == RAN
