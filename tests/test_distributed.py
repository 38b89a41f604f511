"""Two data-parallel processes (gloo, on CPUs): the same experiment as one, shared out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks import processes
from tests import ranks_driver
from tests.conftest import small_values

RANKS = 2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2 ARGUMENTS`, with its output."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
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


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each rank of the driver left behind, by strategy."""
    folder = tmp_path_factory.mktemp("ranks")
    processes.warm_up()
    done = torchrun("-m", "tests.ranks_driver", folder)
    assert done.returncode == 0, done.stdout
    return {
        strategy: [torch.load(folder / f"{strategy}-{rank}.pt") for rank in range(RANKS)]
        for strategy in (*ranks_driver.STRATEGIES, "no-labels")
    }


@pytest.mark.parametrize("strategy", ranks_driver.STRATEGIES)
def test_ranks_hold_the_same_pool_and_network(
    by_rank: dict[str, list[dict[str, Any]]], strategy: str
) -> None:
    first, second = by_rank[strategy]
    assert len(first["rounds"]) == 3
    for one, other in zip(first["rounds"], second["rounds"], strict=True):
        assert processes.same(one, other)


@pytest.mark.parametrize("strategy", ranks_driver.STRATEGIES)
def test_one_rank_evaluates_and_chooses_the_same(
    by_rank: dict[str, list[dict[str, Any]]], strategy: str
) -> None:
    rounds = by_rank[strategy][0]["rounds"]
    for done, following in zip(rounds, [*rounds[1:], None], strict=True):
        learner, val = ranks_driver.build(strategy)
        learner.network.load_state_dict(done["network"])
        learner.load_state_dict(done["learner"])
        assert learner.evaluate(val) == pytest.approx(done["metrics"], abs=1e-6)
        if following is not None:
            learner.query()
            chosen = learner.pool.acquired_round
            assert torch.equal(chosen, following["learner"]["acquired_round"])


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
                together[rank::RANKS] = piece
            assert torch.equal(together, tensor)


def test_ranks_learn_together_without_labels(by_rank: dict[str, list[dict[str, Any]]]) -> None:
    first, second = by_rank["no-labels"]
    assert processes.same(first, second)
    alone = ranks_driver.learn_without_labels()["gradients"]
    assert len(alone) == len(first["gradients"]) > 0
    for one, together in zip(alone, first["gradients"], strict=True):
        torch.testing.assert_close(together, one, rtol=1e-3, atol=1e-4)
    learner, _ = ranks_driver.build(
        "random", precision="float32", initial_pool="network_embeddings"
    )
    learner.network.load_state_dict(first["network"])
    assert torch.equal(learner.query().indices, first["chosen"])


def test_a_run_of_two_ranks_ends_well(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path, self_supervised_steps=3, self_supervised_batch_size=32)
    done = torchrun(processes.SCRIPT, "--config", config, "--output-dir", run)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("learning without labels: step 3 of 3") == 1
    queries = processes.read_rows(run / "queries.csv")
    assert [row["round"] for row in queries] == ["0"] * 10 + ["1"] * 6 + ["2"] * 6
    assert len({row["index"] for row in queries}) == len(queries)
    rows = processes.read_rows(run / "metrics.csv")
    assert [row["labeled_samples"] for row in rows] == ["10.0", "16.0", "22.0"]
    assert all(float(row["val_loss"]) > 0 for row in rows)
    for round_ in range(3):  # only the first rank speaks
        assert done.stdout.count(f"round {round_} ({round_ + 1} of 3): ") == 1

    # One rank can go on with what two have begun; here there is nothing left.
    log = tmp_path / "log.txt"
    assert processes.wait(processes.start(["--resume", run], log)) == 0
    assert "nothing left to do" in log.read_text()


def test_ranks_stop_together(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path, stop_below_uncertainty=10.0)
    done = torchrun(processes.SCRIPT, "--config", config, "--output-dir", run)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("the run is over: the pool's mean uncertainty") == 1
    assert [row["round"] for row in processes.read_rows(run / "metrics.csv")] == ["0"]


def test_a_rank_that_fails_takes_the_others_with_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "something").touch()
    done = torchrun(processes.SCRIPT, "--config", write_config(tmp_path), "--output-dir", run)
    assert done.returncode != 0
    # The folder is the first rank's business; the second was waiting to hear of it.
    assert done.stdout.count("error: ") == 1
    assert f"error: --output-dir {run}: exists and is not empty" in done.stdout


def test_a_batch_that_cannot_be_shared_is_refused_in_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, batch_size=7)
    log = tmp_path / "log.txt"
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
    }
    both = [
        processes.start(
            ["--config", config, "--output-dir", tmp_path / "run"],
            log,
            {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(RANKS)
    ]
    assert [processes.wait(process) for process in both] == [2, 2]
    assert log.read_text() == (
        "error: hyperparameters.batch_size: 7 cannot be shared by 2 processes; "
        "make it a multiple of 2\n"
    )
    assert not (tmp_path / "run").exists()
