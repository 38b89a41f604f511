"""The network: its shape, its two halves and its dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from errors import UserError
from resnet_custom import SplitNetwork, dropout_masks, rotated


def build(architecture: str = "resnet18", seed: int = 0, channels: int = 3) -> SplitNetwork:
    return SplitNetwork(architecture, 9, channels, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("architecture", "size", "parameters"),
    # torchvision's counts, less the 7x7 stem and the 1000-way head, plus the 3x3 stem and ours;
    # VGG: of its features alone (138,365,992 with three linear layers of 123,642,856).
    [
        ("resnet18", 512, 11_173_449),
        ("resnet34", 512, 21_281_609),
        ("resnet50", 2048, 23_518_793),
        ("small_resnet", 128, 308_697),
        ("small_cnn", 64, 20_073),
        ("vgg16", 512, 14_727_753),
    ],
)
def test_shapes(architecture: str, size: int, parameters: int) -> None:
    network = build(architecture).eval()
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    embeddings = network.embed(images)
    assert embeddings.shape == (2, size) == (2, network.embedding_size)
    assert network.head(embeddings).shape == (2, 9)
    assert torch.equal(network(images), network.head(embeddings))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_stem_keeps_the_grid() -> None:
    modules = dict(build().backbone.named_modules())
    stem, pool = modules["conv1"], modules["maxpool"]
    assert isinstance(stem, nn.Conv2d)
    assert stem.kernel_size == (3, 3)
    assert pool(stem(torch.zeros(1, 3, 28, 28))).shape == (1, 64, 28, 28)


def test_grey_images() -> None:
    assert build(channels=1)(torch.zeros(2, 1, 28, 28)).shape == (2, 9)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "resnet50"])
def test_residual_branches_start_at_zero(architecture: str) -> None:
    network = build(architecture)
    last = "bn3" if architecture == "resnet50" else "bn2"
    norms = [m for name, m in network.named_modules() if name.endswith(last)]
    assert norms
    assert all(not norm.weight.any() for norm in norms)


def test_weights_come_from_the_generator_alone() -> None:
    state = torch.get_rng_state()
    one, same, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(state, torch.get_rng_state())
    for (name, a), b, c in zip(
        one.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        if name.endswith("conv1.weight") or name == "classifier.weight":
            assert not torch.equal(a, c), name


def test_initialise_clears_batchnorm() -> None:
    network = build()
    network(torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert network.state_dict()["backbone.bn1.running_mean"].any()
    network.initialise(torch.Generator().manual_seed(0))
    assert not network.state_dict()["backbone.bn1.running_mean"].any()
    assert network.state_dict()["backbone.bn1.num_batches_tracked"] == 0


def test_dropout_masks() -> None:
    masks = dropout_masks(200, 500, 0.3, torch.Generator().manual_seed(0))
    assert masks.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (masks == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_dropout_acts_as_torchs() -> None:
    network = build()
    embeddings = torch.randn(5, 512, generator=torch.Generator().manual_seed(0))
    mask = dropout_masks(5, 512, 0.5, torch.Generator().manual_seed(1))
    expected = nn.functional.linear(
        embeddings * mask, network.classifier.weight, network.classifier.bias
    )
    assert torch.equal(network.head(embeddings, mask), expected)


def test_monte_carlo_logits_are_passes_of_the_head() -> None:
    network = build()
    embeddings = torch.randn(7, 512, generator=torch.Generator().manual_seed(0))
    masks = dropout_masks(4, 512, 0.5, torch.Generator().manual_seed(1))
    passes = network.monte_carlo_logits(embeddings, masks)
    assert passes.shape == (4, 7, 9)
    for mask, logits in zip(masks, passes, strict=True):
        torch.testing.assert_close(logits, network.head(embeddings, mask), atol=1e-5, rtol=1e-5)


def test_four_quarter_turns_are_a_full_turn() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    assert rotated(image, 0).equal(image)
    assert rotated(image, 1).flatten().tolist() == [2, 5, 8, 1, 4, 7, 0, 3, 6]
    turned = image
    for _ in range(4):
        turned = rotated(turned, 1)
    assert turned.equal(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_over_rotations(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    network = SplitNetwork("small_resnet", 9, channels, generator, average_rotations=True)
    images = torch.randn(3, channels, 12, 12, generator=generator)
    network(images)  # moves BatchNorm's statistics
    network.eval()
    embeddings = network.embed(images)
    turned = [network.embed_upright(rotated(images, turns)) for turns in range(4)]
    torch.testing.assert_close(embeddings, torch.stack(turned).mean(0))
    logits = torch.stack([network.head(one) for one in turned])
    torch.testing.assert_close(network(images), logits.mean(0))
    for turns in range(4):
        torch.testing.assert_close(network.embed(rotated(images, turns)), embeddings)
    assert not torch.allclose(turned[0], embeddings, atol=1e-3)


def test_training_does_not_average_over_rotations() -> None:
    images = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    one, other = (
        SplitNetwork("small_resnet", 9, 3, torch.Generator().manual_seed(0), average_rotations=on)
        for on in (False, True)
    )
    assert torch.equal(one(images), other(images))


def test_pretrained_without_network_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"put https://.*resnet18.*\.pth into .*checkpoints"):
        SplitNetwork("resnet18", 9, 3, torch.Generator(), pretrained=True)


def test_pretrained_weights_are_taken_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    import torchvision

    donor = torchvision.models.resnet18()
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: donor.state_dict())
    network = SplitNetwork("resnet18", 9, 1, torch.Generator().manual_seed(0), pretrained=True)
    name = "layer3.1.conv2.weight"
    assert torch.equal(network.backbone.state_dict()[name], donor.state_dict()[name])
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 9)
