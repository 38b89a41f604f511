"""run.json: what a run is about. It is enough to use the run's network without the run's data."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from active_learning import ActiveLearner
from data import Splits
from errors import UserError
from run_folder.names import DESCRIPTION, FORMAT
from training.hyperparameters import Hyperparameters

# What reading a damaged JSON or CSV file raises.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class Goal:
    """The validation metric that chooses the best round, as the searcher's configuration says."""

    metric: str = "val_loss"
    smaller_is_better: bool = True

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Goal:
        """The goal of an experiment configuration; the lowest validation loss where it has none."""
        searcher = config.get("searcher") or {}
        metric = str(searcher.get("metric", cls.metric))
        return cls(metric, bool(searcher.get("smaller_is_better", True)))

    def best(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The entry whose value of the metric is best; the first of equals."""
        return min(entries, key=lambda one: self.cost(one.get(self.metric)))

    def cost(self, value: float | None) -> float:
        """A number that is lower for a better `value`; infinite for none."""
        if value is None or math.isnan(value):
            return math.inf
        return value if self.smaller_is_better else -value


@dataclass(frozen=True)
class RunDescription:
    """What a run is about.

    dataset, fingerprint: the data set's name, and a digest of its content.
    seed: the trial's.
    settings: every hyperparameter with its value.
    class_names: in the order of the network's outputs.
    image_size, channels, mean, std: what the network takes; mean and std of pixels in [0, 1].
    goal: which metric chooses the best round.
    versions: of torch, where the run began.
    """

    dataset: str
    fingerprint: str
    seed: int
    settings: dict[str, Any]
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    goal: Goal
    versions: dict[str, str]

    @classmethod
    def of_trial(cls, learner: ActiveLearner, splits: Splits, goal: Goal) -> RunDescription:
        """The description of the trial that `learner` runs on `splits`."""
        return cls(
            dataset=splits.name,
            fingerprint=splits.fingerprint(),
            seed=learner.seed,
            settings=learner.hp.resolved(),
            class_names=tuple(splits.class_names),
            image_size=learner.hp.image_size,
            channels=splits.channels,
            mean=tuple(learner.mean.tolist()),
            std=tuple(learner.std.tolist()),
            goal=goal,
            versions={"torch": torch.__version__},
        )

    def to_json(self, progress: Mapping[str, Any] | None = None) -> str:
        """The text of run.json; `progress` adds what a checkpoint or an ended run knows besides."""
        content = {"format": FORMAT, **asdict(self), **(progress or {})}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def difference(
        self, other: RunDescription, may_change: Collection[str] = ("data_dir",)
    ) -> str | None:
        """The first thing in which a resumed run must not differ and does; None if there is none.

        Versions, the goal and the settings in `may_change` may differ: data may move. A setting
        that an older run does not know has its default there.
        """
        defaults = Hyperparameters().resolved()
        mine, theirs = (
            {
                "dataset": one.dataset,
                "seed": one.seed,
                **{
                    f"hyperparameters.{name}": value
                    for name, value in {**defaults, **one.settings}.items()
                    if name not in may_change
                },
                "the data's fingerprint": one.fingerprint,
            }
            for one in (self, other)
        )
        for name in {**mine, **theirs}:
            if mine.get(name) != theirs.get(name):
                return f"{name} was {mine.get(name)!r} and is {theirs.get(name)!r} now"
        return None


def read_description(folder: Path) -> tuple[RunDescription, dict[str, Any]]:
    """The description in `folder`'s run.json, and everything that file holds.

    Raises:
        UserError: there is none, it is damaged, or another version of this package wrote it.
    """
    file = folder / DESCRIPTION
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = int(content["format"])
    except DAMAGE as error:
        raise UserError(
            f"{folder}: not a run or checkpoint ({file.name}: {one_line(error)}); name a folder "
            "that model_def.py has written"
        ) from error
    if version != FORMAT:
        age = "a newer" if version > FORMAT else "an older"
        raise UserError(
            f"{folder}: format {version}, written by {age} version of this package; "
            f"this one reads format {FORMAT}: use that version, or start a new run"
        )
    try:
        description = RunDescription(
            dataset=str(content["dataset"]),
            fingerprint=str(content["fingerprint"]),
            seed=int(content["seed"]),
            settings=dict(content["settings"]),
            class_names=tuple(map(str, content["class_names"])),
            image_size=int(content["image_size"]),
            channels=int(content["channels"]),
            mean=tuple(map(float, content["mean"])),
            std=tuple(map(float, content["std"])),
            goal=Goal(**content["goal"]),
            versions=dict(content["versions"]),
        )
    except DAMAGE as error:
        raise UserError(
            f"{file}: damaged ({one_line(error)}); put it back as it was, or name another run"
        ) from error
    if not len(description.mean) == len(description.std) == description.channels:
        raise UserError(f"{file}: damaged (mean and std are not {description.channels} numbers)")
    return description, content


def one_line(error: BaseException) -> str:
    """`error` as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
