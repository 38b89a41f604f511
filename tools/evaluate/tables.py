"""An evaluation as text: the table for a terminal, and the list of mistakes."""

from __future__ import annotations

from data_sources.names import printable
from reporting.files import csv_text
from reporting.names import padded, shorten
from reporting.numbers import estimate_text
from run_folder.reader import Run
from tools.evaluate.measure import Evaluation, group_accuracies

# Measures of a whole split by their names in `Evaluation.scores`.
SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC, mean over classes",
    "macro_precision": "precision, mean over classes",
    "macro_f1": "F1, mean over classes",
    "brier": "Brier score",
    "brier_calibrated": "Brier score, temperature-scaled",
    "ece": "calibration error",
    "ece_calibrated": "calibration error, scaled",
}
CLASS_SCORES = {"precision": "precision", "recall": "recall", "f1": "F1", "class_auc": "AUC"}
NAME_WIDTH = 32
ESTIMATE_WIDTH = 24
GROUPS = 10  # shown at most
MISTAKE_COLUMNS = ("index", "image", "class", "predicted", "confidence", "class_probability")


def text_table(run: Run, evaluation: Evaluation) -> str:
    """The figures with their 95 % intervals, for a terminal."""
    lines = [
        f"{run.splits.name}, {evaluation.split} split, {len(evaluation.store)} images; "
        f"checkpoint of round {run.round} (the first is 0), {len(run.pool.labelled)} labels; "
        f"temperature {evaluation.temperature:.3f}, fitted on the validation split",
        "",
        f"{'':{NAME_WIDTH}}  value  95 % interval",
    ]
    for name, title in SCORES.items():
        lines.append(f"{title:{NAME_WIDTH}}  {estimate_text(evaluation.scores[name])}")
    header = "".join(f"  {title:{ESTIMATE_WIDTH}}" for title in CLASS_SCORES.values())
    lines += ["", f"{'class':{NAME_WIDTH}}  images{header}".rstrip()]
    support = evaluation.confusion.sum(1).tolist()
    for c, name in enumerate(run.splits.class_names):
        values = "".join(
            f"  {estimate_text(evaluation.class_scores[one][c]):{ESTIMATE_WIDTH}}"
            for one in CLASS_SCORES
        )
        lines.append(f"{_name(name)}  {support[c]:6}{values}".rstrip())
    if evaluation.groups is not None:
        rows = group_accuracies(evaluation)
        lines += ["", f"{'group':{NAME_WIDTH}}  images  accuracy"]
        lines += [
            f"{_name(name)}  {images:6}  {estimate_text(accuracy)}"
            for name, images, accuracy in rows[:GROUPS]
        ]
        if len(rows) > GROUPS:
            lines.append(f"... and {len(rows) - GROUPS} groups with a higher accuracy")
    return "\n".join(lines)


def _name(name: str) -> str:
    return padded(shorten(name, NAME_WIDTH), NAME_WIDTH)


def mistakes_csv(run: Run, evaluation: Evaluation) -> str:
    """Every image that the network got wrong, the most confident mistake first."""
    labels = evaluation.store.labels
    confidence, predicted = evaluation.probabilities.max(1)
    own = evaluation.probabilities.gather(1, labels[:, None]).squeeze(1)
    wrong = (predicted != labels).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)]
    names = [printable(name) for name in run.splits.class_names]
    return csv_text(
        MISTAKE_COLUMNS,
        [
            (
                index,
                printable(evaluation.store.sources[index]),
                names[int(labels[index])],
                names[int(predicted[index])],
                f"{float(confidence[index]):.6f}",
                f"{float(own[index]):.6f}",
            )
            for index in wrong.tolist()
        ],
    )
