"""docs/smears.md from the first command to the last, on small drawn smears."""

from __future__ import annotations

import csv
import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from benchmarks.smears import WHITE_KINDS, Look, draw_smear, write_smears
from errors import AWAITING_LABELS, OK
from labelling.batch import batch_folders, read_batch
from labelling.log import Answer, AnswerLog
from serving.app import service_app
from serving.service import Service, ServiceSettings
from tests.conftest import ROOT
from web.access import Access

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


def run(line: str, *more: str) -> int:
    """Run a command of the page in this process; the exit status."""
    assert line in COMMANDS, f"docs/smears.md has no command {line}"
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


def answer(folder: Path, kinds: dict[str, str]) -> int:
    """Answer the open batch as a person would who knows every cell; the number of images."""
    batch = read_batch(batch_folders(folder)[-1])
    answers = [
        Answer("ann", item.index, answer=kinds[item.source])
        if item.source in kinds
        else Answer("ann", item.index, skip="unusable")
        for item in batch.images
    ]
    AnswerLog(batch_folders(folder)[-1]).append(answers)
    return len(answers)


def test_from_smears_to_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "model_def.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)

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
    settings = [f"hyperparameters.{name}={value}" for name, value in FAST.items()]
    start = "python model_def.py --config configs/smears.yaml --output-dir runs/smears"
    status, asked = run(start, "--set", *settings), []
    while status == AWAITING_LABELS:
        asked.append(answer(Path("runs/smears"), kinds))
        status = run("python model_def.py --resume runs/smears")
    assert status == OK
    assert sum(asked[1:]) >= 100
    with Path("runs/smears/metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["labeled_samples"]) == 100
    assert float(last["val_accuracy"]) > 0.5  # four classes

    # 4. and 5. Serve, and ask about a new smear.
    assert run("python -m tools.export runs/smears --output exported") == OK
    assert {"python -m tools.label runs/smears", "python -m tools.serve exported"} <= set(COMMANDS)
    pixels, _ = draw_smear(np.random.default_rng(99), SMALL)
    Image.fromarray(pixels).save("new_smear.png")
    new = "python -m tools.segment new_smear.png --output new_cells --cell-diameter 170"
    assert run(new, "--cell-diameter", "60") == OK
    service = Service(Path("exported"), ServiceSettings())
    with TestClient(
        service_app(service, Access.for_address("127.0.0.1", 80)), base_url="http://127.0.0.1"
    ) as client:
        crop = Path("new_cells/crops/new_smear_0000.png")
        found = client.post("/predict", files={"file": (crop.name, crop.read_bytes())})
    assert found.status_code == 200, found.text
    (prediction,) = found.json()["predictions"]
    assert set(prediction["probabilities"]) == set(WHITE_KINDS)
