"""Two and three data-parallel processes (gloo, on CPUs): the experiment of one, shared out."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from run_folder.writer import RunFolder
from tests import ranks_driver
from tests.bad_input_makers import as_npz, good_arrays
from tests.conftest import ask, measure, small_values
from tests.fake_master import free_port
from tests.reliability import processes


def torchrun(ranks: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node RANKS ARGUMENTS`, with its output."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*launcher, "--master-port", str(free_port()), *map(str, arguments)],
        cwd=processes.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )


def write_config(folder: Path, **changes: Any) -> Path:
    content = {
        "hyperparameters": small_values(**changes),
        "reproducibility": {"experiment_seed": 0},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module", params=[2, 3])
def by_rank(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """What each rank of the driver left behind, by strategy."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(request.param, "-m", "tests.ranks_driver", folder)
    assert done.returncode == 0, done.stdout
    return {
        strategy: [torch.load(folder / f"{strategy}-{rank}.pt") for rank in range(request.param)]
        for strategy in (*ranks_driver.STRATEGIES, "no-labels")
    }


@pytest.mark.parametrize("strategy", ranks_driver.STRATEGIES)
def test_ranks_hold_the_same_pool_and_network(
    by_rank: dict[str, list[dict[str, Any]]], strategy: str
) -> None:
    first, *others = by_rank[strategy]
    assert len(first["rounds"]) == 3
    for other in others:
        for one, another in zip(first["rounds"], other["rounds"], strict=True):
            for name in ("learner", "network", "metrics"):
                assert processes.same(one[name], another[name])


@pytest.mark.parametrize("strategy", ranks_driver.STRATEGIES)
def test_one_rank_evaluates_and_chooses_the_same(
    by_rank: dict[str, list[dict[str, Any]]], strategy: str
) -> None:
    ranks = [rank["rounds"] for rank in by_rank[strategy]]
    for number, done in enumerate(ranks[0]):
        learner, val = ranks_driver.build(strategy)
        learner.network.load_state_dict(done["network"])
        learner.load_state(*done["learner"])
        assert measure(learner, val) == pytest.approx(done["metrics"], abs=1e-6)
        if number + 1 == len(ranks[0]):
            break
        scored = ranks_driver.record_embedded(learner)
        ask(learner)
        tensors, _ = ranks[0][number + 1]["learner"]
        assert torch.equal(learner.pool.round, tensors["pool.round"])
        # Each image is scored by one rank, and all of them are.
        shares = [image for rank in ranks for image in rank[number + 1]["scored"]]
        assert sorted(shares) == sorted(scored)
        assert (strategy == "random") == (scored == [])


def test_ranks_train_together_on_the_images_of_one(
    by_rank: dict[str, list[dict[str, Any]]],
) -> None:
    # With another network one rank would query other images, so only chance may choose them.
    learner, val = ranks_driver.build("random")
    alone = ranks_driver.record_inputs(learner)
    while not learner.finished:
        ranks_driver.run_round(learner, val)
    shares = [rank["inputs"] for rank in by_rank["random"]]
    assert len(alone) == len(shares[0]) == learner.step
    for whole, *parts in zip(alone, *shares, strict=True):
        for tensor, *pieces in zip(whole, *parts, strict=True):
            together = torch.empty_like(tensor)
            for rank, piece in enumerate(pieces):
                together[rank :: len(pieces)] = piece
            assert torch.equal(together, tensor)


def test_ranks_learn_together_without_labels(by_rank: dict[str, list[dict[str, Any]]]) -> None:
    first, *others = by_rank["no-labels"]
    assert all(processes.same(first, other) for other in others)
    alone = ranks_driver.learn_without_labels()["gradients"]
    assert len(alone) == len(first["gradients"]) > 0
    for one, together in zip(alone, first["gradients"], strict=True):
        torch.testing.assert_close(together, one, rtol=1e-3, atol=1e-4)
    learner, _ = ranks_driver.build(
        "random", precision="float32", initial_pool="network_embeddings"
    )
    learner.network.load_state_dict(first["network"])
    assert torch.equal(ask(learner).indices, first["chosen"])


