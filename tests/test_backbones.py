"""Backbones other than the ResNets: split, trained, frozen, pre-trained and explained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import vgg

from active_learning import ActiveLearner
from backbones import check_torchvision_backbone
from data import ImageStore
from errors import UserError
from reporting.grad_cam import grad_cam
from resnet_custom import SplitNetwork
from tests.conftest import ask, small_values
from training.embedding import Embedder
from training.hyperparameters import Hyperparameters
from training.optimisation import shrink_and_perturb

SIZE = 64
# With poolings inside its blocks, dropout and stochastic depth; and one pooled by a function.
MODELS = ("torchvision:efficientnet_b0", "torchvision:mnasnet0_5")
NEW = ("vgg16", "torchvision:mnasnet0_5")


def build(architecture: str, seed: int = 0, channels: int = 3, **changes: bool) -> SplitNetwork:
    generator = torch.Generator().manual_seed(seed)
    return SplitNetwork(architecture, 4, channels, generator, **changes)


def pictures(channels: int = 3, count: int = 4, size: int = SIZE) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def store(channels: int = 1) -> ImageStore:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (24, channels, SIZE, SIZE), generator=generator)
    return ImageStore(images.to(torch.uint8), torch.arange(24) % 4, ("a", "b", "c", "d"))


def learner(architecture: str, **changes: Any) -> ActiveLearner:
    """A learner on 24 grey images, two rounds of two steps."""
    values = small_values(
        architecture=architecture,
        image_size=SIZE,
        rounds=2,
        initial_labeled_size=8,
        samples_to_label=4,
        label_budget=12,
        batch_size=4,
        batches_per_round=2,
        candidate_pool_size=4,
        precision="float32",
        **changes,
    )
    images = store()
    return ActiveLearner(Hyperparameters.from_mapping(values), images, 0)


@pytest.fixture
def donor(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Tensor]]:
    """Puts a freshly drawn network of that name in place of torchvision's pretrained one."""

    def give(name: str) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(7)
            network: nn.Module
            if name == "vgg16_bn":  # whose linear layers alone take seconds to draw
                features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
                network = nn.ModuleDict({"features": features, "classifier": nn.Linear(2, 2)})
            else:
                network = torchvision.models.get_model(name, weights=None)
            given = network.state_dict()
        weights = torchvision.models.get_model_weights(name).DEFAULT
        monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: dict(given))
        return given

    return give


@pytest.mark.parametrize("architecture", MODELS)
def test_embedding_and_head(architecture: str) -> None:
    network = build(architecture).eval()
    embeddings = network.embed(pictures())
    assert embeddings.shape == (4, network.embedding_size)
    assert torch.equal(network(pictures()), network.head(embeddings))


