"""Refuses hyperparameters that are each allowed but do not make sense together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from errors import UserError
from query_strategies import get_strategy
from resnet_custom import check_architecture

if TYPE_CHECKING:
    from training.hyperparameters import Hyperparameters


def check_together(hp: Hyperparameters) -> None:
    """Raise UserError on the first two hyperparameters that do not go together."""
    _check_sizes(hp)
    _check_uncertainty(hp)
    if hp.class_balanced_batches and hp.class_weighted_loss:
        raise UserError(
            "hyperparameters.class_weighted_loss: true, and class_balanced_batches: true as "
            "well, would make up for rare classes twice; set one of them false"
        )
    _check_annotators(hp)
    _check_network(hp)
    _check_strategy(hp)


def _check_sizes(hp: Hyperparameters) -> None:
    if hp.initial_labeled_size > hp.label_budget:
        raise UserError(
            f"hyperparameters.initial_labeled_size: {hp.initial_labeled_size} is more than "
            f"label_budget: {hp.label_budget}; lower it, or raise the budget"
        )
    if hp.validation_fraction + hp.test_fraction > 0.95:
        raise UserError(
            f"hyperparameters.validation_fraction: {hp.validation_fraction} and "
            f"test_fraction: {hp.test_fraction} leave nothing to train on; lower them"
        )
    if 0 < hp.candidate_pool_size < hp.largest_query:
        raise UserError(
            f"hyperparameters.candidate_pool_size: {hp.candidate_pool_size} candidates are "
            f"fewer than the {hp.largest_query} images that samples_to_label and query_growth "
            "ask for; raise it, or set 0 for all"
        )
    if hp.crop_padding >= hp.image_size:
        raise UserError(
            f"hyperparameters.crop_padding: {hp.crop_padding} pixels are no less than the "
            f"image's {hp.image_size}; lower it"
        )


def _check_annotators(hp: Hyperparameters) -> None:
    for name in ("label_noise", "expert_share"):
        if getattr(hp, name) and hp.oracle == "people":
            raise UserError(
                f"hyperparameters.{name}: {getattr(hp, name)} is for simulated annotators, and "
                f"oracle: people make their own mistakes; set {name}: 0"
            )
    first_round = hp.initial_labeled_size * hp.seconds_per_label / 60
    if 0 < hp.minutes_budget < first_round:
        raise UserError(
            f"hyperparameters.minutes_budget: {hp.minutes_budget} minutes do not pay for the "
            f"initial_labeled_size: {hp.initial_labeled_size} labels of the first round, which "
            f"take {first_round:.1f}; raise it, or lower initial_labeled_size"
        )


def _check_uncertainty(hp: Hyperparameters) -> None:
    if hp.uncertainty == "mc_dropout" and hp.dropout == 0:
        raise UserError(
            "hyperparameters.dropout: 0 makes all Monte Carlo passes the same; "
            "raise it, or set uncertainty: softmax"
        )
    varied = hp.flips_and_rotations or hp.crop_padding or hp.colour_jitter
    if hp.uncertainty == "test_time_augmentation" and not varied:
        raise UserError(
            "hyperparameters.uncertainty: test_time_augmentation has nothing to vary without "
            "flips_and_rotations, crop_padding or colour_jitter; set one, or mc_dropout"
        )


def _check_strategy(hp: Hyperparameters) -> None:
    try:
        strategy = get_strategy(hp.query_strategy, hp.prefilter_factor)
    except ValueError as error:
        raise UserError(f"hyperparameters.query_strategy: {error}") from None
    if strategy.stochastic and hp.uncertainty == "softmax":
        raise UserError(
            f"hyperparameters.uncertainty: softmax gives {hp.query_strategy} no second "
            "opinion to compare; set mc_dropout, test_time_augmentation or another "
            "query_strategy"
        )
    if strategy.largest_query is not None and hp.largest_query > strategy.largest_query:
        raise UserError(
            f"hyperparameters.samples_to_label: {hp.largest_query} in the largest query is more "
            f"than {hp.query_strategy} can choose at a time, {strategy.largest_query}; lower it, "
            "or query_growth"
        )


def _check_network(hp: Hyperparameters) -> None:
    try:
        architecture = check_architecture(hp.architecture, hp.image_size)
    except UserError as error:
        raise UserError(f"hyperparameters.architecture: {error}") from None
    if hp.pretrained and architecture.imagenet is None:
        raise UserError(
            "hyperparameters.pretrained: there are no ImageNet weights for "
            f"{hp.architecture}; set false, or another architecture"
        )
    if hp.pretrained and hp.pretrained_backbone != "none":
        raise UserError(
            f"hyperparameters.pretrained_backbone: {hp.pretrained_backbone} and pretrained: "
            "true both say what to start from; set one of them to none or false"
        )
    if hp.pretrained_backbone != "none" or hp.self_supervised_steps:
        return  # the whole backbone is learnt before the first round, its stem included
    if hp.freeze_backbone and not hp.pretrained:
        raise UserError(
            "hyperparameters.freeze_backbone: true would keep the random weights of "
            f"{hp.architecture} for good; set it false, or pretrained: true"
        )
    if hp.freeze_backbone and architecture.custom_stem:
        raise UserError(
            f"hyperparameters.freeze_backbone: the small-image stem of {hp.architecture} has "
            "no ImageNet weights and must be trained; set false, or take vgg16 or "
            f"torchvision:{hp.architecture}"
        )
