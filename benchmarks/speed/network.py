"""Times training, scoring and a whole round of the package and the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from active_learning import ActiveLearner, label_round
from benchmarks.speed.baseline import Baseline
from benchmarks.speed.rows import Row
from benchmarks.speed.timing import Spread, fast_dtype, in_turns, product_rate, seconds
from data import ImageStore
from training.experiment_config import load
from training.hyperparameters import Hyperparameters
from training.loading import load_data
from training.metrics import classification_metrics
from training.oracle import SimulatedOracle

CONFIG = Path(__file__).resolve().parent.parent.parent / "configs" / "const.yaml"
PASSES = 6  # of MC dropout
CLASSES = 9
# The sizes of a round of configs/const.yaml on PathMNIST.
POOL, STEPS, EVALUATED, QUERY = 89_996, 400, 10_004 + 7_180, 200


@dataclass(frozen=True)
class Size:
    """The amount of work in each measurement; a few seconds give a stable figure."""

    architecture: str
    image_size: int
    batch: int
    steps: int  # optimizer steps of the package per measurement
    baseline_steps: int
    scored: int  # candidates
    baseline_scored: int
    round_part: int  # a measured round has 1/round_part of the work of a round on PathMNIST
    product: int  # width of the matrices whose product gives the limit
    runs: int


class Limit:
    """Operations that the device can do per second, and that the network needs per image."""

    def __init__(self, learner: ActiveLearner, size: Size, device: torch.device) -> None:
        self.dtype = fast_dtype(device)
        self.rate = product_rate(self.dtype, size.product, device)
        network = learner.network
        shape = (2, learner.train_store.channels, size.image_size, size.image_size)
        images = torch.zeros(shape, device=device)
        with FlopCounterMode(display=False) as forward:
            loss = network(images).sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
        network.zero_grad()
        self.scoring = forward.get_total_flops() / len(images)
        self.training = self.scoring + backward.get_total_flops() / len(images)


def limit(train: ImageStore, size: Size, device: torch.device) -> list[Row]:
    """The rows of the device's limit."""
    device_limit = Limit(
        _learner(_hyperparameters(size, size.batch, len(train)), train), size, device
    )
    rates = {device_limit.dtype: device_limit.rate}
    if device_limit.dtype != torch.float32:  # the precision of the baselines
        rates[torch.float32] = product_rate(torch.float32, size.product, device)
    note = (
        f"{size.architecture} needs {device_limit.scoring / 1e9:.3f} GFLOP an image to score "
        f"and {device_limit.training / 1e9:.3f} to train"
    )
    rows = []
    for dtype, rate in rates.items():
        item = f"matrix product, {str(dtype).removeprefix('torch.')}"
        rows.append(Row("limit", item, "TFLOP/s", Spread.of([rate / 1e12]), note=note))
        note = ""
    return rows


