"""Lays out the HTML report of an evaluation: what it shows, in what order, with what words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import torch

from reporting import prediction_figures as figures
from reporting.figures import contact_sheet, learning_curve
from reporting.galleries import CLASSES, Predictions, attention, mistakes
from reporting.html_page import cards, page, plot, section, table
from reporting.measures import ECE_BINS, Estimate
from reporting.pool_map import pool_map
from run_folder.reader import Run
from tools.evaluate.measure import RESAMPLES, Evaluation

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
SHEET_IMAGES = 20  # of each round's contact sheet


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
    wrong = mistakes(predictions)
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
            "Precision and recall against labels spent",
            "Of each class, as the run measured them on its validation images after each round; in "
            "brackets, the labels spent on images that turned out to be of the class.",
            plot(figures.class_curves(rounds, names), "precision and recall of each class by round")
            if any(name.startswith("val_recall_") for row in rounds for name in row)
            else "<p>This run was written by a version that did not record them.</p>",
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
            plot(
                pool_map(
                    run.splits.train.images,
                    run.pool.acquired_round,
                    run.round,
                    run.inference,
                    names,
                    run.seed,
                    MAP_POINTS,
                ),
                "two-dimensional map of embeddings",
            ),
        ),
        section(
            "Most confident mistakes",
            "Each beside the most confident right example of its own class, and of the class it "
            f"was taken for.{few}",
            cards(wrong) if wrong else "<p>No mistakes on this split.</p>",
        ),
        section(
            "Where the network looks",
            "Grad-CAM for the predicted class: yellow is evidence for it, dark blue is none. The "
            f"most confident right and wrong prediction of each class.{few}",
            cards(attention(predictions, run.inference)),
        ),
    ]


def _summary(run: Run, evaluation: Evaluation) -> str:
    labelled, pool = len(run.pool.labelled), len(run.splits.train)
    lines = [
        f"{len(evaluation.store)} images, {run.splits.num_classes} classes; network "
        f"{run.hp.architecture}, checkpoint {run.uuid}, written after round {run.round} "
        f"(rounds count from 0; validation loss {run.val_loss:.3f}).",
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
    """Note and content: the class mix and a contact sheet of every round."""
    train = run.splits.train
    rounds = torch.tensor([int(row["round"]) for row in run.queries])
    indices = torch.tensor([int(row["index"]) for row in run.queries])
    labels = torch.tensor([int(row["label"]) for row in run.queries])
    counts = torch.zeros(int(rounds.max()) + 1, train.num_classes, dtype=torch.int64)
    counts.index_put_((rounds, labels), torch.tensor(1), accumulate=True)
    pool = torch.bincount(train.labels, minlength=train.num_classes)
    content = plot(
        figures.class_mix(counts, train.class_names, pool), "classes queried in each round"
    )
    for round_ in range(len(counts)):
        chosen = rounds == round_
        sheet = contact_sheet(
            train.images[indices[chosen]], labels[chosen], train.class_names,
            f"Round {round_}: queried images", SHEET_IMAGES,
        )  # fmt: skip
        content += plot(sheet, f"images queried in round {round_}")
    note = (
        "Images of each class that the rounds asked for; the shade is the share of the round. The "
        "last column is the make-up of the whole pool, which a random draw would have. Below, some "
        "of the images; the run folder has larger sheets."
    )
    return note, content
