"""The pictures that each round sends to TensorBoard: what is among them, and their bounds."""

from __future__ import annotations

import dataclasses
import io
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from active_learning import Evaluation
from local.observer import LocalObserver
from local.run import Request, run_locally
from reporting import round_pictures
from reporting.round_pictures import PictureSchedule, RoundEnd, RoundPictures
from resnet_custom import SplitNetwork
from tests.conftest import ROOT, SMALL
from training.inference import Inference

NAMES = {
    "queried", "queried_classes", "map_of_the_pool", "confusion_matrix", "precision_and_recall",
    "roc_curves", "reliability", "mistakes", "grad_cam",
}  # fmt: skip


def made_up(classes: int, pool: int = 300, val: int = 200) -> RoundEnd:
    """Two rounds of a third of the pool each, random images and random predictions."""
    generator = torch.Generator().manual_seed(0)
    network = SplitNetwork("small_cnn", classes, 3, generator).eval()
    rounds = torch.arange(pool) % 3 - 1
    labels = torch.randint(0, classes, (pool,), generator=generator)
    return RoundEnd(
        round=1,
        seed=0,
        class_names=tuple(f"a class with a long name, number {c}" for c in range(classes)),
        val_images=torch.randint(0, 256, (val, 3, 12, 12), dtype=torch.uint8, generator=generator),
        val_labels=torch.arange(val) % classes,
        logits=torch.randn(val, classes, generator=generator),
        pool_images=torch.randint(
            0, 256, (pool, 3, 12, 12), dtype=torch.uint8, generator=generator
        ),
        acquired_round=rounds,
        labels=labels.where(rounds >= 0, -1),
        inference=Inference(network, torch.full((3,), 0.5), torch.ones(3), torch.float32, 64),
    )


def drawn(end: RoundEnd) -> dict[str, bytes]:
    """All pictures by name."""
    pictures = {name: draw() for name, draw in RoundPictures(end).drawers().items()}
    return {name: picture for name, picture in pictures.items() if picture is not None}


@pytest.mark.parametrize("classes", [2, 60])
def test_bounded_whatever_the_number_of_classes(classes: int) -> None:
    pictures = drawn(made_up(classes))
    assert set(pictures) == NAMES
    for name, png in pictures.items():
        with Image.open(io.BytesIO(png)) as image:
            assert image.width * image.height < 1.5e6, name
            assert image.convert("L").getextrema()[0] < 100, name
    assert sum(map(len, pictures.values())) < 1.5e6


def test_nothing_wrong_and_nothing_random() -> None:
    end = made_up(3)
    right = 5.0 * torch.nn.functional.one_hot(end.val_labels, 3)
    end = dataclasses.replace(end, logits=right)
    before = torch.random.get_rng_state()
    first = drawn(end)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert set(first) == NAMES - {"mistakes"}
    assert drawn(end) == first


def test_images_without_a_label_are_left_out() -> None:
    end = made_up(3)
    some = dataclasses.replace(end, val_labels=end.val_labels.clone())
    some.val_labels[150:] = -1
    part = dataclasses.replace(
        end, val_images=end.val_images[:150], val_labels=end.val_labels[:150],
        logits=end.logits[:150],
    )  # fmt: skip
    assert drawn(some) == drawn(part)


class TestSchedule:
    """Pictures take a tenth of the rounds' time; the clock is a made-up one."""

    @pytest.fixture
    def seconds(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """How long each picture takes."""
        clock, cost = [0.0], [1.0]

        def draw() -> bytes:
            clock[0] += cost[0]
            return b""

        class Pictures:
            def __init__(self, end: RoundEnd) -> None:
                pass

            def drawers(self) -> dict[str, Callable[[], bytes]]:
                return dict.fromkeys("abcd", draw)

        monkeypatch.setattr(round_pictures, "RoundPictures", Pictures)
        monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
        return cost

    def rounds(self, count: int, round_seconds: float) -> list[str]:
        schedule, end = PictureSchedule(), made_up(2, pool=30, val=20)
        return [
            "".join(
                name for name, _ in schedule.draw(dataclasses.replace(end, round=r), round_seconds)
            )
            for r in range(count)
        ]

    def test_long_rounds_draw_all(self, seconds: list[float]) -> None:
        assert self.rounds(3, 40) == ["abcd"] * 3

    def test_short_rounds_take_turns_and_pay_back(self, seconds: list[float]) -> None:
        drawn_in_rounds = self.rounds(41, 5)
        assert "".join(drawn_in_rounds) == ("abcd" * 6)[: len("".join(drawn_in_rounds))]
        assert len("".join(drawn_in_rounds)) == pytest.approx(0.1 * 5 * 41, abs=1)

    def test_what_is_done_with_a_picture_counts(self, seconds: list[float]) -> None:
        schedule, end = PictureSchedule(), made_up(2, pool=30, val=20)
        seconds[0] = 4.0
        assert [name for name, _ in schedule.draw(end, 30)] == ["a"]
        assert [name for name, _ in schedule.draw(end, 30)] == []
        assert [name for name, _ in schedule.draw(end, 30)] == ["b"]

    def test_pictures_that_are_drawn_in_any_case_count(self, seconds: list[float]) -> None:
        schedule, end = PictureSchedule(), made_up(2, pool=30, val=20)
        with schedule.counted():
            round_pictures.RoundPictures(end).drawers()["a"]()
        assert [name for name, _ in schedule.draw(end, 10)] == []
        assert [name for name, _ in schedule.draw(end, 10)] == ["a"]
        assert (schedule.spent, schedule.rounds_took) == (2.0, 20)


def test_one_event_file_for_a_run_and_one_for_each_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A real run that is interrupted after its first round; pictures are among its events."""
    settings = {**SMALL, "tensorboard_pictures": True, "evaluation_size": 0}
    run = tmp_path / "run"
    request = Request(
        ROOT / "configs" / "digits.yaml",
        output_dir=run,
        settings=tuple(f"hyperparameters.{name}={value}" for name, value in settings.items()),
    )
    monkeypatch.setattr(round_pictures, "SHARE", 1e3)
    evaluated = LocalObserver.evaluated

    def interrupted(observer: LocalObserver, evaluation: Evaluation) -> None:
        evaluated(observer, evaluation)
        raise KeyboardInterrupt

    with caplog.at_level(logging.INFO):
        with monkeypatch.context() as patch:
            patch.setattr(LocalObserver, "evaluated", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_locally(request)
        assert run_locally(dataclasses.replace(request, resume=run)) == 0
    first, second = sorted((run / "tensorboard").iterdir())
    for file, rounds in ((first, 1), (second, 2)):
        events = EventAccumulator(str(file))
        events.Reload()
        assert len(events.Scalars("validation/val_accuracy")) == rounds
        assert events.Tags()["images"]
    told = [record.message for record in caplog.records if "pictures have taken" in record.message]
    assert len(told) == 3
