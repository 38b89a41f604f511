"""The first round's images: by chance, or spread over clusters that need no label."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from active_learning import ActiveLearner
from data import ImageStore, normalise
from query_strategies import STRATEGIES, PoolScores
from tests.conftest import ask, small_values
from training.hyperparameters import Hyperparameters
from training.seeds import make_generator

Build = Callable[..., ActiveLearner]
CLUSTERS, MEMBERS = 8, (5, 60, 7, 9, 40, 6, 12, 30)


def clustered() -> tuple[ImageStore, Tensor]:
    """Noisy images of eight colours, in a random order; and which colour each is of."""
    generator = make_generator(0, "clusters")
    cluster = torch.arange(CLUSTERS).repeat_interleave(torch.tensor(MEMBERS))
    cluster = cluster[torch.randperm(len(cluster), generator=generator)]
    corners = torch.tensor([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)])
    colours = 30 + 180 * corners.view(CLUSTERS, 3, 1, 1)
    noise = torch.randint(0, 9, (len(cluster), 3, 8, 8), generator=generator)
    # Labels that have nothing to do with the clusters: looking at them would not help.
    labels = torch.arange(len(cluster)) % 4
    images = (colours[cluster] + noise).to(torch.uint8)
    return ImageStore(images, labels, ("a", "b", "c", "d")), cluster


def learner_of(store: ImageStore, **changes: object) -> ActiveLearner:
    values = small_values(
        initial_labeled_size=CLUSTERS, batch_size=4, label_budget=CLUSTERS, rounds=1, **changes
    )
    hp = Hyperparameters.from_mapping(values)
    return ActiveLearner(hp, store, 0)


@pytest.mark.parametrize(
    ("initial_pool", "steps"), [("pixels", 0), ("network_embeddings", 0), ("network_embeddings", 5)]
)
def test_one_of_each_clear_cluster(initial_pool: str, steps: int) -> None:
    store, cluster = clustered()
    learner = learner_of(
        store,
        initial_pool=initial_pool,
        self_supervised_steps=steps,
        self_supervised_batch_size=64,
    )
    learner.pretrain()
    chosen = ask(learner).indices
    assert sorted(cluster[chosen].tolist()) == list(range(CLUSTERS))


def test_chance_misses_small_clusters() -> None:
    store, cluster = clustered()
    assert len(cluster[ask(learner_of(store)).indices].unique()) < CLUSTERS


def test_labels_have_no_part_in_it() -> None:
    store, _ = clustered()
    other = ImageStore(store.images, store.labels.flip(0), store.class_names)
    for initial_pool in ("random", "pixels", "network_embeddings"):
        one, two = (ask(learner_of(s, initial_pool=initial_pool)) for s in (store, other))
        assert torch.equal(one.indices, two.indices)


@pytest.mark.parametrize("initial_pool", ["pixels", "network_embeddings"])
def test_is_typiclust_of_what_is_named(initial_pool: str, make_learner: Build) -> None:
    learner = make_learner(initial_pool=initial_pool, precision="float32")
    images = learner.train_store.images
    if initial_pool == "pixels":
        points = images.flatten(1).float()
    else:
        learner.network.eval()
        with torch.no_grad():
            points = learner.network.embed(normalise(images, learner.mean, learner.std)).half()
        learner.network.train()
    scores = PoolScores(torch.arange(len(images)), None, points, None)
    expected = STRATEGIES["typiclust"].select(scores, 10, make_generator(learner.seed, "query", 0))
    assert torch.equal(ask(learner).indices, expected)
    again = make_learner(initial_pool=initial_pool, precision="float32")
    assert torch.equal(ask(again).indices, expected)


def test_pixels_on_the_host_are_chosen_among_on_the_host(make_learner: Build) -> None:
    """As beside a GPU that cannot hold the images; here the GPU is one in name only."""
    learner = make_learner(initial_pool="pixels")
    count = len(learner.train_store)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_gpu = torch.arange(count, device="cuda")
        learner._candidates = lambda round_: on_gpu  # type: ignore[method-assign]
        scores = learner._score(0)
    assert scores.embeddings is not None
    assert scores.embeddings.shape == (count, 64)
    assert scores.candidates.device == scores.embeddings.device == torch.device("cpu")
