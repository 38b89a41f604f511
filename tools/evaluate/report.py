"""Lays out the HTML report of an evaluation: what it shows, in what order, with what words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import torch
from torch import Tensor

from reporting import prediction_figures as figures
from reporting.figures import learning_curve
from reporting.forecast import forecast
from reporting.galleries import CLASSES, Predictions, attention, mistakes
from reporting.html_page import bullets, cards, details, name, note, page, plot, table
from reporting.intervals import Estimate
from reporting.measures import ECE_BINS, PER_CLASS, confidence_bins
from reporting.numbers import estimate_text, interval_text, value_text
from reporting.pool_map import pool_map
from reporting.tile_sheet import contact_sheet
from run_folder.reader import Run
from tools.evaluate.measure import Evaluation, group_accuracies
from tools.evaluate.tables import CLASS_SCORES, SCORES

SPLIT_NAMES = {"val": "validation", "test": "test"}
MAP_POINTS = 333  # of each kind; t-SNE takes seconds for these, and minutes for a whole pool
SHEET_IMAGES = 20  # of each round's contact sheet
SHEETS = 10  # rounds of which images are shown, at most
CONFUSIONS = 15  # pairs of classes listed
GROUPS = 50  # listed, those with the lowest accuracy


def html_report(run: Run, evaluation: Evaluation) -> str:
    """The whole report, one self-contained HTML document."""
    title = f"{run.splits.name}: evaluation on the {SPLIT_NAMES[evaluation.split]} split"
    return page(title, _summary(run, evaluation), _sections(run, evaluation))


def _sections(run: Run, evaluation: Evaluation) -> list[tuple[str, str]]:
    """Title and HTML of each section."""
    names = run.splits.class_names
    labels = evaluation.store.labels
    confidence, predicted = evaluation.probabilities.max(1)
    predictions = Predictions(
        evaluation.store.images, labels, predicted, confidence, names, evaluation.store.sources
    )
    rounds = [row for row in run.metrics if "val_accuracy" in row]
    sections = [
        ("Classes", _classes(evaluation, names)),
        ("Confusions", _confusions(evaluation, names)),
        ("Learning curves", _learning_curves(run, rounds)),
        ("Losses", _losses(run)),
        ("Classes by round", _class_curves(rounds, names)),
        ("ROC curves", _roc_curves(evaluation, names)),
        ("Calibration", _calibration(evaluation)),
        ("Queries", _queries(run)),
        ("Map of the pool", _map(run)),
        ("Most confident mistakes", _mistakes(predictions)),
        ("Where the network looks", _attention(run, predictions)),
    ]
    if evaluation.groups is not None:
        sections.insert(2, ("Groups", _groups(evaluation)))
    return sections


def _summary(run: Run, evaluation: Evaluation) -> str:
    labelled, pool = len(run.pool.labelled), len(run.splits.train)
    lines = [
        f"{len(evaluation.store)} images, {run.splits.num_classes} classes; network "
        f"{run.hp.architecture}, checkpoint {run.uuid}, written after round {run.round} "
        f"(rounds count from 0; validation loss {run.val_loss:.3f}). The best round of this run is "
        f"the one with the {_extreme(run)} {run.description.goal.metric}.",
        f"{labelled} of {pool} training images labelled ({labelled / pool:.1%}), chosen by "
        f"{run.hp.query_strategy}; seed {run.seed}.",
        "Intervals hold with 95 % confidence: Wilson's for shares, DeLong's variance for AUC, a "
        "bias-corrected bootstrap for Brier score and calibration error. They tell how much "
        "another draw of images would change a figure, not how much another training run would.",
    ]
    if evaluation.groups is not None:
        count = len(evaluation.groups.names)
        lines.append(
            f"Images of one group vary together; the intervals count {count} groups, not images."
        )
    if evaluation.split == "test":
        lines.append("Test figures are reported only: nothing was chosen or fitted by them.")
    else:
        lines.append(
            "The checkpoint and the temperature were chosen on this split, so its figures flatter "
            "a little; the test split is for reporting."
        )
    rows = [[escape(title), _cell(evaluation.scores[one])] for one, title in SCORES.items()]
    reading = (
        "Balanced accuracy is the mean recall. The Brier score, 0 to 2, and the calibration error, "
        "0 to 1, are better when lower."
    )
    return bullets(map(escape, lines)) + table(["measure", "value"], rows) + note(reading)


def _extreme(run: Run) -> str:
    return "lowest" if run.description.goal.smaller_is_better else "highest"


def _classes(evaluation: Evaluation, names: Sequence[str]) -> str:
    scores = evaluation.class_scores
    support = evaluation.confusion.sum(1).tolist()
    rows = [
        [name(one), str(support[c]), *(_cell(scores[score][c]) for score in PER_CLASS)]
        for c, one in enumerate(names)
    ]
    means = ("macro_precision", "balanced_accuracy", "macro_f1", "auc")
    total = str(len(evaluation.store))
    rows.append(["mean", total, *(_cell(evaluation.scores[one]) for one in means)])
    return (
        note(
            "Precision: of the images called a class, the share that is of it. Recall: of the "
            "images of a class, the share that is called it. Bars are 95 % intervals."
            + _of_many(len(names), figures.BARS, "with the lowest recall are drawn")
        )
        + plot(
            figures.precision_and_recall(scores["precision"], scores["recall"], names),
            "Precision and recall of each class; the table below has the numbers.",
        )
        + table(["class", "images", *CLASS_SCORES.values()], rows)
    )


def _confusions(evaluation: Evaluation, names: Sequence[str]) -> str:
    counts = evaluation.confusion
    errors = counts - torch.diag(counts.diagonal())
    order = errors.flatten().argsort(descending=True, stable=True)[:CONFUSIONS].tolist()
    rows = []
    for true, called in (divmod(cell, len(names)) for cell in order):
        count, images = int(errors[true, called]), int(counts[true].sum())
        if count:
            share = f"{count / images:.0%} of {images}"
            rows.append([name(names[true]), name(names[called]), str(count), share])
    most = "No image was confused."
    if rows:
        most = "The most frequent confusions are listed below it."
    return (
        note(
            "Numbers of images; the shade is the share of the true class, the row."
            + _of_many(len(names), figures.CELLS - 1, "with the most errors have rows of their own")
        )
        + plot(figures.confusion_matrix(counts, names), f"Confusion matrix. {most}")
        + (
            table(["true class", "called", "images", "share of the class"], rows, names=2)
            if rows
            else note(most)
        )
    )


def _groups(evaluation: Evaluation) -> str:
    groups = group_accuracies(evaluation)
    rows = [[name(one), str(images), _cell(accuracy)] for one, images, accuracy in groups[:GROUPS]]
    few = (
        f" The {GROUPS} least accurate of {len(groups)} are listed." if len(groups) > GROUPS else ""
    )
    return note(
        "Accuracy in each group of images that the split keeps together, such as the images of a "
        f"patient or of a slide; the least accurate first.{few}"
    ) + table(["group", "images", "accuracy"], rows)


def _learning_curves(run: Run, rounds: Sequence[Mapping[str, float]]) -> str:
    columns = {
        "labeled_samples": "labels",
        "val_accuracy": "validation accuracy",
        "val_auc": "validation AUC",
        "test_accuracy": "test accuracy",
        "test_auc": "test AUC",
    }
    return (
        note(
            "Accuracy and AUC after each round, as the run measured them; the test curve is only "
            "reported."
        )
        + plot(
            learning_curve(rounds, run.path.name),
            f"Accuracy and AUC against labelled images. {_course(rounds)}",
        )
        + forecast_note(rounds)
        + _rounds_table(rounds, columns)
    )


def forecast_note(rounds: Sequence[Mapping[str, float]]) -> str:
    """What more labels would gain, as HTML; empty after too few rounds for a forecast."""
    labels, accuracy = (
        np.array([row[column] for row in rounds]) for column in ("labeled_samples", "val_accuracy")
    )
    expected = forecast(labels, accuracy)
    if expected is None:
        return ""
    return note(f"{expected.text()}. This continues a power law through the last rounds.")


def _course(rounds: Sequence[Mapping[str, float]]) -> str:
    """The learning curve in a sentence."""
    first, last = rounds[0], rounds[-1]
    return (
        f"Validation accuracy goes from {first['val_accuracy']:.3f} with "
        f"{first['labeled_samples']:.0f} labels to {last['val_accuracy']:.3f} with "
        f"{last['labeled_samples']:.0f}."
    )


def _rounds_table(rounds: Sequence[Mapping[str, float]], columns: Mapping[str, str]) -> str:
    """The numbers of a curve by round, to be opened."""
    rows = [
        [
            f"{row['round']:.0f}",
            *(
                "" if one not in row else f"{row[one]:.0f}" if one == "labeled_samples"
                else f"{row[one]:.4f}"
                for one in columns
            ),
        ]
        for row in rounds
    ]  # fmt: skip
    return details("The numbers", table(["round", *columns.values()], rows))


def _losses(run: Run) -> str:
    rows = [row for row in run.metrics if "val_loss" in row]
    columns = {"train_loss": "training loss", "val_loss": "validation loss"}
    return (
        note(
            "The training loss is on augmented images and includes label smoothing; the validation "
            "loss is on images as they are. Compare their courses, not their heights."
        )
        + plot(figures.losses(run.metrics), "Training and validation loss of each round.")
        + _rounds_table(rows, columns)
    )


def _class_curves(rounds: Sequence[Mapping[str, float]], names: Sequence[str]) -> str:
    if not any(one.startswith("val_recall_") for row in rounds for one in row):
        return "<p>This run was written by a version that did not record them.</p>"
    return note(
        "Precision and recall of each class, as the run measured them on its validation images "
        "after each round; in brackets, the labels spent on images of the class."
        + _of_many(len(names), figures.PANELS, "with the lowest recall at the end are drawn")
    ) + plot(
        figures.class_curves(rounds, names),
        "Precision and recall of each class by round; metrics.csv in the run folder has the "
        "numbers.",
    )


def _roc_curves(evaluation: Evaluation, names: Sequence[str]) -> str:
    areas = evaluation.class_scores["class_auc"]
    return note(
        "Each class against all others."
        + _of_many(len(names), figures.CURVES, "with the smallest areas are drawn")
    ) + plot(
        figures.roc_curves(evaluation.probabilities, evaluation.store.labels, areas, names),
        "ROC curves; the table of classes has the areas below them.",
    )


def _calibration(evaluation: Evaluation) -> str:
    fitted = ", the one shown here" if evaluation.split == "val" else ""
    before, after = (evaluation.scores[one] for one in ("ece", "ece_calibrated"))
    return (
        note(
            f"Predictions in {ECE_BINS} bins of confidence. Where bars stay below the dashed line "
            "the network is surer than it is right. One temperature, "
            f"{evaluation.temperature:.3f}, divides all logits; it is fitted on the validation "
            f"split{fitted}."
        )
        + plot(
            figures.reliability(
                evaluation.probabilities, evaluation.calibrated, evaluation.store.labels
            ),
            "Reliability diagrams before and after temperature scaling. Calibration error before: "
            f"{estimate_text(before)}, after: {estimate_text(after)}.",
        )
        + details("The numbers after scaling", _bins_table(evaluation))
    )


def _bins_table(evaluation: Evaluation) -> str:
    """Confidence and accuracy of each bin that holds images, after temperature scaling."""
    confidence, predicted = evaluation.calibrated.max(1)
    right = (predicted == evaluation.store.labels).double()
    bins = confidence_bins(confidence)
    rows = []
    for number in range(ECE_BINS):
        members = bins == number
        if members.any():
            rows.append(
                [
                    f"{number / ECE_BINS:.2f} to {(number + 1) / ECE_BINS:.2f}",
                    str(int(members.sum())),
                    f"{float(confidence[members].mean()):.3f}",
                    f"{float(right[members].mean()):.3f}",
                ]
            )
    return table(["confidence", "images", "mean confidence", "accuracy"], rows)


def _queries(run: Run) -> str:
    """The class mix and a contact sheet of every round."""
    train = run.splits.train
    answered = [row for row in run.queries if row["label"]]  # people may skip images
    rounds, indices, labels = (
        torch.tensor([int(row[one]) for row in answered]) for one in ("round", "index", "label")
    )
    counts = torch.zeros(int(rounds.max()) + 1, train.num_classes, dtype=torch.int64)
    counts.index_put_((rounds, labels), torch.tensor(1), accumulate=True)
    pool = torch.bincount(train.labels[train.labels >= 0], minlength=train.num_classes)
    content = note(
        "Images of each class that the rounds asked for; the shade is the share of the round. The "
        "last column is the make-up of the whole pool, which a random draw would have. Below, some "
        f"of the images of up to {SHEETS} rounds; queries.csv in the run folder lists all of them "
        "with their files."
    ) + plot(
        figures.class_mix(counts, train.class_names, pool), _mix_in_words(counts, train.class_names)
    )
    last = len(counts) - 1
    for round_ in sorted({number * last // (SHEETS - 1) for number in range(SHEETS)}):
        chosen = rounds == round_
        sheet = contact_sheet(
            train.images[indices[chosen]], labels[chosen], train.class_names,
            f"Round {round_}: queried images", SHEET_IMAGES,
        )  # fmt: skip
        content += plot(sheet, f"Some of the images queried in round {round_}, with their classes.")
    return content


def _mix_in_words(counts: Tensor, names: Sequence[str]) -> str:
    """The largest class of the last rounds' queries."""
    first = max(0, len(counts) - SHEETS)
    most = [
        f"round {round_}: {names[int(row.argmax())]} ({int(row.max())} of {int(row.sum())})"
        for round_, row in enumerate(counts[first:], start=first)
    ]
    return f"Classes queried in each round; the most queried one in {'; '.join(most)}."


