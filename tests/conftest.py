"""Fixtures shared by the tests: small hyperparameters and small real images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, settings

from active_learning import ActiveLearner, Observer, label_round
from data import ImageStore, Splits, load_splits
from errors import OK
from local.run import Request, run_locally
from tools import export
from training.hyperparameters import Hyperparameters
from training.metrics import classification_metrics
from training.oracle import Oracle, Proposal, SimulatedOracle

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # of ONNX Runtime, which some tests import themselves

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("TEST_DATA_DIR", ROOT.parent / "shared" / "data"))

# The same examples every time; the fixtures that Hypothesis warns of hold no state.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("repeatable")

SMALL: dict[str, Any] = {
    "architecture": "small_cnn",
    "image_size": 8,
    "batch_size": 8,
    "batches_per_round": 3,
    "rounds": 3,
    "initial_labeled_size": 10,
    "samples_to_label": 6,
    "label_budget": 120,
    "query_strategy": "uncertainty_diversity",  # needs embeddings as well as probabilities
    "candidate_pool_size": 40,
    "uncertainty_passes": 4,
    "scoring_batch_size": 32,
    "evaluation_size": 30,
    "reporting_period": 2,
    "precision": "float32",  # what comes out must not depend on the CPU
    "tensorboard_pictures": False,
}


def small_values(**changes: Any) -> dict[str, Any]:
    """All hyperparameters: those of configs/digits.yaml, made small and then changed."""
    config = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text(encoding="utf-8"))
    small = Hyperparameters.from_mapping({**config["hyperparameters"], **SMALL})
    return {**small.resolved(), **changes}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that processes which share the files end at the same time."""
    items.sort(key=lambda item: item.path.name != "test_resume.py")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """One thread for each test process and its children.

    Sums come out the same in all of them, and no more threads run than there are cores.
    """
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def digits() -> Splits:
    return load_splits(
        "digits",
        ".",
        image_size=8,
        split_seed=0,
        validation_fraction=0.15,
        test_fraction=0.15,
    )


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder: three rounds on the digits, the whole splits evaluated. Read only."""
    folder = tmp_path_factory.mktemp("small_run") / "run"
    settings = {**SMALL, "evaluation_size": 0}
    wanted = Request(
        config=ROOT / "configs" / "digits.yaml",
        output_dir=folder,
        settings=tuple(f"hyperparameters.{name}={value}" for name, value in settings.items()),
    )
    assert run_locally(wanted) == OK
    return folder


@pytest.fixture(scope="session")
def exported(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, exported. Read only."""
    folder = tmp_path_factory.mktemp("export") / "new" / "model"
    assert export.main([str(small_run), "--output", str(folder)]) == 0
    return folder


def part(store: ImageStore, size: int) -> ImageStore:
    """The first `size` images of a store."""
    return ImageStore(store.images[:size], store.labels[:size], store.class_names)


@pytest.fixture
def make_learner(digits: Splits) -> Callable[..., ActiveLearner]:
    """Builds a learner on the first 120 training digits, with hyperparameters changed by name."""

    def build(seed: int = 0, **changes: Any) -> ActiveLearner:
        train = part(digits.train, 120)
        hp = Hyperparameters.from_mapping(small_values(**changes))
        return ActiveLearner(hp, train, seed)

    return build


class Proposals(Observer):
    """Collects the proposals that were answered."""

    def __init__(self) -> None:
        self.answered: list[Proposal] = []

    def labelled(self, proposal: Proposal) -> None:
        self.answered.append(proposal)


def ask(learner: ActiveLearner, oracle: Oracle | None = None) -> Proposal:
    """Have the round's images chosen and labelled, by default by the trial's simulated oracle."""
    proposals = Proposals()
    if oracle is None:
        oracle = SimulatedOracle.of_trial(learner, learner.train_store)
    assert label_round(learner, oracle, proposals)
    (proposal,) = proposals.answered
    return proposal


def measure(learner: ActiveLearner, store: ImageStore) -> dict[str, float]:
    """The measures of the learner's network as it is, on `store`."""
    return classification_metrics(learner.predict(store), store.labels)


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A folder that another user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