def rank_entry(ranks: int, setup: dict[str, Any], *arguments: str | Path) -> Any:
    return torchrun(ranks, "-m", "tests.rank_entry", json.dumps(setup), *arguments)


def test_a_run_of_two_ranks_ends_well_on_data_that_one_downloads(tmp_path: Path) -> None:
    content = as_npz(good_arrays())
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            time.sleep(1)  # in which the other rank could begin as well
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    run = tmp_path / "run"
    changes: dict[str, Any] = {
        "dataset": "breastmnist",
        "image_size": 28,
        "data_dir": str(tmp_path / "data"),
        "self_supervised_steps": 3,
        "self_supervised_batch_size": 32,
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        setup = {
            "url": f"http://127.0.0.1:{server.server_port}/file.npz",
            "md5": hashlib.md5(content).hexdigest(),
        }
        config = write_config(tmp_path, **changes)
        done = rank_entry(2, setup, "--config", config, "--output-dir", run)
        server.shutdown()
    assert done.returncode == 0, done.stdout
    assert requests == ["/file.npz"]
    assert done.stdout.count("learning without labels: step 3 of 3") == 1
    queries = processes.read_rows(run / "queries.csv")
    assert [row["round"] for row in queries] == ["0"] * 10 + ["1"] * 6 + ["2"] * 6
    assert len({row["index"] for row in queries}) == len(queries)
    rows = processes.read_rows(run / "metrics.csv")
    assert [row["labeled_samples"] for row in rows] == ["10", "16", "22"]
    assert all(float(row["val_loss"]) > 0 for row in rows)
    for round_ in range(3):  # only the first rank speaks
        assert done.stdout.count(f"round {round_} ({round_ + 1} of 3): ") == 1

    # One rank can resume what two have begun; here nothing is left to do.
    log = tmp_path / "log.txt"
    assert processes.wait(processes.start(["--resume", run], log)) == 0
    assert "nothing left to do" in log.read_text()


def test_ranks_stop_together(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path, stop_below_uncertainty=10.0)
    log = tmp_path / "log.txt"
    both = start_ranks(["--config", config, "--output-dir", run], log)
    assert [processes.wait(process) for process in both] == [0, 0], log.read_text()
    assert log.read_text().count("the run is over: the pool's mean uncertainty") == 1
    assert [row["round"] for row in processes.read_rows(run / "metrics.csv")] == ["0"]


@pytest.mark.parametrize("fails", ["kill", "raise"])
def test_a_rank_that_fails_takes_the_others_with_it(tmp_path: Path, fails: str) -> None:
    """In the middle of training, while the first waits for its gradients: nothing hangs."""
    run = tmp_path / "run"
    config = write_config(tmp_path)
    done = rank_entry(2, {"fails": fails}, "--config", config, "--output-dir", run)
    assert done.returncode != 0
    assert ("the second rank has failed" in done.stdout) == (fails == "raise")
    folder, _ = RunFolder.open(run)  # and the checkpoint of the round before is whole
    assert folder.latest_checkpoint() is not None
    assert [entry["round"] for entry in folder.checkpoint_entries] == [0]


def test_a_refusal_by_the_first_rank_is_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "something").touch()
    log = tmp_path / "log.txt"
    first, second = start_ranks(["--config", write_config(tmp_path), "--output-dir", run], log)
    assert processes.wait(first) == 2
    second.kill()  # as torchrun does; it was waiting to hear of the folder
    processes.wait(second)
    assert log.read_text().count("error: ") == 1
    assert f"error: --output-dir {run}: exists and is not empty" in log.read_text()


def start_ranks(arguments: list[str | Path], log: Path) -> list[Any]:
    """Two ranks without torchrun, which start sooner."""
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
    }
    return [
        processes.start(arguments, log, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]


def test_a_batch_that_cannot_be_shared_is_refused_in_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, batch_size=7)
    log = tmp_path / "log.txt"
    both = start_ranks(["--config", config, "--output-dir", tmp_path / "run"], log)
    assert [processes.wait(process) for process in both] == [2, 2]
    assert log.read_text() == (
        "error: hyperparameters.batch_size: 7 cannot be shared by 2 processes; "
        "make it a multiple of 2\n"
    )
    assert not (tmp_path / "run").exists()
