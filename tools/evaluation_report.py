"""Lays out the HTML report of an evaluation: what it shows, in what order, with what words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from reporting import evaluation_figures as figures
from reporting.figures import learning_curve
from reporting.galleries import CLASSES, Predictions, attention, mistakes
from reporting.html_page import page, plot, section, table
from reporting.measures import ECE_BINS, Estimate
from tools.evaluation import RESAMPLES, Evaluation
from tools.run_reader import Run
from training.seeds import derive_seed, make_generator

SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC, mean over classes",
    "macro_precision": "precision, mean over classes",
    "macro_recall": "recall, mean over classes",
    "macro_f1": "F1, mean over classes",
    "brier": "Brier score",
    "brier_calibrated": "Brier score, temperature-scaled",
    "ece": "calibration error",
    "ece_calibrated": "calibration error, scaled",
}
SPLIT_NAMES = {"val": "validation", "test": "test"}
MAP_POINTS = 333  # of each kind; t-SNE takes seconds for these, and minutes for a whole pool
PRINCIPAL_COMPONENTS = 50  # that t-SNE is given, as van der Maaten & Hinton 2008 do


def html_report(run: Run, evaluation: Evaluation) -> str:
    """The whole report, one self-contained HTML document."""
    title = f"{run.splits.name}: evaluation on the {SPLIT_NAMES[evaluation.split]} split"
    return page(title, [_summary(run, evaluation), *_sections(run, evaluation)])


def _sections(run: Run, evaluation: Evaluation) -> list[str]:
    names = run.splits.class_names
    scores = evaluation.class_scores
    labels = evaluation.store.labels
    confidence, predicted = evaluation.probabilities.max(1)
    predictions = Predictions(evaluation.store.images, labels, predicted, confidence, names)
    rounds = [row for row in run.metrics if "val_accuracy" in row]
    few = f" The first {CLASSES} classes are shown." if len(names) > CLASSES else ""
    return [
        section(
            "Learning curves",
            "Accuracy and AUC after each round, as the run measured them; the test curve is only "
            "reported.",
            plot(learning_curve(rounds, run.path.name), "accuracy and AUC against labelled images"),
        ),
        section(
            "Loss",
            "The training loss is on augmented images and includes label smoothing, the validation "
            "loss is on images as they are; they compare in their course, not in their height.",
            plot(figures.losses(run.metrics), "training and validation loss of each round"),
        ),
        section(
            "Confusion matrix",
            "Numbers of images; the shade is the share of the true class, the row.",
            plot(figures.confusion_matrix(evaluation.confusion, names), "confusion matrix"),
        ),
        section(
            "Precision and recall",
            "Of the images called a class, the share that is of it; of the images of a class, the "
            "share that is found. Bars are 95 % intervals.",
            plot(
                figures.precision_and_recall(scores["precision"], scores["recall"], names),
                "precision and recall of each class with intervals",
            )
            + _class_table(evaluation, names),
        ),
        section(
            "ROC curves",
            "Each class against all others.",
            plot(
                figures.roc_curves(evaluation.probabilities, labels, scores["class_auc"], names),
                "ROC curves of all classes",
            ),
        ),
        section(
            "Reliability",
            f"Predictions in {ECE_BINS} bins of confidence. Where bars stay below the dashed line "
            "the network is surer than it is right. One temperature, "
            f"{evaluation.temperature:.3f}, divides all logits; it is fitted on the validation "
            "split" + (", the one shown here." if evaluation.split == "val" else "."),
            plot(
                figures.reliability(evaluation.probabilities, evaluation.calibrated, labels),
                "reliability diagrams before and after temperature scaling",
            ),
        ),
        section("What was queried", *_queries(run)),
        section(
            "Map of the pool",
            f"Embeddings of training images, at most {MAP_POINTS} drawn of each kind, brought into "
            "the plane by t-SNE: what lies close together the network finds alike; distances "
            "between groups mean nothing.",
            plot(_map(run), "two-dimensional map of embeddings"),
        ),
        section(
            "Most confident mistakes",
            "Each beside the most confident right example of its own class, and of the class it "
            f"was taken for.{few}",
            mistakes(predictions),
        ),
        section(
            "Where the network looks",
            "Grad-CAM for the predicted class: yellow is evidence for it, dark blue is none. The "
            f"most confident right and wrong prediction of each class.{few}",
            attention(predictions, run.inference),
        ),
    ]


def _summary(run: Run, evaluation: Evaluation) -> str:
    labelled, pool = len(run.pool.labelled), len(run.splits.train)
    lines = [
        f"{len(evaluation.store)} images, {run.splits.num_classes} classes; network "
        f"{run.hp.architecture}, checkpoint {run.uuid}, written after round {run.round} "
        f"(rounds count from 0, the random first draw; validation loss {run.val_loss:.3f}).",
        f"{labelled} of {pool} training images labelled ({labelled / pool:.1%}), chosen by "
        f"{run.hp.query_strategy}; seed {run.seed}.",
        f"Intervals: 95 %, from {RESAMPLES} bootstrap resamples of the images. They tell how much "
        "another draw of images would change a figure, not how much another training run would.",
    ]
    if evaluation.split == "test":
        lines.append("Test figures are reported only: nothing was chosen or fitted by them.")
    else:
        lines.append(
            "The checkpoint and the temperature were chosen on this split, so its figures flatter "
            "a little; the test split is for reporting."
        )
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    rows = [[escape(title), _cell(evaluation.scores[name])] for name, title in SCORES.items()]
    notes = (
        "Balanced accuracy is the mean recall. The Brier score, 0 to 2, and the calibration error, "
        "0 to 1, are better when lower. Resampling inflates calibration errors, so their intervals "
        "lean upwards."
    )
    return f'<ul>{items}</ul>\n<p class="note">{notes}</p>\n{table(["measure", "value"], rows)}'


def _class_table(evaluation: Evaluation, names: Sequence[str]) -> str:
    scores = evaluation.class_scores
    rows = [
        [
            escape(name),
            str(int(evaluation.confusion[c].sum())),
            *(_cell(scores[one][c]) for one in ("precision", "recall", "f1", "class_auc")),
        ]
        for c, name in enumerate(names)
    ]
    means = (evaluation.scores[f"macro_{one}"] for one in ("precision", "recall", "f1"))
    total = str(len(evaluation.store))
    rows.append(["mean", total, *(_cell(one) for one in means), _cell(evaluation.scores["auc"])])
    return table(["class", "images", "precision", "recall", "F1", "AUC"], rows)


def _cell(estimate: Estimate) -> str:
    if estimate.value != estimate.value:
        return "&ndash;"
    interval = f"[{estimate.low:.3f}, {estimate.high:.3f}]"
    return f'{estimate.value:.3f} <span class="interval">{interval}</span>'


def _queries(run: Run) -> tuple[str, str]:
    """Note and content: the class mix of every round, and the run's contact sheets."""
    classes = run.splits.num_classes
    rounds = 1 + max(int(row["round"]) for row in run.queries)
    counts = torch.zeros(rounds, classes, dtype=torch.int64)
    for row in run.queries:
        counts[int(row["round"]), int(row["label"])] += 1
    pool = torch.bincount(run.splits.train.labels, minlength=classes)
    mix = figures.class_mix(counts, pool, run.splits.class_names)
    content = plot(mix, "classes queried in each round")
    for round_ in range(rounds):
        sheet = run.path / f"queried_round_{round_:02d}.png"
        if sheet.exists():
            content += plot(sheet.read_bytes(), f"images queried in round {round_}")
    note = (
        "Images of each class that the rounds asked for; the shade is the share of the round. The "
        "last column is the make-up of the whole pool, which a random draw would have."
    )
    return note, content