@pytest.mark.parametrize("architecture", NEW)
def test_weights_come_from_the_generator_alone(architecture: str) -> None:
    state = torch.get_rng_state()
    one, same, other = (build(architecture, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    differing = 0
    for (name, a), b, c in zip(
        one.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.ndim < 2 or not torch.equal(a, c), name
        differing += a.ndim >= 2
    assert differing > 10


@pytest.mark.parametrize("architecture", MODELS)
def test_training_reaches_every_weight_and_draws_nothing(architecture: str) -> None:
    network = build(architecture).train()
    state = torch.get_rng_state()
    network(pictures()).square().sum().backward()
    assert torch.equal(state, torch.get_rng_state())
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_statistics_follow_within_a_round() -> None:
    network = build("torchvision:mnasnet0_5").train()
    convolution, norm, *_ = network.backbone.get_submodule("layers").children()
    with torch.no_grad():
        for _ in range(50):
            network(pictures())
        expected = convolution(pictures()).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected, rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("architecture", NEW)
def test_a_learner_trains_scores_and_goes_on(architecture: str) -> None:
    first = learner(architecture)
    ask(first)
    before = first.network.classifier.weight.detach().clone()
    for _ in range(2):
        first.train_step()
    assert not torch.equal(first.network.classifier.weight, before)
    second = learner(architecture)
    second.load_state(*first.state())
    second.network.load_state_dict(first.network.state_dict())
    assert torch.equal(ask(second).indices, ask(first).indices)
    assert torch.equal(second.pool.labelled, first.pool.labelled)


@pytest.mark.parametrize("architecture", NEW)
def test_grey_is_colour_of_three_equal_channels(architecture: str) -> None:
    grey, colour = build(architecture, channels=1).eval(), build(architecture).eval()
    images = pictures(channels=1)
    torch.testing.assert_close(grey(images), colour(images.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("architecture", MODELS)
def test_embedding_of_an_image_does_not_depend_on_the_batch(architecture: str) -> None:
    """Images are embedded in eval mode, also where BatchNorms are not folded away."""
    network = build(architecture).train()
    network(pictures())  # so that the running statistics are not those of the batch
    embedder = Embedder(network, torch.float32)
    expected = copy.deepcopy(network).eval().embed(pictures()).detach()
    torch.testing.assert_close(embedder(pictures()), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(embedder(pictures()[:1]), expected[:1], atol=1e-4, rtol=1e-3)
    assert network.training


def test_vgg16_keeps_positions_of_a_small_image() -> None:
    features = build("vgg16").backbone.get_submodule("features")
    assert features(pictures(count=1, size=28)).shape == (1, 512, 3, 3)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("vgg16", "vgg16_bn"), ("torchvision:mobilenet_v3_small", "mobilenet_v3_small")],
)
def test_pretrained_backbones_are_taken_over_whole(
    donor: Callable[[str], dict[str, Tensor]], architecture: str, name: str
) -> None:
    given = donor(name)
    network = build(architecture, channels=1, pretrained=True)
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, given[key]), key
    assert network(pictures(channels=1)).shape == (4, 4)


class TestFrozen:
    @pytest.fixture
    def frozen(self, donor: Callable[[str], dict[str, Tensor]]) -> ActiveLearner:
        donor("mobilenet_v3_small")
        return learner(
            "torchvision:mobilenet_v3_small",
            pretrained=True,
            freeze_backbone=True,
            between_rounds="shrink_and_perturb",
        )

    def test_only_the_head_learns(self, frozen: ActiveLearner) -> None:
        before = {k: v.clone() for k, v in frozen.network.state_dict().items()}
        for _ in range(2):  # with scoring, shrinking and perturbing between the rounds
            ask(frozen)
            frozen.train_step()
            frozen.train_step()
        changed = {k for k, v in frozen.network.state_dict().items() if not v.equal(before[k])}
        assert changed == {"classifier.weight", "classifier.bias"}
        held = [p for group in frozen.optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in frozen.network.classifier.parameters()}

    def test_batchnorm_stays_in_eval_mode(self, frozen: ActiveLearner) -> None:
        frozen.network.train()
        norms = [m for m in frozen.network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert not any(norm.training for norm in norms)
        assert frozen.network.training

    def test_grad_cam_needs_no_gradients_of_weights(self, frozen: ActiveLearner) -> None:
        network = frozen.network.eval()
        images, classes = pictures(channels=1), torch.arange(4)
        maps = grad_cam(network, images, classes)
        network.requires_grad_(True)
        torch.testing.assert_close(maps, grad_cam(network, images, classes))
        assert maps.amax() == 1


@pytest.mark.parametrize("architecture", MODELS)
def test_grad_cam_is_the_class_activation_map(architecture: str) -> None:
    """Where a mean over positions and one linear layer follow the last stage, the two are equal."""
    network = build(architecture)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # so that one batch is enough; without, nearly nothing passes
    network.train()(pictures())
    network.eval()
    stages, _, *_ = network.backbone.children()  # up to where it is pooled
    stage = stages(pictures()).detach()
    assert stage.shape[2:] == (2, 2)
    weights = network.classifier.weight.detach()
    evidence = torch.einsum("bkhw,bk->bhw", stage, weights).relu().unsqueeze(1)
    expected = torch.nn.functional.interpolate(evidence, (SIZE, SIZE), mode="bilinear")[:, 0]
    expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-12)
    found = grad_cam(network, pictures(), torch.arange(4))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found.std() > 0


def test_grad_cam_of_a_vision_transformer() -> None:
    transformer = torchvision.models.VisionTransformer(32, 8, 2, 2, 12, 24, num_classes=12)
    transformer.heads = nn.Identity()
    nn.init.normal_(transformer.encoder.layers[1].mlp[0].weight)
    network = build("small_cnn").eval()
    network.backbone, network.classifier = transformer.eval(), nn.Linear(12, 4)
    maps = grad_cam(network, pictures(size=32), torch.arange(4))
    assert maps.shape == (4, 32, 32)
    assert maps.std() > 0  # tokens of the last block's output have no gradient, its input's have


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [
            ("squeezenet1_1", 64, "does not end in one linear layer"),
            ("mobilenet_v2", 28, "64 pixels or more, not 28; raise image_size, or take"),
            ("inception_v3", 64, r"does not take images of 64 pixels .*need image_size: 224"),
        ],
    )
    def test_what_cannot_be_split(self, name: str, size: int, message: str) -> None:
        with pytest.raises(UserError, match=f"^torchvision:{name} .*{message}"):
            check_torchvision_backbone(name, size)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"architecture": "resnet19"}, r"architecture: 'resnet19' is unknown \(did you mean"),
            ({"architecture": "torchvision:nothing"}, "is unknown"),
            ({"architecture": "torchvision:resnet18"}, "64 pixels or more, not 8"),
            ({"pretrained": True}, "no ImageNet weights for small_cnn"),
            ({"freeze_backbone": True}, "freeze_backbone: true would keep the random weights"),
            (
                {"architecture": "resnet18", "pretrained": True, "freeze_backbone": True},
                "stem of resnet18 .* take vgg16 or torchvision:resnet18",
            ),
        ],
    )
    def test_hyperparameters(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            Hyperparameters.from_mapping(small_values(**changes))


def test_shrinking_leaves_frozen_weights() -> None:
    network, fresh = build("small_cnn"), build("small_cnn", seed=1)
    network.backbone.requires_grad_(False)
    before = {k: v.clone() for k, v in network.named_parameters()}
    shrink_and_perturb(network, fresh, 0.5, 0.1)
    for name, parameter in network.named_parameters():
        if name != "classifier.bias":  # which is zero in both
            assert torch.equal(parameter, before[name]) == name.startswith("backbone."), name
