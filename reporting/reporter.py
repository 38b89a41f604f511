"""Turns the events of the loop into table rows, metric groups, pictures and log lines.

Both runtimes use it. They differ in where `send` and `picture` lead: into a run folder, or to a
cluster's master.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from torch import Tensor

from active_learning import ActiveLearner, Evaluation
from data import ImageStore, Splits
from reporting.metric_groups import (
    class_metrics,
    learning_curve_metrics,
    minutes_curve_metrics,
    queried_classes,
    query_metrics,
    test_metrics,
    validation_metrics,
)
from reporting.round_pictures import PictureSchedule, RoundEnd
from run_folder.tables import MetricsTable, queries_csv
from training.oracle import Proposal

Send = Callable[[str, Mapping[str, float]], None]

logger = logging.getLogger("active_learning")


class Reporter:
    """Reports one trial, from its first rank.

    Args:
        learner: of the trial.
        splits: its data.
        val, test: the parts of the splits that are evaluated.
        truth: true labels of the pool, int64 [N], where a simulated oracle knows them.
        send: takes a metric group's name and its values.
        picture: takes a name and a PNG; None where no pictures are wanted.
    """

    def __init__(
        self,
        learner: ActiveLearner,
        splits: Splits,
        val: ImageStore,
        test: ImageStore,
        truth: Tensor | None,
        send: Send,
        picture: Callable[[str, bytes], None] | None,
    ) -> None:
        self.metrics = MetricsTable()
        self._learner = learner
        self._pool_images = splits.train.images
        self._class_names = splits.class_names
        self._sources = splits.train.sources
        self._val, self._test = val, test
        self._truth = truth
        self._send = send
        self._picture = picture
        self.pictures = PictureSchedule()
        self._round_started = time.perf_counter()

    def queries_csv(self) -> str:
        """The table of all images that were asked for and answered."""
        pool = self._learner.pool
        return queries_csv(pool, self._class_names, self._sources, self._truth)

    def labelled(self, proposal: Proposal) -> None:
        """The answers to `proposal` are in the pool."""
        learner, round_ = self._learner, proposal.round
        if len(learner.pool.query_of(round_)) == len(proposal.indices):
            self._round_started = time.perf_counter() - proposal.seconds
        values = query_metrics(
            proposal,
            learner.pool,
            len(self._class_names),
            learner.annotation_minutes,
            self._truth,
            learner.corrected_uploads,
        )
        queried = queried_classes(learner.pool, round_, self._class_names)
        self.metrics.add(round_, {**values, **queried})
        self._send("active_learning", {**values, "epochs": round_ + 1})
        uncertainty = ""
        if "uncertainty_candidates" in values:
            uncertainty = (
                f" (mean uncertainty {values['uncertainty_queried']:.3f} nats, all candidates "
                f"{values['uncertainty_candidates']:.3f})"
            )
        outside = ""
        if learner.corrected_uploads:
            outside = f", {learner.corrected_uploads} of them of corrected uploads"
        logger.info(
            "round %d: %s chose %d images%s in %.1f s; %d labels so far%s",
            round_, proposal.strategy, len(proposal.indices), uncertainty, proposal.seconds,
            values["labeled_samples"], outside,
        )  # fmt: skip

    def trained(self, loss: float, accuracy: float, learning_rate: float) -> None:
        """Note in the round's row what the latest training report said."""
        row = {
            "train_loss": loss,
            "train_accuracy": accuracy,
            "learning_rate": learning_rate,
            "steps": self._learner.step,
        }
        self.metrics.add(self._learner.pool.rounds - 1, row)

    def evaluated(self, evaluation: Evaluation) -> dict[str, float]:
        """A round is over; returns the metrics of the group `validation`."""
        learner, round_ = self._learner, evaluation.round
        val, test = validation_metrics(evaluation), test_metrics(evaluation)
        names = self._class_names
        self.metrics.add(
            round_,
            {
                **val,
                **test,
                "temperature": evaluation.temperature,
                "val_images": int(
                    (self._val.labels >= 0).sum()
                ),  # which an interval around the accuracy needs
                **class_metrics("val", evaluation.val_logits, self._val.labels, names),
                **class_metrics("test", evaluation.test_logits, self._test.labels, names),
            },
        )
        rows = [row for row in self.metrics.rows.values() if "val_accuracy" in row]
        curve = learning_curve_metrics(rows)
        self.metrics.add(round_, {"aubc": curve["aubc"]})
        if test:
            shown = {name: test[name] for name in ("test_loss", "test_accuracy", "test_auc")}
            self._send("test", {**shown, "epochs": round_ + 1})
        self._send("learning_curve", curve)
        if learner.hp.expert_share or learner.hp.oracle == "people":
            self._send("minutes_curve", minutes_curve_metrics(rows))
        logger.info(
            "round %d (%d of %d): %d labels, val_loss %.4f, val_accuracy %.4f, val_auc %.4f%s "
            "(%.0f s)",
            round_, round_ + 1, len(learner.query_sizes), evaluation.labels, val["val_loss"],
            val["val_accuracy"], val["val_auc"],
            f", test_accuracy {test['test_accuracy']:.4f}" if test else "",
            time.perf_counter() - self._round_started,
        )  # fmt: skip
        if self._picture is not None:
            self._draw(evaluation)
        return val

    def _draw(self, evaluation: Evaluation) -> None:
        assert self._picture is not None
        learner = self._learner
        with learner.inspected() as inference:
            end = RoundEnd(
                round=evaluation.round,
                seed=learner.seed,
                class_names=self._class_names,
                val_images=self._val.images,
                val_labels=self._val.labels,
                logits=evaluation.val_logits,
                pool_images=self._pool_images,
                acquired_round=learner.pool.acquired_round,
                labels=learner.pool.labels,
                inference=inference,
            )
            seconds = time.perf_counter() - self._round_started
            for name, png in self.pictures.draw(end, seconds):
                self._picture(f"round/{name}", png)
        logger.info(
            "round %d: pictures have taken %.1f s so far, and the rounds without them %.0f s",
            evaluation.round, self.pictures.spent, self.pictures.rounds_took,
        )  # fmt: skip
