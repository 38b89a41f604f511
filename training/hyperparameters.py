"""Every hyperparameter: its name, type and allowed values. Its value stands in YAML only.

There are no defaults here. A hyperparameter that is missing, unknown, of the wrong type or out of
range is refused by name, before any data is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from errors import UserError
from query_strategies import get_strategy
from resnet_custom import RESNETS, SMALL, check_architecture
from training.label_noise import KINDS


def nearest(name: str, known: tuple[str, ...]) -> str:
    """ " (did you mean ...?)" for a misspelt `name`, or nothing where none of `known` is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def number(low: float, high: float = math.inf) -> Any:
    """A field that takes numbers from `low` to `high`, both included."""
    return dataclasses.field(metadata={"low": low, "high": high})


def choice(*allowed: str) -> Any:
    """A field that takes one of `allowed`."""
    return dataclasses.field(metadata={"allowed": allowed})


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Validated hyperparameters of one trial. What each one does is said in config.yaml."""

    seed: int = number(-1, 2**31 - 1)

    dataset: str
    data_dir: str
    image_size: int = number(8, 512)
    split_seed: int = number(0)
    validation_fraction: float = number(0.01, 0.9)
    test_fraction: float = number(0.01, 0.9)

    architecture: str
    pretrained: bool
    freeze_backbone: bool
    dropout: float = number(0.0, 0.95)
    pretrained_backbone: str
    self_supervised_steps: int = number(0)
    self_supervised_batch_size: int = number(2)
    self_supervised_learning_rate: float = number(1e-8, 10.0)

    batch_size: int = number(2)
    batches_per_round: int = number(1)
    learning_rate: float = number(1e-8, 10.0)
    weight_decay: float = number(0.0, 10.0)
    warmup_fraction: float = number(0.0, 0.9)
    label_smoothing: float = number(0.0, 0.9)
    class_balanced_batches: bool
    class_weighted_loss: bool
    flips_and_rotations: bool
    crop_padding: int = number(0, 64)
    colour_jitter: float = number(0.0, 0.9)
    stain_jitter: float = number(0.0, 0.9)
    precision: str = choice("auto", "bfloat16", "float32")
    compile: bool
    reporting_period: int = number(1)
    evaluation_size: int = number(0)
    tensorboard_pictures: bool

    rounds: int = number(1)
    initial_labeled_size: int = number(1)
    initial_pool: str = choice("random", "network_embeddings", "pixels")
    samples_to_label: int = number(1)
    label_budget: int = number(1)
    between_rounds: str = choice("keep", "shrink_and_perturb", "reset")
    shrink_factor: float = number(0.0, 1.0)
    perturb_scale: float = number(0.0, 1.0)

    stop_at_val_accuracy: float = number(0.0, 1.0)
    stop_after_rounds_without_gain: int = number(0)
    stop_below_uncertainty: float = number(0.0)

    label_noise: float = number(0.0, 1.0)
    label_noise_kind: str = choice(*KINDS)
    seconds_per_label: float = number(0.0)

    query_strategy: str
    uncertainty: str = choice("mc_dropout", "test_time_augmentation", "softmax")
    uncertainty_passes: int = number(2, 1000)
    prefilter_factor: int = number(1, 10_000)
    candidate_pool_size: int = number(0)
    scoring_batch_size: int = number(1)

    EXAMPLES: ClassVar[dict[type, str]] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
    }

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Hyperparameters:
        """Check `values`, as they stand under `hyperparameters:` in YAML.

        Raises:
            UserError: on the first one that cannot be used.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                hint = nearest(str(name), tuple(fields))
                remedy = "correct or remove it" if hint else f"known are {', '.join(fields)}"
                raise UserError(f"hyperparameters.{name}: unknown{hint}; {remedy}")
        missing = [name for name in fields if name not in values]
        if missing:
            raise UserError(
                f"hyperparameters.{missing[0]}: missing; give it a value as config.yaml does"
            )
        checked = {name: _checked(field, values[name]) for name, field in fields.items()}
        hyperparameters = cls(**checked)
        hyperparameters._check_together()
        return hyperparameters

    def _check_together(self) -> None:
        """Refuse values that are allowed one by one and make no sense together."""
        if self.initial_labeled_size > self.label_budget:
            raise UserError(
                f"hyperparameters.initial_labeled_size: {self.initial_labeled_size} is more than "
                f"label_budget: {self.label_budget}; lower it, or raise the budget"
            )
        if self.validation_fraction + self.test_fraction > 0.95:
            raise UserError(
                f"hyperparameters.validation_fraction: {self.validation_fraction} and "
                f"test_fraction: {self.test_fraction} leave nothing to train on; lower them"
            )
        if self.uncertainty == "mc_dropout" and self.dropout == 0:
            raise UserError(
                "hyperparameters.dropout: 0 makes all Monte Carlo passes the same; "
                "raise it, or set uncertainty: softmax"
            )
        varied = self.flips_and_rotations or self.crop_padding or self.colour_jitter
        if self.uncertainty == "test_time_augmentation" and not varied:
            raise UserError(
                "hyperparameters.uncertainty: test_time_augmentation has nothing to vary without "
                "flips_and_rotations, crop_padding or colour_jitter; set one, or mc_dropout"
            )
        if self.class_balanced_batches and self.class_weighted_loss:
            raise UserError(
                "hyperparameters.class_weighted_loss: true, and class_balanced_batches: true as "
                "well, would make up for rare classes twice; set one of them false"
            )
        self._check_network()
        try:
            strategy = get_strategy(self.query_strategy, self.prefilter_factor)
        except ValueError as error:
            raise UserError(f"hyperparameters.query_strategy: {error}") from None
        if strategy.stochastic and self.uncertainty == "softmax":
            raise UserError(
                f"hyperparameters.uncertainty: softmax gives {self.query_strategy} no second "
                "opinion to compare; set mc_dropout, test_time_augmentation or another "
                "query_strategy"
            )
        if strategy.largest_query is not None and self.samples_to_label > strategy.largest_query:
            raise UserError(
                f"hyperparameters.samples_to_label: {self.samples_to_label} is more than "
                f"{self.query_strategy} can choose at a time, {strategy.largest_query}; lower it"
            )
        if 0 < self.candidate_pool_size < self.samples_to_label:
            raise UserError(
                f"hyperparameters.candidate_pool_size: {self.candidate_pool_size} candidates are "
                f"fewer than samples_to_label: {self.samples_to_label}; raise it, or set 0 for all"
            )
        if self.crop_padding >= self.image_size:
            raise UserError(
                f"hyperparameters.crop_padding: {self.crop_padding} pixels are no less than the "
                f"image's {self.image_size}; lower it"
            )

    def _check_network(self) -> None:
        try:
            check_architecture(self.architecture, self.image_size)
        except UserError as error:
            raise UserError(f"hyperparameters.architecture: {error}") from None
        if self.pretrained and self.architecture in SMALL:
            raise UserError(
                "hyperparameters.pretrained: there are no ImageNet weights for "
                f"{self.architecture}; set false, or another architecture"
            )
        if self.pretrained and self.pretrained_backbone != "none":
            raise UserError(
                f"hyperparameters.pretrained_backbone: {self.pretrained_backbone} and pretrained: "
                "true both say what to start from; set one of them to none or false"
            )
        if self.pretrained_backbone != "none" or self.self_supervised_steps:
            return  # all of the backbone is learnt before the first round, the stem too
        if self.freeze_backbone and not self.pretrained:
            raise UserError(
                "hyperparameters.freeze_backbone: true would keep the random weights of "
                f"{self.architecture} for good; set it false, or pretrained: true"
            )
        if self.freeze_backbone and self.architecture in RESNETS:
            raise UserError(
                f"hyperparameters.freeze_backbone: the small-image stem of {self.architecture} has "
                "no ImageNet weights and must be trained; set false, or take vgg16 or "
                f"torchvision:{self.architecture}"
            )

    def check_ranks(self, ranks: int) -> None:
        """Raise UserError where `ranks` data-parallel processes cannot share a batch evenly."""
        for name in ("batch_size", "self_supervised_batch_size"):
            size = getattr(self, name)
            if size % ranks:
                raise UserError(
                    f"hyperparameters.{name}: {size} cannot be shared by {ranks} processes; "
                    f"make it a multiple of {ranks}"
                )

    def query_sizes(self, pool_size: int) -> tuple[int, ...]:
        """How many images each round labels: until rounds, budget or pool are used up.

        Raises:
            UserError: the first round or the budget asks for more than the pool holds.
        """
        for name in ("initial_labeled_size", "label_budget"):
            if getattr(self, name) > pool_size:
                raise UserError(
                    f"hyperparameters.{name}: {getattr(self, name)} is more than the {pool_size} "
                    f"training images of {self.dataset}; lower it"
                )
        sizes = [self.initial_labeled_size]
        while len(sizes) < self.rounds and sum(sizes) < self.label_budget:
            sizes.append(min(self.samples_to_label, self.label_budget - sum(sizes)))
        return tuple(sizes)


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """`value` in the type of `field`, or UserError."""
    wanted = {"int": int, "float": float, "bool": bool, "str": str}[str(field.type)]
    fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise UserError(
            f"hyperparameters.{field.name}: {value!r} is not "
            f"{Hyperparameters.EXAMPLES[wanted]}{_range_text(field)}"
        )
    if "low" in field.metadata and not (
        field.metadata["low"] <= value <= field.metadata["high"] and math.isfinite(value)
    ):
        raise UserError(
            f"hyperparameters.{field.name}: {value!r} is out of range{_range_text(field)}"
        )
    if "allowed" in field.metadata and value not in field.metadata["allowed"]:
        allowed = field.metadata["allowed"]
        raise UserError(
            f"hyperparameters.{field.name}: {value!r} is unknown{nearest(value, allowed)}; "
            f"allowed are {', '.join(allowed)}"
        )
    return wanted(value)


def _range_text(field: dataclasses.Field[Any]) -> str:
    if "allowed" in field.metadata:
        return f"; allowed are {', '.join(field.metadata['allowed'])}"
    if "low" not in field.metadata:
        return ""
    low, high = field.metadata["low"], field.metadata["high"]
    return f"; give at least {low}" + ("" if high == math.inf else f", at most {high}")