def _map(run: Run) -> bytes:
    """A t-SNE map of labelled, last queried and unlabelled training images."""
    generator = make_generator(run.seed, "map")
    acquired = run.pool.acquired_round
    last = acquired == run.round
    groups = (last, (acquired >= 0) & ~last, acquired < 0)
    chosen = torch.cat([_draw(group, generator) for group in groups])
    embeddings = run.inference.embed(run.splits.train.images[chosen], "map")
    predicted = run.inference.logits(embeddings).argmax(1).cpu()
    status = (acquired[chosen] >= 0).long() + last[chosen].long()
    points = _plane(embeddings.cpu(), derive_seed(run.seed, "map") % 2**32)
    return figures.embedding_map(points, status, predicted, run.splits.class_names)


def _draw(group: Tensor, generator: torch.Generator) -> Tensor:
    """At most `MAP_POINTS` of the True positions of `group`, drawn at random."""
    positions = group.nonzero().flatten()
    order = torch.randperm(len(positions), generator=generator)
    return positions[order[:MAP_POINTS]]


def _plane(embeddings: Tensor, seed: int) -> Tensor:
    """Embeddings [n, D] as points [n, 2], by PCA and then t-SNE.

    van der Maaten & Hinton 2008, "Visualizing Data using t-SNE".
    """
    components = min(PRINCIPAL_COMPONENTS, *embeddings.shape)
    reduced = PCA(components, random_state=seed).fit_transform(embeddings.numpy())
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return torch.from_numpy(points)
