"""Checks that a run labelled over HTTP equals the simulated run, and times both.

    python -m benchmarks.labelling_identity --config configs/bloodmnist.yaml --data-dir data

Runs the configuration twice through model_def.py: once with `oracle: simulated`, once with
`oracle: people`, where a simulated annotator sends the data set's labels to the page's HTTP
interface. Prints whether queries.csv, the pool and the weights are equal to the last bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import torch

from errors import AWAITING_LABELS, OK
from run_folder.checkpoint import read_tensors
from run_folder.names import CHECKPOINTS, QUERIES, STATE, WEIGHTS
from training.experiment_config import load, override
from training.hyperparameters import Hyperparameters
from training.loading import load_data

ROOT = Path(__file__).resolve().parent.parent
ANNOTATOR = "simulated"  # the name that queries.csv gives the simulated oracle
PER_REQUEST = 20


def run_rounds(*arguments: str) -> int:
    """Run model_def.py with these arguments; returns the exit status."""
    command = [sys.executable, str(ROOT / "model_def.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode


def call(address: str, body: dict[str, Any] | None = None) -> Any:
    """Send a request, with `body` as JSON if given; returns the JSON reply."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data), timeout=60) as reply:
        return json.load(reply)


def label(run: Path, truth: list[str]) -> int:
    """Start a server and answer the open batch; returns the number of images."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.label", str(run), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        page = process.stdout.readline().split()[2]
        who = urllib.parse.urlencode({"annotator": ANNOTATOR})
        batch = call(f"{page}api/batch?{who}")
        images = [index for index, *_ in batch["images"]]
        for start in range(0, len(images), PER_REQUEST):
            answers = [
                {"image": index, "answer": truth[index], "event": f"{batch['batch']} {index}"}
                for index in images[start : start + PER_REQUEST]
            ]
            body = {"batch": batch["batch"], "annotator": ANNOTATOR, "answers": answers}
            assert call(f"{page}api/answers", body) == {"saved": True}
        return len(images)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def differences(first: Path, second: Path) -> list[str]:
    """The names of the files that differ between two finished runs."""
    differing = []
    if (first / QUERIES).read_bytes() != (second / QUERIES).read_bytes():
        differing.append(QUERIES)
    checkpoints = [
        max((run / CHECKPOINTS).iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for run in (first, second)
    ]
    for name in (STATE, WEIGHTS):
        one, other = (read_tensors(folder / name) for folder in checkpoints)
        for tensors in (one, other):
            tensors.pop("pool.seconds", None)  # people's time is measured
        # Compare bytes, because the pool's uncertainty is NaN for images without a score.
        if one.keys() != other.keys() or any(
            one[key].numpy().tobytes() != other[key].numpy().tobytes() for key in one
        ):
            differing.append(name)
    return differing


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labelling_identity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=Path("configs/bloodmnist.yaml"))
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums depend on the number of threads
    config = override(load(options.config), options.set)
    hp = Hyperparameters.from_mapping(config["hyperparameters"])
    train = load_data(hp, options.data_dir).train
    truth = [train.class_names[label] for label in train.labels.tolist()]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        first, second = Path(name) / "simulated", Path(name) / "people"
        common = ["--config", str(options.config), "--data-dir", str(options.data_dir)]
        settings = ["--set", *options.set] if options.set else []
        started = time.perf_counter()
        assert run_rounds(*common, "--output-dir", str(first), *settings) == OK
        print(f"simulated: {time.perf_counter() - started:.0f} s", flush=True)
        started = time.perf_counter()
        people = ["--set", *options.set, "hyperparameters.oracle=people"]
        status = run_rounds(*common, "--output-dir", str(second), *people)
        rounds = labels = 0
        while status == AWAITING_LABELS:
            labels += label(second, truth)
            rounds += 1
            status = run_rounds("--resume", str(second), "--data-dir", str(options.data_dir))
        assert status == OK, status
        seconds = time.perf_counter() - started
        print(f"people: {rounds} rounds, {labels} labels over HTTP, {seconds:.0f} s", flush=True)
        differing = differences(first, second)
        print("differ in " + ", ".join(differing) if differing else "equal to the last bit")
        sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
