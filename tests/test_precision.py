"""What GPUs of several generations need, tested on any machine: number types, float16, TF32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from active_learning import ActiveLearner
from data import Splits
from run_folder.checkpoint import restore_checkpoint
from run_folder.description import Goal, RunDescription
from run_folder.tables import MetricsTable
from run_folder.writer import RunFolder
from tests.conftest import ask
from training.precision import (
    compute_dtype,
    fastest_cpu_dtype,
    fastest_gpu_dtype,
    float32_products,
    gradient_scaler,
)

Build = Callable[..., ActiveLearner]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), torch.float32),  # Pascal
        ((7, 0), torch.float16),  # Volta
        ((7, 5), torch.float16),  # Turing
        ((8, 0), torch.bfloat16),  # Ampere
        ((9, 0), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_a_gpu_computes_in_the_type_that_it_multiplies(
    capability: tuple[int, int], expected: torch.dtype
) -> None:
    assert fastest_gpu_dtype(capability) == expected
    assert gradient_scaler(expected, CPU).is_enabled() == (expected == torch.float16)


def test_a_cpu_computes_in_bfloat16_only_where_it_has_it() -> None:
    assert fastest_cpu_dtype(["fpu", "avx512_bf16"]) == torch.bfloat16
    assert fastest_cpu_dtype(["fpu", "avx512f", "avx512_fp16"]) == torch.float32


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_a_precision_that_is_asked_for_is_taken(precision: str) -> None:
    assert compute_dtype(precision, CPU) == getattr(torch, precision)


# --- float16 --------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def overflowing(learner: ActiveLearner) -> None:
    """Set a scale with which float16 gradients are infinite."""
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 2.0**40})


def test_float16_trains_with_a_scaled_loss(make_learner: Build) -> None:
    learner, reference = (make_learner(precision=name) for name in ("float16", "float32"))
    for one in (learner, reference):
        ask(one)
        one.train()
    assert learner.compute_dtype == torch.float16
    assert learner.scaler.get_scale() == 2.0**16
    assert learner.step == reference.step
    (loss, _, count), (expected, _, _) = (one.meter.take().tolist() for one in (learner, reference))
    assert loss / count == pytest.approx(expected / count, rel=0.02)  # of the loss as it is


def test_a_step_whose_gradients_are_infinite_is_skipped(make_learner: Build) -> None:
    learner = make_learner(precision="float16")
    ask(learner)
    overflowing(learner)
    before = {name: value.clone() for name, value in learner.network.named_parameters()}
    learner.train_step()
    assert learner.step == 1
    assert learner.scaler.get_scale() == 2.0**39
    assert same(dict(learner.network.named_parameters()), before)
    assert bool(learner.meter.take().isfinite().all())  # no reason to end the run
    for _ in range(30):
        learner.scaler.update(learner.scaler.get_scale() / 2)
    learner.train_step()
    assert not same(dict(learner.network.named_parameters()), before)


def test_a_float16_run_resumes_exactly(make_learner: Build, digits: Splits, tmp_path: Path) -> None:
    """Also with a scale that a skipped step has changed."""
    learner = make_learner(precision="float16")
    description = RunDescription.of_trial(learner, digits, Goal())
    config = {"hyperparameters": learner.hp.resolved()}
    folder = RunFolder.create(tmp_path / "run", config, description, numbered=False)
    ask(learner)
    overflowing(learner)
    learner.train()
    learner._end_round(0, {"loss": 0.5, "accuracy": 0.5})
    folder.save_checkpoint(learner, MetricsTable(), "")
    checkpoint = folder.latest_checkpoint()
    assert checkpoint is not None
    resumed = make_learner(precision="float16")
    restore_checkpoint(checkpoint, resumed)
    assert resumed.scaler.get_scale() == learner.scaler.get_scale() == 2.0**37
    for one in (learner, resumed):
        ask(one)
        one.train()
    assert same(resumed.network.state_dict(), learner.network.state_dict())
    assert same(resumed.scaler.state_dict(), learner.scaler.state_dict())


def test_float16_self_supervision_continues_exactly(make_learner: Build) -> None:
    settings = {
        "precision": "float16", "self_supervised_steps": 4, "self_supervised_batch_size": 16,
    }  # fmt: skip
    whole, parts = (make_learner(**settings).pretraining for _ in range(2))
    assert whole is not None
    assert parts is not None
    for one in (whole, parts):
        one.train_step()
        one.train_step()
    again = make_learner(**settings).pretraining
    assert again is not None
    again.load(parts.save())
    for one in (whole, again):
        one.train_step()
        one.train_step()
    assert same(again.backbone, whole.backbone)
    assert same(again._scaler.state_dict(), whole._scaler.state_dict())
    assert 1 < again._scaler.get_scale() < 2.0**16  # the first steps were skipped


# --- TF32 -----------------------------------------------------------------------------------------


def tf32_flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(params=[(False, True), (True, False)])
def flags(request: pytest.FixtureRequest) -> Iterator[tuple[bool, bool]]:
    """Flags that somebody else has set for the process."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = tf32_flags()
    matmul.allow_tf32, cudnn.allow_tf32 = request.param
    yield request.param
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_used_as_asked_and_nowhere_else(
    tf32: bool, flags: tuple[bool, bool], make_learner: Build
) -> None:
    learner = make_learner(tf32=tf32, self_supervised_steps=1, self_supervised_batch_size=16)
    seen: list[tuple[bool, bool]] = []

    def backward(loss: Tensor) -> None:
        seen.append(tf32_flags())
        loss.backward()

    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda *_: seen.append(tf32_flags())
    )
    try:
        learner.pretrain()
        ask(learner)
        learner.train_step(backward)
        learner._scorer.embeddings(learner.train_store.images, torch.arange(3), "")
    finally:
        hook.remove()
    assert len(seen) > 10
    assert set(seen) == {(tf32, tf32)}
    assert tf32_flags() == flags


def test_tf32_is_off_again_after_an_error(flags: tuple[bool, bool]) -> None:
    with pytest.raises(ValueError, match="x"), float32_products(True):
        raise ValueError("x")
    assert tf32_flags() == flags


# --- no wait for the device -----------------------------------------------------------------------

# Operations that have to bring a value from the device to the host.
WAITING = {
    "aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero",
    "aten::masked_select", "aten::equal", "aten::unique_dim", "aten::_unique2", "aten::bincount",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Collects the names of all operations that run on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("balanced", [False, True])
def test_no_training_step_waits_for_the_device(
    precision: str, balanced: bool, make_learner: Build
) -> None:
    """The optimizer's own step is left out: on a GPU it is fused and waits for nothing."""
    learner = make_learner(precision=precision, class_weighted_loss=balanced, batches_per_round=4)
    ask(learner)
    learner.train_step()  # plans the round, and makes the optimizer's state
    with Operations() as operations:
        learner.train_step(step_optimizer=lambda optimizer, scaler: scaler.unscale_(optimizer))
    assert "aten::mm" in operations.names or "aten::addmm" in operations.names
    assert not operations.names & WAITING
