"""The oracle of people: a round becomes a folder of files, and people's answers its labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from active_learning import ActiveLearner
from data import UNLABELLED, ImageStore, Splits
from data_sources.image_file import decode, with_channels
from errors import UserError
from labelling import outcome
from labelling.batch import (
    BATCH_FILE,
    VALIDATION,
    Batch,
    BatchImage,
    batch_folder,
    parts_of_round,
    read_batch,
    validation_folder,
    write_batch,
)
from labelling.doubts import forget_doubts, read_doubts
from labelling.log import SKIP_REASONS
from labelling.outcome import close_batch, read_answers
from labelling.uploads import Upload, Uploads
from labelling.validation import answered_labels
from training.oracle import Proposal
from training.pool import Added, Answers, ImageState

SECONDS_BETWEEN_LOOKS = 1.0
STATES = dict(
    zip(
        SKIP_REASONS,
        (
            ImageState.SKIPPED_UNSURE,
            ImageState.SKIPPED_UNUSABLE,
            ImageState.SKIPPED_NOT_IN_CLASSES,
        ),
        strict=True,
    )
)

logger = logging.getLogger("active_learning")


class PeopleOracle:
    """Writes each proposal as a batch into the run folder, and reads the answers from there.

    Only the first rank touches files; the others hear from it.

    Args:
        run: the run folder.
        learner: of the run; its network suggests classes.
        splits: the data set.
        is_first: whether this is the first of the data-parallel processes.
        share: returns the first process's argument, in every process.
        wait: stay until a batch is labelled, instead of saying that it is not.
    """

    def __init__(
        self,
        run: Path,
        learner: ActiveLearner,
        splits: Splits,
        is_first: bool = True,
        share: Callable[[Any], Any] = lambda value: value,
        wait: bool = False,
    ) -> None:
        self._run = run
        self._learner = learner
        self._splits = splits
        self._is_first = is_first
        self._share = share
        self._wait = wait

    @property
    def truth(self) -> Tensor | None:
        """True labels of the pool, int64 [N], for reports; None where some are not known."""
        labels = self._splits.train.labels
        return None if bool((labels == UNLABELLED).any()) else labels

    def reopen(self) -> None:
        """Continue where the run stopped.

        The batch that it stopped at becomes the pool's open proposal, so a resumed run neither
        scores the pool again nor asks for other images. Inside a round, the learner gets the
        corrected uploads that the round began with.

        Raises:
            UserError: the batch belongs to another run.
        """
        learner = self._learner
        if not learner.labels_due:
            noted = Uploads(self._run).noted(learner.round) if self._is_first else []
            learner.train_also_on(self._share(self._added(noted)))
            return
        if len(learner.pool.query_of(learner.round)):
            return
        parts = parts_of_round(self._run, learner.round) if self._is_first else []
        batch = self._share(read_batch(parts[0]) if parts else None)
        if batch is None:
            return
        items = _new_images(batch)
        indices = torch.tensor([item.index for item in items])
        self._check(batch, indices)
        scored = all(item.uncertainty is not None for item in items)
        learner.pool.ask(
            indices,
            learner.round,
            torch.tensor([item.uncertainty for item in items]) if scored else None,
        )

    def answer(self, proposal: Proposal) -> Answers | None:
        """The answers of people to `proposal`; None while some are missing.

        Raises:
            UserError: the run folder holds another batch in place of this one.
        """
        folder = self._folder_of(proposal) if self._is_first else Path()
        folder = self._share(folder)
        is_new = self._share(not (folder / BATCH_FILE).exists())
        suggests = is_new and proposal.round > 0
        probabilities = self._learner.probabilities_of(proposal.indices) if suggests else None
        answers = None
        if self._is_first:
            if is_new:
                write_batch(folder, self._batch(proposal, probabilities))
                forget_doubts(self._run)
                logger.info(
                    "round %d asks for the labels of %d images",
                    proposal.round,
                    len(proposal.indices),
                )
            if self._is_complete(folder):
                answers = _in_order(proposal.indices, close_batch(folder))
                uploads = Uploads(self._run).closed(proposal.round)
                answers = replace(answers, added=self._added(uploads))
        return self._share(answers)

    def labelled_validation(self, val: ImageStore) -> ImageStore | None:
        """The validation images with their labels; None while people have still to give them.

        `val` is a random sample that is the same whenever the run is resumed. Images that are
        skipped are left out.

        Raises:
            UserError: all of them were skipped.
        """
        unlabelled = (val.labels == UNLABELLED).nonzero().flatten().tolist()
        if not unlabelled:
            return val
        labels = None
        if self._is_first:
            folder = validation_folder(self._run)
            if not (folder / BATCH_FILE).exists():
                images = tuple(_image(val, index) for index in unlabelled)
                write_batch(folder, Batch(-1, "random", val.class_names, images, VALIDATION))
                logger.info("the labels of %d validation images are asked first", len(images))
            if self._is_complete(folder):
                labels = answered_labels(self._run, val.labels)
        labels = self._share(labels)
        if labels is None:
            return None
        kept = (labels != UNLABELLED).nonzero().flatten()
        if not len(kept):
            raise UserError(
                f"{validation_folder(self._run)}: all images were skipped, so nothing can be "
                "measured; start a new run, with other images or another class list"
            )
        return replace(val, labels=labels).subset(kept)

    def _check(self, batch: Batch, indices: Tensor) -> None:
        pool, round_ = self._learner.pool, self._learner.round
        problem = ""
        if batch.round != round_:
            problem = f"is the batch of round {batch.round}"
        elif batch.class_names != self._splits.class_names:
            problem = f"has the classes {', '.join(batch.class_names)}"
        elif not set(indices.tolist()) <= set(pool.unlabelled.tolist()):
            problem = "asks for images that are labelled or not in the pool"
        if problem:
            raise UserError(
                f"{batch_folder(self._run, round_)}: {problem}, so it belongs to another run; move "
                "it away"
            )

    def _added(self, uploads: Sequence[Upload]) -> Added | None:
        """The images of the upload page that people gave a class, as the network sees them."""
        store = self._splits.train
        known = [one for one in uploads if one.class_name in store.class_names]
        for one in uploads:
            if one not in known:
                logger.warning(
                    "upload %s: class %r is not in the class list; left out",
                    one.source, one.class_name,
                )  # fmt: skip
        if not known:
            return None
        size, channels = store.images.shape[-1], store.channels
        pixels = [with_channels(decode(one.path, size).pixels, channels) for one in known]
        labels = [store.class_names.index(one.class_name) for one in known]
        return Added(torch.from_numpy(np.stack(pixels)), torch.tensor(labels))

    # --- batches ---------------------------------------------------------------------------

    def _folder_of(self, proposal: Proposal) -> Path:
        """Where the batch of `proposal` lies or is to be written."""
        parts = parts_of_round(self._run, proposal.round)
        wanted = set(proposal.indices.tolist())
        for folder in parts:
            if {item.index for item in _new_images(read_batch(folder))} == wanted:
                return folder
        if parts and not outcome.is_closed(parts[-1]):
            raise UserError(
                f"{parts[-1]}: holds another batch than this run asks for; move the folder away, "
                "or resume with the data and settings that the run began with"
            )
        return batch_folder(self._run, proposal.round, len(parts) + 1)

    def _batch(self, proposal: Proposal, probabilities: Tensor | None) -> Batch:
        store, pool = self._splits.train, self._learner.pool
        images = []
        for position, index in enumerate(proposal.indices.tolist()):
            item = _image(store, index)
            if probabilities is not None:
                probability, suggested = probabilities[position].max(0)
                item = replace(item, suggested=int(suggested), probability=float(probability))
            if proposal.uncertainty is not None:
                item = replace(item, uncertainty=float(proposal.uncertainty[position]))
            images.append(item)
        for index in read_doubts(self._run):
            if index < len(pool) and pool.state[index] == ImageState.LABELLED:
                images.append(replace(_image(store, index), label=int(pool.labels[index])))
        return Batch(proposal.round, proposal.strategy, store.class_names, tuple(images))

    def _is_complete(self, folder: Path) -> bool:
        complete = read_answers(folder).complete
        if complete or not self._wait:
            return complete
        logger.info("waiting for labels: python -m tools.label %s", self._run)
        while not read_answers(folder).complete:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return True


def _image(store: ImageStore, index: int) -> BatchImage:
    """The image with its original file, or its pixels where there is none."""
    path = store.sources.path(index)
    pixels = store.images[index].cpu().numpy() if path is None else path
    return BatchImage(index, store.sources[index], pixels)


def _new_images(batch: Batch) -> list[BatchImage]:
    """The images that the round asks for, without doubtful labels that it asks again."""
    return [item for item in batch.images if item.label is None]


def _in_order(indices: Tensor, answers: outcome.Answers) -> Answers:
    """`answers` as the learner takes them, in the order of `indices` (int64 [k])."""
    labels, states, names = [], [], []
    for index in indices.tolist():
        label = answers.labels.get(index)
        labels.append(-1 if label is None else label)
        skipped = label is None
        states.append(int(STATES[answers.skipped[index]] if skipped else ImageState.LABELLED))
        names.append(answers.by[index])
    return Answers(
        indices,
        torch.tensor(labels),
        torch.tensor(states),
        tuple(names),
        answers.corrections,
        seconds=answers.seconds,
    )
