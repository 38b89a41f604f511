"""One of several data-parallel ranks of an `ActiveLearner`, without Determined.

    torchrun --nproc-per-node 2 -m tests.ranks_driver FOLDER

tests/test_distributed.py runs it, and compares what each rank leaves in FOLDER.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from active_learning import ActiveLearner
from data import ImageStore
from tests.conftest import ask, measure, small_values
from training.hyperparameters import Hyperparameters
from training.loading import load_data
from training.ranks import ALONE, Ranks

STRATEGIES = ("random", "uncertainty_diversity", "bald")
VIEWED = "bald"  # the one that asks for test-time augmentation


def build(strategy: str, ranks: Ranks = ALONE, **changes: Any) -> tuple[ActiveLearner, ImageStore]:
    """A learner on the digits, and an odd number of images to evaluate it on."""
    values = {
        "query_strategy": strategy,
        "candidate_pool_size": 41,
        "batch_size": 6,
        "label_noise": 0.2,
        "uncertainty": "test_time_augmentation" if strategy == VIEWED else "mc_dropout",
        **changes,
    }
    hp = Hyperparameters.from_mapping(small_values(**values))
    splits = load_data(hp)
    learner = ActiveLearner(hp, splits.train, 3, ranks)
    return learner, ImageStore(splits.val.images[:33], splits.val.labels[:33], splits.class_names)


def record_inputs(learner: ActiveLearner) -> list[tuple[Tensor, ...]]:
    """A list that fills with the images and dropout masks of each training step."""
    inputs: list[tuple[Tensor, ...]] = []
    learner.network.register_forward_pre_hook(lambda module, given: inputs.append(given))
    return inputs


def record_embedded(learner: ActiveLearner) -> list[bytes]:
    """A list that fills with the pixels of each image that this rank has the network look at."""
    embedded: list[bytes] = []
    sweep = learner._scorer._sweep

    def recording(images: Tensor, indices: Tensor, title: str) -> Iterator[Tensor]:
        for block in sweep(images, indices, title):
            embedded.extend(image.numpy().tobytes() for image in block)
            yield block

    learner._scorer._sweep = recording  # type: ignore[method-assign]
    return embedded


def run_round(
    learner: ActiveLearner, val: ImageStore, embedded: list[bytes] | None = None
) -> dict[str, Any]:
    """Query, train and evaluate once; everything about it that can be compared.

    `embedded` is a list that `record_embedded` fills.
    """
    embedded = [] if embedded is None else embedded
    embedded.clear()
    ask(learner)
    scored = list(embedded)
    for _ in range(learner.hp.batches_per_round):
        learner.train_step()
    metrics = measure(learner, val)
    network = {name: value.clone() for name, value in learner.network.state_dict().items()}
    state = list(learner.state())
    return {"learner": state, "network": network, "metrics": metrics, "scored": scored}


def learn_without_labels(ranks: Ranks = ALONE) -> dict[str, Any]:
    """Gradients of the first self-supervised step, the network after all, and what it asks for.

    For the first one BatchNorm normalises by fixed statistics, so that one rank's images do not
    change another's.
    """
    learner, _ = build(
        "random",
        ranks,
        precision="float32",
        self_supervised_steps=3,
        self_supervised_batch_size=36,
        initial_pool="network_embeddings",
    )
    work = learner.pretraining
    assert work is not None
    gradients: list[Tensor] = []

    def before_step(*_: Any) -> None:
        gradients.extend(p.grad.clone() for p in work._trained.parameters() if p.grad is not None)

    hook = work._optimizer.register_step_pre_hook(before_step)
    work._trained.eval()
    work.train_step()
    hook.remove()
    work._trained.train()
    if ranks.size > 1:
        learner.train_network = DistributedDataParallel(learner.network)
    learner.pretrain()
    network = {name: value.clone() for name, value in learner.network.state_dict().items()}
    chosen = ask(learner).indices
    learner.train_step()
    return {"gradients": gradients, "network": network, "chosen": chosen}


def main(folder: Path) -> None:
    """Run every strategy to its end."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    for strategy in STRATEGIES:
        learner, val = build(strategy, ranks)
        inputs = record_inputs(learner)
        embedded = record_embedded(learner)
        learner.train_network = DistributedDataParallel(learner.network)
        rounds = []
        while not learner.finished:
            rounds.append(run_round(learner, val, embedded))
        content = {"rounds": rounds, "inputs": inputs}
        torch.save(content, folder / f"{strategy}-{os.environ['RANK']}.pt")
    torch.save(learn_without_labels(ranks), folder / f"no-labels-{ranks.rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
