"""Learning without labels: views, loss, resuming, and how a run uses the backbone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tools.pretrain
from active_learning import ActiveLearner
from data import Splits
from errors import INTERRUPTED, UserError
from tests.conftest import ROOT, SMALL, ask, small_values
from tests.reliability import processes
from training.backbone_file import backbone_bytes
from training.hyperparameters import Hyperparameters
from training.seeds import make_generator
from training.self_supervision import TEMPERATURE, SelfSupervision, contrastive_loss
from training.views import HUE_JITTER, SMALLEST_CROP, Views, random_part, turn_hue

Build = Callable[..., ActiveLearner]
STEPS = {"self_supervised_steps": 6, "self_supervised_batch_size": 32}


def weights(learner: ActiveLearner) -> dict[str, Tensor]:
    return copy.deepcopy(learner.network.backbone.state_dict())


def work_of(learner: ActiveLearner) -> SelfSupervision:
    assert learner.pretraining is not None
    return learner.pretraining


class TestViews:
    WHOLE = (1.0, 0.5, 0.3, 0.8)  # of the area, square; the place does not matter

    @staticmethod
    def part(batch: Tensor, *draws: float) -> Tensor:
        return random_part(batch, torch.tensor(draws)[:, None].expand(6, len(batch)))

    def test_whole_part_is_the_image_mirrored_and_turned(self) -> None:
        batch = torch.rand(3, 3, 7, 7)
        for mirrored in (False, True):
            for quarters in range(4):
                turned = torch.rot90(batch, quarters, (2, 3))
                expected = turned.flip(3) if mirrored else turned
                view = self.part(batch, *self.WHOLE, 0.5 * mirrored, quarters / 4)
                torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)

    def test_part_is_that_of_the_image_which_was_drawn(self) -> None:
        # Both images rise by one a pixel, downwards and to the right: a part rises more slowly.
        size = 100
        line = torch.arange(float(size))
        batch = torch.stack(
            [line[:, None].expand(size, size), line[None, :].expand(size, size)]
        ).unsqueeze(1)
        # Smallest, square, at the top, to the right, upright.
        down, right = self.part(batch, 0.0, 0.5, 0.0, 1.0, 0.0, 0.0).squeeze(1)
        side = size * SMALLEST_CROP**0.5
        inner = slice(2, -2)
        torch.testing.assert_close(
            down.diff(dim=0)[inner, inner], torch.full((95, 96), side / size), atol=1e-3, rtol=0
        )
        assert down[-1, 50] == pytest.approx(side, abs=1)
        assert right[50, 0] == pytest.approx(size - side, abs=1)
        assert right[50, -1] == pytest.approx(size - 1, abs=1)

    def test_hue_turns_from_red_to_green_and_grey_stays(self) -> None:
        colours = torch.tensor([[0.9, 0.1, 0.1], [0.4, 0.4, 0.4]])[:, :, None, None]
        turned = turn_hue(colours, torch.full((2,), 1 / 3))[:, :, 0, 0]
        expected = torch.tensor([[0.1, 0.9, 0.1], [0.4, 0.4, 0.4]])
        torch.testing.assert_close(turned, expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_parts_make_up_the_batch(self, channels: int) -> None:
        images = torch.randint(0, 256, (9, channels, 8, 8), dtype=torch.uint8)
        indices = torch.tensor([5, 0, 3, 8])

        def view(part: slice) -> Tensor:
            gathered = images[indices[part]]
            return Views(True).gathered(gathered, 4, make_generator(0, "view"), part)

        whole = view(slice(None))
        assert whole.shape == (4, channels, 8, 8)
        assert 0 <= whole.min() <= whole.max() <= 1
        for rank in (0, 1):
            assert torch.equal(view(slice(rank, None, 2)), whole[rank::2])

    def test_two_views_differ_and_upright_ones_stay_so(self) -> None:
        images = torch.zeros(200, 3, 8, 8, dtype=torch.uint8)
        images[:, :, :4] = 255  # light at the top
        generator = make_generator(0, "view")
        one, other = (Views(False).gathered(images, 200, generator) for _ in range(2))
        assert not torch.equal(one, other)
        assert bool((one.diff(dim=2) <= 1e-5).all())
        turned = Views(True).gathered(images, 200, generator)
        assert not bool((turned.diff(dim=2) <= 1e-5).all(dim=3).all())

    def test_colours_vary_by_hue(self) -> None:
        images = torch.tensor([200, 60, 60], dtype=torch.uint8).view(1, 3, 1, 1).expand(99, 3, 8, 8)
        view = Views(False).gathered(images, 99, make_generator(0, "view"))
        green_over_blue = (view[:, 1] - view[:, 2]).flatten(1).mean(1)
        assert green_over_blue.min() < -0.01 < 0.01 < green_over_blue.max()
        assert green_over_blue.abs().max() < 2 * 3.5 * HUE_JITTER


class TestLoss:
    def test_is_the_papers_mean_over_views(self) -> None:
        one, other = torch.randn(2, 5, 4, generator=make_generator(0, "loss"))
        views = [*one, *other]
        losses = []
        for i, view in enumerate(views):
            similarity = [
                float(torch.cosine_similarity(view, other, dim=0)) / TEMPERATURE for other in views
            ]
            others = sum(math.exp(value) for j, value in enumerate(similarity) if j != i)
            losses.append(math.log(others) - similarity[(i + 5) % 10])
        assert float(contrastive_loss(one, other)) == pytest.approx(mean(losses), rel=1e-5)

    def test_is_least_where_views_agree_and_images_differ(self) -> None:
        apart = torch.eye(4)
        same = torch.ones(4, 4)  # collapse, the same answer to all images, is no way out
        assert float(contrastive_loss(apart, 3 * apart)) < 0.05
        assert float(contrastive_loss(same, same)) == pytest.approx(math.log(7))


class TestSteps:
    def test_loss_falls_and_global_randomness_is_left_alone(self, make_learner: Build) -> None:
        before = torch.get_rng_state()
        learner = make_learner(
            self_supervised_steps=60, self_supervised_batch_size=60, warmup_fraction=0.1
        )
        work = work_of(learner)
        losses = []
        while not work.finished:
            for _ in range(10):
                work.train_step()
            losses.append(work.report()["loss"])
        assert losses[-1] < 0.8 * losses[0]
        assert torch.equal(before, torch.get_rng_state())

    def test_each_pass_shows_every_image_once(self, make_learner: Build) -> None:
        work = work_of(make_learner(self_supervised_steps=8, self_supervised_batch_size=30))
        passes: list[list[int]] = [[], []]
        for step, batch in enumerate(work._index_batches()):
            passes[step // 4] += batch.tolist()
        assert sorted(passes[0]) == sorted(passes[1]) == list(range(120))
        assert passes[0] != passes[1]

    def test_going_on_from_any_step_ends_the_same(self, make_learner: Build) -> None:
        whole = make_learner(**STEPS)
        whole.pretrain()
        for stop in (1, 4, 6):
            first, second = make_learner(**STEPS), make_learner(**STEPS)
            while work_of(first).step < stop:
                work_of(first).train_step()
            work_of(second).load(work_of(first).save())
            second.pretrain()
            assert processes.same(weights(second), weights(whole)), stop

    def test_state_of_other_settings_is_refused(self, make_learner: Build) -> None:
        content = work_of(make_learner(**STEPS)).save()
        other = make_learner(**{**STEPS, "weight_decay": 0.5})
        with pytest.raises(UserError, match=r"weight_decay: 0\.5, but self-supervision began with"):
            work_of(other).load(content)

    def test_more_than_the_pool_is_refused(self, make_learner: Build) -> None:
        with pytest.raises(UserError, match="self_supervised_batch_size: 121 is more"):
            make_learner(self_supervised_steps=1, self_supervised_batch_size=121)


class TestInARun:
    def test_first_round_trains_what_was_learnt(self, make_learner: Build) -> None:
        plain, learner = make_learner(), make_learner(**STEPS)
        assert processes.same(weights(plain), weights(learner))
        learner.pretrain()
        learnt = weights(learner)
        for name in ("0.weight", "1.running_mean"):  # convolution and BatchNorm's statistics
            assert not torch.equal(learnt[name], weights(plain)[name])
        head = learner.network.classifier.state_dict()
        assert processes.same(head, plain.network.classifier.state_dict())
        ask(learner)
        assert processes.same(weights(learner), learnt)
        assert learner.pretraining is None

    def test_reset_goes_back_to_what_was_learnt(self, make_learner: Build) -> None:
        def go(learner: ActiveLearner, until: int) -> None:
            while learner.step < until:
                if learner.labels_due:
                    ask(learner)
                learner.train_step()

        learner = make_learner(**STEPS, between_rounds="reset")
        learner.pretrain()
        learnt = weights(learner)
        go(learner, 2)
        resumed = make_learner(**STEPS, between_rounds="reset")
        resumed.load_state(*learner.state())
        resumed.network.load_state_dict(learner.network.state_dict())
        resumed.optimizer.load_state_dict(copy.deepcopy(learner.optimizer.state_dict()))
        for one in (learner, resumed):
            go(one, 3)
            assert not processes.same(weights(one), learnt)
            ask(one)
            one._carry_weights_over(1)
            assert processes.same(weights(one), learnt)
        go(learner, 6)
        go(resumed, 6)
        assert processes.same(weights(learner), weights(resumed))

    def test_what_was_learnt_can_be_frozen(self, make_learner: Build) -> None:
        learner = make_learner(**STEPS, architecture="resnet18", freeze_backbone=True)
        before = weights(learner)
        learner.pretrain()
        learnt = weights(learner)
        assert not torch.equal(before["conv1.weight"], learnt["conv1.weight"])
        ask(learner)
        learner.train_step()
        assert processes.same(weights(learner), learnt)

    def test_state_holds_no_backbone_where_weights_are_kept(self, make_learner: Build) -> None:
        learner = make_learner(**STEPS, between_rounds="keep")
        learner.pretrain()
        assert not any(name.startswith("backbone") for name in learner.state()[0])


class TestFile:
    def test_command_goes_on_and_a_run_starts_from_its_file(
        self, tmp_path: Path, digits: Splits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tools.pretrain, "SAVE_EVERY", 2)
        settings = [f"hyperparameters.{name}={value}" for name, value in SMALL.items()]
        arguments = ["--config", str(ROOT / "configs" / "digits.yaml"), "--steps", "5"]
        arguments += ["--set", *settings, "hyperparameters.self_supervised_batch_size=32"]
        folder = tmp_path / "output"
        folder.mkdir()
        whole, interrupted = folder / "whole.safetensors", folder / "again.safetensors"
        first = [*arguments, "--data-dir", str(tmp_path / "one")]
        assert tools.pretrain.main([*first, "--output", str(whole)]) == 0
        # With a data folder of its own, in which the finished backbone is not.
        arguments += ["--data-dir", str(tmp_path / "other")]

        step = SelfSupervision.train_step

        def cut_off(work: SelfSupervision) -> None:
            if work.step == 3:
                raise KeyboardInterrupt
            step(work)

        with monkeypatch.context() as patch:
            patch.setattr(SelfSupervision, "train_step", cut_off)
            status = tools.pretrain.main([*arguments, "--output", str(interrupted)])
            assert status == INTERRUPTED
        assert not interrupted.exists()
        assert tools.pretrain.main([*arguments, "--output", str(interrupted)]) == 0
        assert processes.same(load_file(interrupted), load_file(whole))
        assert {path.name for path in folder.iterdir()} == {whole.name, interrupted.name}

        values = small_values(**{**STEPS, "self_supervised_steps": 5})
        learner = ActiveLearner(
            Hyperparameters.from_mapping(values),
            digits.train,
            0,
        )
        learner.pretrain()
        started = ActiveLearner(
            Hyperparameters.from_mapping(small_values(pretrained_backbone=str(whole))),
            digits.train,
            0,
        )
        assert processes.same(weights(started), weights(learner))

    def test_what_does_not_fit_is_refused_in_one_line(
        self, tmp_path: Path, make_learner: Build
    ) -> None:
        learner = make_learner()
        file = tmp_path / "backbone.safetensors"
        content = backbone_bytes(weights(learner), learner.hp, 0.0)
        file.write_bytes(content)
        for changes, damage, message in (
            ({"architecture": "resnet18"}, content, "another network .architecture small_cnn"),
            ({}, content[:-9], "cannot be read"),
            ({}, b"", "cannot be read"),
        ):
            file.write_bytes(damage)
            with pytest.raises(UserError, match=message) as error:
                make_learner(pretrained_backbone=str(file), **changes)
            assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="No such file"):
            make_learner(pretrained_backbone=str(tmp_path / "none"))

    def test_two_starts_are_refused(self) -> None:
        changes: dict[str, Any] = {"pretrained": True, "architecture": "resnet18"}
        with pytest.raises(UserError, match="pretrained_backbone: x and pretrained"):
            Hyperparameters.from_mapping(small_values(**changes, pretrained_backbone="x"))


def test_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    there.touch()
    arguments = ["--config", str(ROOT / "configs" / "digits.yaml"), "--output"]
    for more, message in (
        ([str(there)], f"error: --output {there}: exists; name a new file\n"),
        ([str(there / "x")], f"error: --output {there / 'x'}: no folder {there}; make it first\n"),
        ([str(tmp_path / "x")], "error: --steps: 0 of them make no backbone"),
        (
            [str(tmp_path / "x"), "--steps", "-1"],
            "error: hyperparameters.self_supervised_steps: -1",
        ),
    ):
        assert tools.pretrain.main([*arguments, *more]) == 2
        assert capsys.readouterr().err.startswith(message)
