"""Every hyperparameter with its default, unit, range, purpose and the reason for its default.

Every default stands here and nowhere else: a YAML file lists what differs. To add a hyperparameter,
declare its field in `Hyperparameters`; `python -m tools.settings` then writes it into
docs/settings.md. What the arguments of a declaration mean is in training/fields.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data_sources.image_file import MAX_PIXELS
from errors import UserError
from training.compatibility import check_together
from training.fields import checked, choice, nearest, number, switch, text
from training.label_noise import KINDS

MOST_IMAGES = 1e9  # a query asks for no more, however it grows


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """The settings of one trial. `from_mapping` makes and checks them."""

    # The first field of each section of docs/settings.md, and the section's title.
    SECTIONS: ClassVar[dict[str, str]] = {
        "seed": "Reproducibility",
        "dataset": "Data",
        "architecture": "Network",
        "batch_size": "Training",
        "precision": "Computing and reporting",
        "rounds": "Active learning",
        "stop_at_val_accuracy": "Stopping early",
        "oracle": "Annotator",
        "query_strategy": "Query",
    }

    seed: int = number(
        -1,
        "Seed of everything random; -1: derived from `reproducibility.experiment_seed`.",
        why="One number, `experiment_seed`, then decides a run. On a cluster each trial derives "
        "another seed from it, so a search sets a fixed one.",
        low=-1,
        high=2**31 - 1,
        fixed_in_search=True,
    )

    dataset: str = text(
        "pathmnist",
        "MedMNIST flag, `folder:NAME` (a folder per class), `hdf5:NAME` or `digits`.",
        why="Tissue tiles of nine classes, 89,996 to label from: large enough for a real pool.",
        fixed_in_search=True,
    )
    data_dir: str = text(
        "data",
        "Folder that the data lie in or are downloaded to.",
        why="Relative to the working directory, so that it serves on and off a cluster. On a "
        "cluster, mount a place there that outlives containers.",
        fixed_in_search=True,
    )
    image_size: int = number(
        28,
        "Width and height of the images; MedMNIST has 28 and 64.",
        why="The size that MedMNIST's published results are for.",
        low=8,
        high=512,
        unit="pixels",
    )
    split_seed: int = number(
        0,
        "Seed of the split of data sets that bring none.",
        why="Apart from `seed`, so that runs with different seeds share one test split.",
        low=0,
        fixed_in_search=True,
    )
    validation_fraction: float = number(
        0.15,
        "Share of the images that validate, for data sets that bring no split.",
        why="A usual share; with 0.15 for the test split it leaves 70 % to label from.",
        low=0.01,
        high=0.9,
        fixed_in_search=True,
    )
    test_fraction: float = number(
        0.15,
        "Share of the images that test, for data sets that bring no split.",
        why="As large as the validation split, so that both are equally precise.",
        low=0.01,
        high=0.9,
        fixed_in_search=True,
    )
    group_by: str = text(
        "",
        "Which images of `folder:NAME` share a split: a regular expression on their paths, or the "
        "name of a CSV file in the folder (columns file and group, split or both); empty: none.",
        why="Only the user knows which images come from one patient or slide.",
        fixed_in_search=True,
    )
    max_pixels: int = number(
        MAX_PIXELS,
        "An image file with more pixels is refused before it is decoded.",
        why="Decoding one then takes a third of a gigabyte and about a second.",
        low=1,
        unit="pixels",
        fixed_in_search=True,
    )

    architecture: str = text(
        "resnet50",
        "resnet18, resnet34, resnet50, small_resnet, small_cnn, vgg16 or `torchvision:NAME`.",
        why="With this recipe it learns more from 300 labels than a ResNet-18 does "
        "(`python -m benchmarks.recipe`). On a CPU take small_resnet.",
    )
    pretrained: bool = switch(
        False,
        "Start from torchvision's ImageNet weights, cached or downloaded.",
        why="Results without it show what the labels alone teach, and no download is needed.",
    )
    freeze_backbone: bool = switch(
        False,
        "Train the head alone, on pretrained features; not for resnet18, -34, -50, whose "
        "stem has no ImageNet weights.",
        why="Without pretrained weights there is nothing worth freezing.",
    )
    dropout: float = number(
        0.2,
        "Probability of dropping a number of the embedding, before the last layer only.",
        why="Monte Carlo dropout samples it, so it must not be 0; a moderate value, because few "
        "labels need every feature.",
        low=0.0,
        high=0.95,
    )
    average_rotations: bool = switch(
        False,
        "Average over the four quarter turns of an image in evaluations and predictions; ignored "
        "without flips_and_rotations.",
        why="Off, because each prediction then costs four passes of the backbone. It raises the "
        "accuracy on the blood cells (`python -m benchmarks.few_labels`).",
    )
    pretrained_backbone: str = text(
        "none",
        "A file written by `python -m tools.pretrain` to start from; or none.",
        why="There is no such file before someone has written it.",
    )
    self_supervised_steps: int = number(
        0,
        "Steps of self-supervision on the unlabelled pool before the first round; 0: off.",
        why="It takes minutes to hours, once. On the blood cells 1,000 steps, with typical first "
        "images, gain about a point at 250 labels (docs/results.md).",
        low=0,
        unit="steps",
    )
    self_supervised_batch_size: int = number(
        256,
        "Unlabelled images per self-supervised step, over all ranks together.",
        why="The network learns to tell each image from the others of its batch. More of them "
        "would teach more, but take more memory.",
        low=2,
        unit="images",
    )
    self_supervised_learning_rate: float = number(
        1e-3,
        "Peak learning rate of self-supervision: one warm-up, one cosine.",
        why="The rate of AdamW that training itself uses.",
        low=1e-8,
        high=10.0,
    )

    self_supervised_seed: int = number(
        0,
        "Seed of self-supervision: of its initial weights, views and batches.",
        why="Apart from `seed`, so that runs with different seeds share one backbone.",
        low=0,
        fixed_in_search=True,
    )

    batch_size: int = number(
        64,
        "Images per optimizer step, over all ranks together.",
        why="Between the small batches that few labels favour and the large ones that a GPU "
        "favours. A batch larger than the labelled set draws images more than once.",
        low=2,
        unit="images",
    )
    batches_per_round: int = number(
        400,
        "Optimizer steps per round, whatever the number of labels.",
        why="Steps instead of passes, so that all rounds and all trials cost the same. With 200 "
        "steps, 250 labels gave a lower accuracy (`python -m benchmarks.few_labels`).",
        low=1,
        unit="steps",
    )
    learning_rate: float = number(
        1e-3,
        "Peak rate of AdamW; each round warms up to it and decays to 0 as a cosine.",
        why="With it a ResNet-50 learns more from 300 labels than with SGD at 0.1 "
        "(`python -m benchmarks.recipe`).",
        low=1e-8,
        high=10.0,
    )
    weight_decay: float = number(
        0.05,
        "Decay of AdamW, on kernels and matrices only.",
        why="Stronger than AdamW's usual 0.01, because few labels are easily learnt by heart.",
        low=0.0,
        high=10.0,
    )
    warmup_fraction: float = number(
        0.15,
        "Share of a round's steps in which the learning rate rises.",
        why="Eases deep networks into a round, whose new labels change the loss at once.",
        low=0.0,
        high=0.9,
    )
    label_smoothing: float = number(
        0.1,
        "Probability that the training target spreads over all classes.",
        why="Keeps a network that sees few labels from growing overconfident (Szegedy et al. "
        "2016, arXiv 1512.00567, use 0.1).",
        low=0.0,
        high=0.9,
    )
    class_balanced_batches: bool = switch(
        False,
        "Draw every labelled class equally often in training batches.",
        why="Off: batches follow the classes as they are labelled. Where some classes are rare, "
        "true raises their recall (`python -m benchmarks.class_balance`).",
    )
    class_weighted_loss: bool = switch(
        False,
        "Weight each image by the inverse of its class's number of labels.",
        why="Off, as `class_balanced_batches` is, which gained more in the same benchmark.",
    )
    flips_and_rotations: bool = switch(
        True,
        "Augment by the 8 symmetries of the square.",
        why="Tissue has no up or down. Set false for images that have, such as radiographs.",
    )
    crop_padding: int = number(
        2,
        "Augment by shifts of at most this many pixels in either direction.",
        why="A fourteenth of 28 pixels; larger images take more.",
        low=0,
        high=64,
        unit="pixels",
    )
    colour_jitter: float = number(
        0.1,
        "Augment brightness, contrast and saturation by up to +- this share.",
        why="Mild: the colour of tissue carries information.",
        low=0.0,
        high=0.9,
    )
    stain_jitter: float = number(
        0.05,
        "Augment the amounts of haematoxylin and eosin by up to +- this share; colour images only.",
        why="The mild setting of Tellez et al. 2018 (doi 10.1109/TMI.2018.2820199).",
        low=0.0,
        high=0.9,
    )

    precision: str = choice(
        "auto",
        "Precision of the network; auto: bfloat16 where the hardware multiplies it, float16 with a "
        "scaled loss on GPUs without it.",
        why="Faster on GPUs and recent CPUs; float32 where the others would only be emulated.",
        allowed=("auto", "bfloat16", "float16", "float32"),
    )
    tf32: bool = switch(
        False,
        "Let NVIDIA GPUs from Ampere on compute the network's float32 products in TF32.",
        why="Exact: float32 is used where it was asked for, or where nothing faster exists.",
    )
    compile: bool = switch(
        False,
        "Run the network through torch.compile.",
        why="It takes minutes to warm up and gained nothing on CPUs; `make bench` measures it.",
    )
    reporting_period: int = number(
        20,
        "Steps between training reports, and the longest wait before a pause.",
        why="Soon enough for a pause, and seldom enough for reports to cost nothing.",
        low=1,
        unit="steps",
    )
    evaluation_size: int = number(
        0,
        "Validation and test images that are evaluated, a fixed random draw; 0: all.",
        why="All, so that figures can be compared with published ones.",
        low=0,
        unit="images",
        fixed_in_search=True,
    )
    tensorboard_pictures: bool = switch(
        True,
        "Write each round's pictures to TensorBoard; false: numbers alone.",
        why="They take under 1.5 MB a round.",
    )

    rounds: int = number(
        10,
        "Rounds of query, label, train and evaluate; a round is an epoch of Determined.",
        why="Enough for a learning curve, and few enough for an annotator to sit through.",
        low=1,
        high=10_000,
        unit="rounds",
        fixed_in_search=True,
    )
    initial_labeled_size: int = number(
        200,
        "Images labelled in the first round, before there is a network to ask.",
        why="About 22 for each of PathMNIST's nine classes, so that none is likely to be missing.",
        low=1,
        unit="images",
        fixed_in_search=True,
    )
    initial_pool: str = choice(
        "random",
        "Which images these are: random, or typical ones of clusters of "
        "network_embeddings or pixels (TypiClust, Hacohen et al. 2022).",
        why="The baseline of the literature, and free.",
        allowed=("random", "network_embeddings", "pixels"),
    )
    samples_to_label: int = number(
        200,
        "Images that the query strategy has labelled in each later round.",
        why="As many as in the first round, which spreads 2,000 labels over ten rounds.",
        low=1,
        unit="images",
        fixed_in_search=True,
    )
    query_growth: float = number(
        1.0,
        "Each query asks for this many times the images of the query before it.",
        why="Equal queries, so that curves of different runs have the same budgets.",
        low=1.0,
        high=4.0,
        fixed_in_search=True,
    )
    label_budget: int = number(
        0,
        "Labels at which the run ends; 0: as many as its rounds ask for.",
        why="`rounds`, `initial_labeled_size` and `samples_to_label` already say how many.",
        low=0,
        unit="labels",
        fixed_in_search=True,
    )
    minutes_budget: float = number(
        0.0,
        "Minutes of annotation: no round begins that would exceed them; 0: no limit.",
        why="The number of labels limits a run; time does where annotators cost differently.",
        low=0.0,
        unit="minutes",
        fixed_in_search=True,
    )
    between_rounds: str = choice(
        "keep",
        "What becomes of the weights when new labels come in.",
        why="Fastest, as each round builds on the last. Resetting makes rounds independent.",
        allowed=("keep", "shrink_and_perturb", "reset"),
    )
    shrink_factor: float = number(
        0.5,
        "For shrink_and_perturb: share of the old weights that is kept.",
        why="Halfway between keeping the weights and drawing them afresh (Ash & Adams 2020, "
        "arXiv 1910.08475).",
        low=0.0,
        high=1.0,
    )
    perturb_scale: float = number(
        0.1,
        "For shrink_and_perturb: share of fresh random weights that is added.",
        why="Small beside the share of old weights, so that what was learnt survives.",
        low=0.0,
        high=1.0,
    )

    stop_at_val_accuracy: float = number(
        0.0,
        "End the run when a round's validation accuracy reaches this; 0: never.",
        why="Off: a search and a comparison need runs of equal length.",
        low=0.0,
        high=1.0,
        fixed_in_search=True,
    )
    stop_after_rounds_without_gain: int = number(
        0,
        "End the run after this many rounds that did not lower the validation loss; 0: never.",
        why="Off: a search and a comparison need runs of equal length.",
        low=0,
        unit="rounds",
        fixed_in_search=True,
    )
    stop_below_uncertainty: float = number(
        0.0,
        "End the run when the pool's mean predictive entropy is below this; 0: never.",
        why="Off: a search and a comparison need runs of equal length.",
        low=0.0,
        unit="nats",
        fixed_in_search=True,
    )

    oracle: str = choice(
        "simulated",
        "Who labels: `simulated` knows the data set's labels; `people` label on a page.",
        why="Methods are compared with labels that are known; `people` is for data without labels.",
        allowed=("simulated", "people"),
        fixed_in_search=True,
    )
    label_noise: float = number(
        0.0,
        "Share of the simulated annotator's labels that are wrong.",
        why="The labels of the data set are taken as they are.",
        low=0.0,
        high=1.0,
        fixed_in_search=True,
    )
    label_noise_kind: str = choice(
        "uniform",
        "Wrong labels go to any other class alike, or by confusion to similar ones.",
        why="Needs no assumption about which classes resemble each other.",
        allowed=KINDS,
        fixed_in_search=True,
    )
    seconds_per_label: float = number(
        5.0,
        "Time that an annotator takes for one label, where it is not measured; counted in "
        "`annotation_minutes`.",
        why="An assumption about one small image; measure your own annotator's.",
        low=0.0,
        unit="seconds",
    )
    expert_share: float = number(
        0.0,
        "A second simulated annotator, the expert, labels again this share of each query: the "
        "labels that the network doubts most; 0: there is no expert.",
        why="One annotator is the usual case.",
        low=0.0,
        high=1.0,
        fixed_in_search=True,
    )
    expert_seconds_per_label: float = number(
        20.0,
        "Time that the expert takes for one label.",
        why="An assumption: four times the time of the first annotator.",
        low=0.0,
        unit="seconds",
    )
    expert_label_noise: float = number(
        0.0,
        "Share of the expert's labels that are wrong.",
        why="The labels of the data set are taken as the expert's.",
        low=0.0,
        high=1.0,
        fixed_in_search=True,
    )

    query_strategy: str = text(
        "spread_margin",
        "Which images are labelled next: a name from query_strategies/.",
        why="Uncertain and different images: as good as `margin` at small queries, better at large "
        "first queries and among near-duplicates (`python -m benchmarks.label_efficiency`).",
    )
    uncertainty: str = choice(
        "mc_dropout",
        "Where a query's class probabilities come from.",
        why="Any number of passes costs one pass of the backbone; test_time_augmentation costs "
        "one each; softmax gives strategies such as bald nothing to compare.",
        allowed=("mc_dropout", "test_time_augmentation", "softmax"),
    )
    uncertainty_passes: int = number(
        10,
        "Sampled heads (mc_dropout) or views (test_time_augmentation) of each image.",
        why="Enough for the passes to disagree visibly; each costs one small matrix product.",
        low=2,
        high=1000,
        unit="passes",
    )
    prefilter_factor: int = number(
        10,
        "uncertainty_diversity, margin_diversity, spread_margin, weighted_k_means and "
        "cluster_margin choose among the query size times this many most uncertain candidates.",
        why="Leaves diversity a choice, and keeps certain images out.",
        low=1,
        high=10_000,
    )
    candidate_pool_size: int = number(
        0,
        "Random unlabelled images that a query scores; 0: all of them.",
        why="All, so that no candidate is missed. On a CPU, where a sweep over the pool takes most "
        "of the time, take some thousands.",
        low=0,
        unit="images",
    )
    scoring_batch_size: int = number(
        512,
        "Images per step when scoring and evaluating; a CPU takes 128 at most.",
        why="Fills a GPU at 28 pixels; larger images need less.",
        low=1,
        unit="images",
    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Hyperparameters:
        """The defaults with `values` in their place, as they stand under `hyperparameters:`.

        Raises:
            UserError: a name is unknown, or a value cannot be used, by itself or with the others.
        """
        hyperparameters = cls(**{name: cls.checked(name, value) for name, value in values.items()})
        if hyperparameters.label_budget == 0:
            hyperparameters = dataclasses.replace(
                hyperparameters, label_budget=hyperparameters.labels_of_all_rounds
            )
        check_together(hyperparameters)
        return hyperparameters

    @classmethod
    def names(cls) -> set[str]:
        """The names of all hyperparameters."""
        return {field.name for field in dataclasses.fields(cls)}

    @classmethod
    def checked(cls, name: str, value: Any) -> Any:
        """`value` in the type of the hyperparameter `name`; a text such as 1e-3 is a number.

        Raises:
            UserError: the name is unknown, or the value has another type or is out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if name not in fields:
            hint = nearest(str(name), fields)
            remedy = "correct or remove it" if hint else f"known are {', '.join(fields)}"
            raise UserError(f"hyperparameters.{name}: unknown{hint}; {remedy}")
        return checked(fields[name], value)

    def resolved(self) -> dict[str, Any]:
        """Every hyperparameter and its value, to be kept with a run and its checkpoints."""
        return dataclasses.asdict(self)

    def differences(self) -> dict[str, Any]:
        """The hyperparameters whose value is not the default."""
        defaults = Hyperparameters().resolved()
        return {name: value for name, value in self.resolved().items() if value != defaults[name]}

    @property
    def averages_rotations(self) -> bool:
        """Whether evaluations and predictions average over rotations."""
        return self.average_rotations and self.flips_and_rotations

    @property
    def labels_of_all_rounds(self) -> int:
        """How many labels the rounds ask for where neither budget nor pool ends them."""
        return sum(self._round_sizes)

    @property
    def largest_query(self) -> int:
        """How many images the largest query asks for where neither budget nor pool ends the run."""
        return max(self._round_sizes[1:], default=self.samples_to_label)

    @property
    def _round_sizes(self) -> list[int]:
        """How many images each round asks for where neither budget nor pool ends the run."""
        sizes, size = [self.initial_labeled_size], float(self.samples_to_label)
        for _ in range(self.rounds - 1):
            sizes.append(round(size))
            size = min(size * self.query_growth, MOST_IMAGES)
        return sizes

    def expert_labels(self, images: int) -> int:
        """How many of the labels of `images` images the expert gives again; in round 0 none."""
        return round(self.expert_share * images)

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
        sizes, left = [], self.label_budget
        for size in self._round_sizes:
            sizes.append(min(size, left))
            left -= sizes[-1]
            if not left:
                break
        return tuple(sizes)

    def check_ranks(self, ranks: int) -> None:
        """Raise UserError where `ranks` data-parallel processes cannot share a batch evenly."""
        for name in ("batch_size", "self_supervised_batch_size"):
            size = getattr(self, name)
            if size % ranks:
                raise UserError(
                    f"hyperparameters.{name}: {size} cannot be shared by {ranks} processes; "
                    f"make it a multiple of {ranks}"
                )
            if ranks > 1 and size == ranks:
                raise UserError(
                    f"hyperparameters.{name}: {size} leaves each of {ranks} processes one image, "
                    f"which batch normalisation cannot learn from; give at least {2 * ranks}"
                )