def store(data_dir: Path | None, size: Size, device: torch.device) -> ImageStore:
    """PathMNIST's training images from `data_dir`, or random images if it is None."""
    hp = _hyperparameters(size, size.batch, size.batch)
    if data_dir is not None:
        return load_data(hp, data_dir).train.to(device)
    # The extra images leave room for labelled ones.
    count = max(size.scored, POOL // size.round_part) + 8 * size.batch
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size.image_size, size.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % CLASSES
    names = tuple(f"class {label}" for label in range(CLASSES))
    return ImageStore(images, labels, names).to(device)


def _hyperparameters(size: Size, labelled: int, budget: int, **changes: Any) -> Hyperparameters:
    values = load(CONFIG)["hyperparameters"]
    values |= {
        "architecture": size.architecture,
        "image_size": size.image_size,
        "batch_size": size.batch,
        "uncertainty_passes": PASSES,
        "initial_labeled_size": labelled,
        "samples_to_label": 1,
        "label_budget": budget,
        "rounds": budget,
    }
    return Hyperparameters.from_mapping(values | changes)


def _learner(hp: Hyperparameters, train: ImageStore) -> ActiveLearner:
    return ActiveLearner(hp, train, seed=0)


def _query(learner: ActiveLearner) -> None:
    label_round(learner, SimulatedOracle(learner.train_store.labels))


def training(
    train: ImageStore, size: Size, device: torch.device, compiled: bool
) -> Iterator[list[Row]]:
    """Images/s of optimizer steps of the package: eager and, if `compiled`, compiled."""
    labelled = 4 * size.batch
    eager = _learner(_hyperparameters(size, labelled, len(train), batches_per_round=100_000), train)
    baseline = Baseline(eager.hp, train, device)
    device_limit = Limit(eager, size, device)
    batches = baseline.training_batches()
    _query(eager)
    eager.train_step()
    baseline.train(batches, 1)  # starts the workers and allocates memory

    def steps(learner: ActiveLearner) -> Callable[[], None]:
        def work() -> None:
            for _ in range(size.steps):
                learner.train_step()
            learner.meter.take()

        return work

    works: dict[str, Callable[[], object]] = {
        "baseline": lambda: baseline.train(batches, size.baseline_steps),
        "eager": steps(eager),
    }
    warm_up = 0.0
    if compiled:
        fast = _learner(
            _hyperparameters(size, labelled, len(train), batches_per_round=100_000, compile=True),
            train,
        )
        _query(fast)
        warm_up = seconds(fast.train_step, device)
        fast.train_step()
        works["compiled"] = steps(fast)
    times = in_turns(works, size.runs, device)
    baseline_rate = times["baseline"].per(size.baseline_steps * size.batch)
    images = size.steps * size.batch
    rates = {name: times[name].per(images) for name in works if name != "baseline"}
    rows = []
    for name, rate in rates.items():
        note = f"{size.architecture}, batch {size.batch}"
        if name == "compiled":
            saved = 1 / rates["eager"].median - 1 / rate.median
            note += f"; warm-up {warm_up:.0f} s, " + (
                f"won back after {warm_up / saved:,.0f} images" if saved > 0 else "never won back"
            )
        share = rate.median * device_limit.training / device_limit.rate
        rows.append(Row("training", name, "images/s", rate, baseline_rate, share, note))
    yield rows


def scoring(
    train: ImageStore, size: Size, device: torch.device, compiled: bool
) -> Iterator[list[Row]]:
    """Candidates/s of a query by BALD, which is a sweep over the pool and a sort."""
    baseline = Baseline(_hyperparameters(size, size.batch, len(train)), train, device)
    learners = {}
    for name in ("eager", "compiled") if compiled else ("eager",):
        hp = _hyperparameters(
            size,
            size.batch,
            len(train),
            query_strategy="bald",
            candidate_pool_size=size.scored,
            batches_per_round=1,
            compile=name == "compiled",
        )
        learners[name] = _learner(hp, train)
    device_limit = Limit(learners["eager"], size, device)
    candidates = torch.arange(size.baseline_scored)

    def query(learner: ActiveLearner) -> None:
        learner.step = learner.pool.rounds  # moves on to the next round without training
        _query(learner)

    notes = {name: f"T = {PASSES}" for name in learners}
    for name, learner in learners.items():
        _query(learner)
        warm_up = seconds(lambda learner=learner: query(learner), device)  # type: ignore[misc]
        if name == "compiled":
            notes[name] += f"; first sweep {warm_up:.0f} s"
    works: dict[str, Callable[[], object]] = {
        name: lambda learner=learner: query(learner)  # type: ignore[misc]
        for name, learner in learners.items()
    }
    works["baseline"] = lambda: baseline.score(candidates, PASSES)
    times = in_turns(works, size.runs, device)
    baseline_rate = times["baseline"].per(size.baseline_scored)
    rows = []
    for name in learners:
        rate = times[name].per(size.scored)
        share = rate.median * device_limit.scoring / device_limit.rate
        rows.append(Row("scoring", name, "candidates/s", rate, baseline_rate, share, notes[name]))
    yield rows


def whole_round(train: ImageStore, size: Size, device: torch.device) -> Iterator[list[Row]]:
    """Seconds of a round, from query to evaluation, with 1/round_part of PathMNIST's work."""
    pool, steps, picks = (max(1, n // size.round_part) for n in (POOL, STEPS, QUERY))
    hp = _hyperparameters(
        size,
        2 * size.batch,
        len(train),
        query_strategy="uncertainty_diversity",
        candidate_pool_size=pool,
        batches_per_round=steps,
        samples_to_label=picks,
    )
    learner = _learner(hp, train)
    _query(learner)
    for _ in range(steps):
        learner.train_step()
    baseline = Baseline(hp, train, device)
    candidates = torch.arange(min(pool, len(train)))
    evaluated = torch.arange(max(CLASSES, EVALUATED // size.round_part))
    part = train.subset(evaluated)

    def package_round() -> None:
        _query(learner)
        for _ in range(steps):
            learner.train_step()
        classification_metrics(learner.predict(part), part.labels)

    def baseline_round() -> None:
        baseline.query(candidates, picks)
        baseline.train(baseline.training_batches(), steps)
        baseline.evaluate(part)

    times = in_turns({"package": package_round, "baseline": baseline_round}, size.runs, device)
    note = (
        f"1/{size.round_part} of PathMNIST's: {pool} candidates (T = {PASSES}), {picks} picks, "
        f"{steps} steps of {size.batch}, {len(part)} images evaluated"
    )
    yield [Row("round", "eager", "s", times["package"], times["baseline"], None, note)]
