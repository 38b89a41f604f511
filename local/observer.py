"""What a local run does around the loop's steps: reports, pictures, checkpoints, progress bars."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from active_learning import ActiveLearner, Evaluation, Observer
from data import ImageStore, Splits
from reporting.files import write_atomically
from reporting.metric_groups import training_metrics
from reporting.reporter import Reporter
from reporting.run_progress import StepsBar
from run_folder.names import BACKBONE, TENSORBOARD, UNFINISHED_BACKBONE
from run_folder.tables import MetricsTable
from run_folder.writer import RunFolder
from training.backbone_file import backbone_bytes
from training.oracle import Proposal
from training.ranks import Ranks
from training.stopping import StopReason
from training.threads import adapt_to_other_runs, choose_threads

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger("active_learning")


class LocalObserver(Observer):
    """Keeps the run folder's books on the first rank; on the others it only joins in sums.

    Args:
        truth: true labels of the pool, int64 [N], where they are known.
        folder: None on all ranks but the first.
    """

    def __init__(
        self,
        learner: ActiveLearner,
        splits: Splits,
        val: ImageStore,
        test: ImageStore,
        truth: Tensor | None,
        folder: RunFolder | None,
        ranks: Ranks,
    ) -> None:
        self._learner = learner
        self._pool_images = splits.train.images
        self._class_names = splits.class_names
        self._folder = folder
        self._ranks = ranks
        self._bar = StepsBar(ranks)
        self._saved_pretraining = 0
        self._writer: SummaryWriter | None = None
        self._reporter = Reporter(
            learner,
            splits,
            val,
            test,
            truth,
            self._send,
            self._picture if learner.hp.tensorboard_pictures else None,
        )

    def resume_with(self, metrics: MetricsTable) -> None:
        """Continue the tables from those of a checkpoint."""
        self._reporter.metrics = metrics

    def close(self) -> None:
        """Close what is open."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    # --- the loop's events -----------------------------------------------------------------

    def pretrained(self, metrics: dict[str, float]) -> bool:
        """Report self-supervision, and keep its state every `batches_per_round` steps."""
        learner, folder = self._learner, self._folder
        if folder is None:
            return True
        assert learner.pretraining is not None
        step, steps = int(metrics["step"]), learner.hp.self_supervised_steps
        logger.info(
            "learning without labels: step %d of %d, loss %.4f", step, steps, metrics["loss"]
        )
        self._scalars("self_supervision", metrics, step)
        with self._writing():
            folder.record_self_supervision(metrics)
            if learner.pretraining.finished:
                weights = learner.pretraining.backbone
                content = backbone_bytes(weights, learner.hp, metrics["loss"])
                write_atomically(folder.path / BACKBONE, content)
                (folder.path / UNFINISHED_BACKBONE).unlink(missing_ok=True)
            elif step - self._saved_pretraining >= learner.hp.batches_per_round:
                write_atomically(folder.path / UNFINISHED_BACKBONE, learner.pretraining.save())
                self._saved_pretraining = step
        return True

    def labelled(self, proposal: Proposal) -> None:
        """Report the query, and write it into queries.csv and a picture."""
        folder, pool = self._folder, self._learner.pool
        if folder is None:
            return
        self._reporter.labelled(proposal)
        round_ = proposal.round
        chosen = pool.query_of(round_)
        chosen = chosen[pool.labels[chosen] >= 0]
        with self._writing(), self._reporter.pictures.counted():
            folder.write_metrics(self._reporter.metrics)
            folder.write_queries(
                self._reporter.queries_csv(),
                round_,
                self._pool_images[chosen],
                pool.labels[chosen],
                self._class_names,
            )

    def stepped(self) -> None:
        """Report the training loss every `reporting_period` steps and at the round's end."""
        learner = self._learner
        self._bar.step(learner)
        done = learner.step % learner.hp.batches_per_round
        if done and done % learner.hp.reporting_period:
            return
        adapt_to_other_runs()
        loss_sum, correct, images = self._ranks.total(learner.meter.take()).tolist()
        rate = learner.optimizer.param_groups[0]["lr"]
        metrics = training_metrics(loss_sum, correct, images, rate)
        learner.check_training_loss(metrics["loss"])
        if self._folder is None:
            return
        self._send("training", metrics)
        self._reporter.trained(metrics["loss"], metrics["accuracy"], rate)
        with self._writing():
            self._folder.write_metrics(self._reporter.metrics)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Report the round, write a checkpoint, and note the end of the run if this is it."""
        self._bar.close()
        choose_threads()  # other runs may have come or gone
        folder, learner = self._folder, self._learner
        if folder is None:
            return
        self._send("validation", self._reporter.evaluated(evaluation))
        metrics = self._reporter.metrics
        with self._writing():
            folder.write_metrics(metrics)
            with self._reporter.pictures.counted():
                folder.draw_learning_curve(metrics)
            folder.save_checkpoint(learner, metrics, self._reporter.queries_csv())
        reason = learner.stop_reason
        if reason is not None:
            logger.info("the run is over: %s", reason.text)
            self.finished(reason)

    def finished(self, reason: StopReason) -> None:
        """Note in the run folder that its latest checkpoint is the end of the run."""
        if self._folder is not None:
            learner = self._learner
            with self._writing():
                self._folder.record_end(reason, len(learner.results), len(learner.pool.labelled))

    # --- where reports go ------------------------------------------------------------------

    def _send(self, group: str, metrics: Mapping[str, float]) -> None:
        self._scalars(group, metrics, self._learner.step)

    def _scalars(self, group: str, metrics: Mapping[str, float], step: int) -> None:
        writer = self._tensorboard()
        for name, value in metrics.items():
            writer.add_scalar(f"{group}/{name}", value, step)

    def _picture(self, name: str, png: bytes) -> None:
        with Image.open(io.BytesIO(png)) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._tensorboard().add_image(name, pixels, self._learner.step, dataformats="HWC")

    def _tensorboard(self) -> SummaryWriter:
        """The one event file of this process."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            assert self._folder is not None
            self._writer = SummaryWriter(str(self._folder.path / TENSORBOARD))
        return self._writer

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            assert self._folder is not None
            what = str(error.filename or "a file")
            raise self._folder.not_written(what, error) from error
