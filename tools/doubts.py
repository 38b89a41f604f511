"""Lists labels that may be wrong, and has people look at them again.

    python -m tools.doubts RUN                    # the 20 most doubtful labels
    python -m tools.doubts RUN --most 50 --ask    # and put them into the next batch

Every label is judged by a classifier that has not seen it: the labelled images' embeddings, of the
network of one checkpoint, are divided into folds, and a logistic regression that is fitted on the
others predicts each fold. Confident learning (Northcutt et al. 2021) then names the labels that
these predictions contradict. The network itself has seen the labels, so labels that it has learnt
by heart stay hidden; the list is a place to begin, not a verdict.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from errors import UserError, exit_status
from tools.run_arguments import add_run_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from run_folder.reader import Run

FOLDS = 5
SEED = 0  # of the division into folds


@dataclass(frozen=True)
class Doubt:
    """A label that may be wrong; probabilities are of the given and of the likelier class."""

    index: int
    source: str
    label: str
    likelier: str
    label_probability: float
    likelier_probability: float


def find_doubts(run: Run, most: int) -> list[Doubt]:
    """The `most` most doubtful labels of the run's pool, the most doubtful first.

    Raises:
        UserError: there are too few labels to judge them by each other.
    """
    from labelling.outcome import corrections
    from reporting.label_errors import suspected_labels

    indices = run.pool.labelled
    labels = run.pool.labels.clone()
    for index, label in corrections(run.path).items():
        labels[index] = label
    labels = labels[indices]
    if len(indices) < 2 * FOLDS or len(labels.unique()) < 2:
        raise UserError(
            f"{run.path}: {len(indices)} labels of {len(labels.unique())} classes are too few to "
            f"judge them by each other; label {2 * FOLDS} images of two classes first"
        )
    embeddings = run.inference.embed(run.splits.train.images[indices], "embedding labelled images")
    probabilities = held_out_probabilities(embeddings.cpu(), labels, len(run.class_names))
    positions, suggested = suspected_labels(probabilities, labels)
    doubts = []
    for position, other in zip(positions.tolist()[:most], suggested.tolist(), strict=False):
        index, label = int(indices[position]), int(labels[position])
        doubts.append(
            Doubt(
                index,
                run.splits.train.sources[index],
                run.class_names[label],
                run.class_names[other],
                float(probabilities[position, label]),
                float(probabilities[position, other]),
            )
        )
    return doubts


def held_out_probabilities(embeddings: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Class probabilities float64 [N, classes], each from a classifier that has not seen its row.

    Args:
        embeddings: float32 [N, D].
        labels: int64 [N].
    """
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = embeddings.numpy(), labels.numpy()
    probabilities = torch.zeros(len(y), classes, dtype=torch.float64)
    for others, fold in KFold(FOLDS, shuffle=True, random_state=SEED).split(x):
        # Strong regularisation: there are more dimensions than labels.
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        rows = torch.from_numpy(fold)
        if len(set(y[others])) == 1:  # the other classes lie in this fold alone
            probabilities[rows, y[others][0]] = 1.0
            continue
        model.fit(x[others], y[others])
        known = torch.from_numpy(model.classes_)  # a rare class may lie in one fold alone
        probabilities[rows[:, None], known] = torch.from_numpy(
            model.predict_proba(x[fold])
        ).double()
    return probabilities


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.doubts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_arguments(parser, checkpoint="last")
    parser.add_argument("--most", type=int, default=20, help="how many to list; default 20")
    parser.add_argument(
        "--ask", action="store_true", help="put them into the next batch of a run of people"
    )
    options = parser.parse_args(arguments)
    return exit_status(lambda: list_doubts(options))


def list_doubts(options: argparse.Namespace) -> None:
    """Print the list, and have it asked again if the command line says so."""
    from labelling.batch import batch_folders
    from labelling.doubts import ask_again
    from run_folder.reader import open_run

    if options.ask and not batch_folders(options.run):
        raise UserError(
            f"--ask: {options.run} asks nobody for labels; leave it out, or name a run with "
            "oracle: people"
        )
    run = open_run(options.run, options.checkpoint, options.data_dir)
    doubts = find_doubts(run, options.most)
    total = len(run.pool.labelled)
    print(f"{len(doubts)} of {total} labels are doubtful, by checkpoint of round {run.round}")
    for doubt in doubts:
        print(
            f"{doubt.index:8}  {doubt.source}: labelled {doubt.label} "
            f"({doubt.label_probability:.2f}), likelier {doubt.likelier} "
            f"({doubt.likelier_probability:.2f})"
        )
    if options.ask and doubts:
        ask_again(options.run, [doubt.index for doubt in doubts])
        print("the next batch asks them again")


if __name__ == "__main__":
    sys.exit(main())
