"""The fast ways of training and scoring against the plain ones."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable

import pytest
import torch

# torch.compile imports setuptools, which refuses to come after the standard library's distutils,
# which Determined's command line, run by other tests in this process, may have imported.
import torch.utils.cpp_extension
from torch import Tensor

from active_learning import ActiveLearner
from errors import UserError
from resnet_custom import ARCHITECTURES, SplitNetwork
from tests.conftest import ask, measure
from training import compilation
from training.embedding import Embedder, fold_batch_norms
from training.inference import Inference
from training.optimisation import make_optimizer

Build = Callable[..., ActiveLearner]

compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def trained_a_little(architecture: str) -> SplitNetwork:
    """A network whose BatchNorms do something: statistics, scales and shifts drawn at random."""
    generator = torch.Generator().manual_seed(0)
    network = SplitNetwork(architecture, 5, 3, generator)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return network


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def embed(network: SplitNetwork, dtype: torch.dtype, count: int) -> Tensor:
    inference = Inference(network, torch.full((3,), 0.5), torch.ones(3), dtype, 4)
    return inference.embed(images(count), "test")


def plain(network: SplitNetwork, count: int) -> Tensor:
    network.eval()
    with torch.no_grad():
        found = network.embed(images(count).float() / 255 - 0.5)
    network.train()
    return found


@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
def test_folded_backbone_is_the_same_function(architecture: str) -> None:
    network = trained_a_little(architecture)
    folded = copy.deepcopy(network.backbone).eval()
    fold_batch_norms(folded)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = embed(network, torch.float32, 6)
    expected = plain(network, 6)
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)
    assert network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_folding_costs_bfloat16_no_accuracy() -> None:
    """Against float32, it is no further off than autocast on the whole network."""
    network = trained_a_little("resnet18")
    expected = plain(network, 16)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = plain(network, 16).float()
    found = embed(network, torch.bfloat16, 16)
    assert (found - expected).norm() < 1.5 * (autocast - expected).norm()


def test_embedder_follows_the_network() -> None:
    network = trained_a_little("small_cnn")
    embedder = Embedder(network, torch.float32)
    pixels = images(4).float() / 255 - 0.5
    old = embedder(pixels)
    for value in network.state_dict().values():
        value.mul_(2)
    assert torch.equal(embedder(pixels), old)
    embedder.refresh()
    torch.testing.assert_close(embedder(pixels), plain(network, 4), atol=1e-4, rtol=1e-4)


def test_optimizer_is_adamw() -> None:
    """Whichever implementation of it runs, against the formula (Loshchilov & Hutter, alg. 2)."""
    network = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(network, weight_decay=0.1)
    expected = [p.detach().clone() for p in network.parameters()]
    first = [torch.zeros_like(p) for p in expected]
    second = [torch.zeros_like(p) for p in expected]
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for step in range(1, 4):
        optimizer.zero_grad()
        network(torch.arange(6.0).view(2, 3) + step).square().sum().backward()
        optimizer.step()
        for place, parameter in enumerate(network.parameters()):
            gradient = parameter.grad
            assert gradient is not None
            decay = 0.1 if parameter.ndim > 1 else 0.0
            first[place] = 0.9 * first[place] + 0.1 * gradient
            second[place] = 0.999 * second[place] + 0.001 * gradient.square()
            size = (second[place] / (1 - 0.999**step)).sqrt() + 1e-8
            expected[place] *= 1 - 0.01 * decay
            expected[place] -= 0.01 * first[place] / (1 - 0.9**step) / size
            torch.testing.assert_close(parameter.detach(), expected[place], atol=1e-6, rtol=1e-5)
            expected[place] = parameter.detach().clone()


@compiles
def test_compiled_run_does_what_an_eager_one_does(make_learner: Build) -> None:
    """Steps, scores and metrics, with last batches of other sizes; and the state's names."""
    eager = make_learner(scoring_batch_size=12)
    compiled = make_learner(scoring_batch_size=12, compile=True)
    store = eager.train_store
    for learner in (eager, compiled):
        ask(learner)
    assert list(compiled.network.state_dict()) == list(eager.network.state_dict())
    torch._dynamo.utils.counters.clear()
    for _ in range(eager.hp.batches_per_round):
        eager.train_step()
        compiled.train_step()
        both = zip(eager.network.parameters(), compiled.network.parameters(), strict=True)
        for one, other in both:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    # A compiled run resumes from a checkpoint exactly; the weights have the same names.
    resumed = make_learner(scoring_batch_size=12, compile=True)
    resumed.load_state(*compiled.state())
    resumed.network.load_state_dict(compiled.network.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(compiled.optimizer.state_dict()))
    for learner in (compiled, resumed):
        ask(learner)
        learner.train_step()
    assert torch.equal(resumed.pool.labels, compiled.pool.labels)
    for name, value in compiled.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    # From the same weights and pool, the scores are the same.
    eager.load_state(*compiled.state())
    compiled.network.load_state_dict(eager.network.state_dict())
    assert measure(compiled, store) == pytest.approx(measure(eager, store), rel=1e-4)
    expected, found = eager._score(2), compiled._score(2)
    assert expected.probabilities is not None
    assert found.probabilities is not None
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-5, rtol=1e-4)
    # One graph for a training step and one for scoring, whatever is left for the last batch.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_a_machine_that_cannot_compile_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("no g++\nanywhere")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"compile: true.*no g\+\+ anywhere.*false"):
        compilation.check_compilation(torch.device("cpu"))