def _map(run: Run) -> str:
    picture = pool_map(
        run.splits.train.images,
        run.pool.acquired_round,
        run.round,
        run.inference,
        run.splits.class_names,
        run.seed,
        MAP_POINTS,
    )
    return note(
        f"Embeddings of training images, at most {MAP_POINTS} drawn of each kind, brought into the "
        "plane by t-SNE: images that lie close together are alike to the network; distances "
        "between groups mean nothing."
        + _of_many(run.splits.num_classes, figures.CURVES, "that are predicted most have colours")
    ) + plot(
        picture,
        "Two-dimensional map of embeddings, once by what is labelled and once by predicted class.",
    )


def _mistakes(predictions: Predictions) -> str:
    wrong = mistakes(predictions)
    if not wrong:
        return "<p>No mistakes on this split.</p>"
    return note(
        "Each beside the most confident right example of its own class, and of the class it was "
        "taken for. mistakes.csv lists all mistakes with their files."
        + _first_classes(predictions.class_names)
    ) + cards(wrong)


def _attention(run: Run, predictions: Predictions) -> str:
    return note(
        "Grad-CAM for the predicted class: yellow is evidence for it, dark blue is none. The most "
        "confident right and wrong prediction of each class."
        + _first_classes(predictions.class_names)
    ) + cards(attention(predictions, run.inference))


def _first_classes(names: Sequence[str]) -> str:
    return f" The first {CLASSES} classes are shown." if len(names) > CLASSES else ""


def _of_many(classes: int, most: int, which: str) -> str:
    """A sentence where a diagram cannot show all classes."""
    return f" Of {classes} classes, the {most} {which}." if classes > most else ""


def _cell(estimate: Estimate) -> str:
    return (
        f'{value_text(estimate)} <span class="interval">{interval_text(estimate)}</span>'
    ).replace(' <span class="interval"></span>', "")
