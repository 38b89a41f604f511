"""What a batch's answers mean: one outcome per image, by majority where several people answered."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from labelling.batch import POOL, Batch, batch_folders, read_batch
from labelling.log import ADJUDICATOR, CLOSED_FILE, Answer, AnswerLog
from labelling.settings import LabellingSettings, read_settings
from reporting.files import write_atomically

WAITING, LABELLED, SKIPPED, DISPUTED = "waiting", "labelled", "skipped", "disputed"


@dataclass(frozen=True)
class Outcome:
    """What is known of one image: `state`, and the class name or the skip reason that go with it.

    A waiting image still needs annotators; a disputed one needs an adjudicator. `by` names those
    whose answer it is.
    """

    state: str
    answer: str | None = None
    skip: str | None = None
    by: tuple[str, ...] = ()

    @property
    def decided(self) -> bool:
        """Whether nobody has to look at the image any more."""
        return self.state in (LABELLED, SKIPPED)


@dataclass(frozen=True)
class Answers:
    """What the learner takes.

    Attributes:
        labels: dataset index -> class index.
        skipped: dataset index -> skip reason.
        waiting: dataset indices of the images that have no outcome yet.
        by: dataset index -> who labelled or skipped the image.
        corrections: of a closed batch, the labels of earlier rounds that were changed until it was
            closed: dataset index -> (class index, by whom). It has all of them, not only new ones.
        seconds: dataset index -> what all annotators spent on the image, where the page measured
            it. Corrections do not count.
    """

    labels: dict[int, int]
    skipped: dict[int, str]
    waiting: tuple[int, ...]
    by: dict[int, str]
    corrections: dict[int, tuple[int, str]]
    seconds: dict[int, float]

    @property
    def complete(self) -> bool:
        """Whether every image of the batch has its outcome."""
        return not self.waiting


def read_answers(folder: Path) -> Answers:
    """The outcome of every image of the batch in `folder`; of a closed batch, as it was closed.

    Raises:
        UserError: a file of the batch is damaged.
    """
    batch = read_batch(folder)
    closed = _read_closed(folder)
    if closed is not None:
        return _for_learner(folder, batch, *closed)
    return _for_learner(folder, batch, outcomes_of(folder, batch), {})


def close_batch(folder: Path) -> Answers:
    """Take the answers for good: from now on, a change of mind is a correction.

    Closing again gives the same answers, so a run that was killed can repeat the call.

    Raises:
        UserError: images still wait, or a file is damaged.
    """
    batch = read_batch(folder)
    with AnswerLog(folder).locked():
        closed = _read_closed(folder)
        if closed is None:
            outcomes = outcomes_of(folder, batch)
            waiting = [index for index, outcome in outcomes.items() if not outcome.decided]
            if waiting:
                raise UserError(
                    f"{folder}: {len(waiting)} of {len(batch.images)} images wait for an answer; "
                    "label them first"
                )
            changed = _corrections(folder.parent.parent, batch.split)
            for item in batch.images:
                outcome = outcomes[item.index]
                if item.label is not None and outcome.answer is not None:
                    changed[item.index] = batch.class_index(outcome.answer), _names(outcome)
            closed = outcomes, changed
            write_atomically(folder / CLOSED_FILE, _closed_text(*closed))
    return _for_learner(folder, batch, *closed)


def is_closed(folder: Path) -> bool:
    """Whether the learner has taken the answers."""
    return (folder / CLOSED_FILE).exists()


def outcomes_of(folder: Path, batch: Batch) -> dict[int, Outcome]:
    """The outcome of each image by the log as it is now, corrections aside."""
    settings = read_settings(folder.parent.parent)
    return tally(batch, AnswerLog(folder).read(), settings).outcomes


class Tally:
    """Counts the answers to one batch as they come in.

    The most frequent answer to an image counts; all skip reasons together count as one answer. A
    draw goes to the adjudicator, whose answer ends the matter.

    Attributes:
        votes: per image, the latest answer of each (role, annotator) that was not taken back.
        outcomes: one per image, in the batch's order.
    """

    def __init__(self, batch: Batch, settings: LabellingSettings) -> None:
        self._needed = settings.votes_needed(batch)
        self.votes: dict[int, dict[tuple[str, str], Answer]] = {
            item.index: {} for item in batch.images
        }
        self.outcomes = {item.index: Outcome(WAITING) for item in batch.images}

    def add(self, line: Answer) -> None:
        """Count one line of the log. Corrections are no answers and change nothing here."""
        if line.old is not None or line.image not in self.votes:
            return
        votes = self.votes[line.image]
        votes.pop((line.role, line.annotator), None)
        if not line.withdrawn:
            votes[line.role, line.annotator] = line
        self.outcomes[line.image] = _outcome(votes, self._needed[line.image])


def tally(batch: Batch, lines: Iterable[Answer], settings: LabellingSettings) -> Tally:
    """All `lines`, counted."""
    counted = Tally(batch, settings)
    for line in lines:
        counted.add(line)
    return counted


def _outcome(votes: Mapping[tuple[str, str], Answer], needed: int) -> Outcome:
    decisions = [vote for (role, _), vote in votes.items() if role == ADJUDICATOR]
    if decisions:
        return _decided(decisions[-1])
    if len(votes) < needed or not votes:
        return Outcome(WAITING)
    counts = Counter(vote.answer for vote in votes.values())  # None: skipped
    (winner, most), *others = counts.most_common()
    if others and others[0][1] == most:
        return Outcome(DISPUTED)
    by = tuple(sorted(vote.annotator for vote in votes.values() if vote.answer == winner))
    if winner is not None:
        return Outcome(LABELLED, answer=winner, by=by)
    reasons = Counter(vote.skip for vote in votes.values() if vote.skip is not None)
    return Outcome(SKIPPED, skip=reasons.most_common(1)[0][0], by=by)


def _decided(line: Answer) -> Outcome:
    if line.answer is not None:
        return Outcome(LABELLED, answer=line.answer, by=(line.annotator,))
    return Outcome(SKIPPED, skip=line.skip, by=(line.annotator,))


def _for_learner(
    folder: Path,
    batch: Batch,
    outcomes: Mapping[int, Outcome],
    changed: Mapping[int, tuple[int, str]],
) -> Answers:
    again = {item.index for item in batch.images if item.label is not None}
    labels, skipped, waiting, by = {}, {}, [], {}
    for index, outcome in outcomes.items():
        if not outcome.decided:
            waiting.append(index)
        elif index in again:
            continue  # the image has a label; another one is a correction
        elif outcome.answer is not None:
            labels[index] = batch.class_index(outcome.answer)
        else:
            skipped[index] = str(outcome.skip)
        by[index] = _names(outcome)
    return Answers(labels, skipped, tuple(waiting), by, dict(changed), _seconds(folder))


def _seconds(folder: Path) -> dict[int, float]:
    """What annotators spent on each image of the batch in `folder`, where it was measured."""
    spent: dict[int, float] = {}
    for line in AnswerLog(folder).read():
        if line.old is None and line.seconds is not None:
            spent[line.image] = spent.get(line.image, 0.0) + line.seconds
    return spent


def _names(outcome: Outcome) -> str:
    return " and ".join(outcome.by)


def _closed_text(outcomes: Mapping[int, Outcome], changed: Mapping[int, tuple[int, str]]) -> str:
    values = {
        "outcomes": {str(i): [o.answer, o.skip, list(o.by)] for i, o in outcomes.items()},
        "corrections": {str(index): list(correction) for index, correction in changed.items()},
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _read_closed(
    folder: Path,
) -> tuple[dict[int, Outcome], dict[int, tuple[int, str]]] | None:
    path = folder / CLOSED_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        outcomes = {
            int(index): Outcome(
                LABELLED if answer is not None else SKIPPED, answer, skip, tuple(by)
            )
            for index, (answer, skip, by) in values["outcomes"].items()
        }
        changed = {
            int(index): (int(label), str(who))
            for index, (label, who) in values["corrections"].items()
        }
        return outcomes, changed
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); put it back from a copy") from error


# --- corrections --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Current:
    """What counts now for an image: in which batch it lies, and whether it was changed since."""

    folder: Path
    outcome: Outcome
    corrected: bool = False


def current_outcomes(run: Path, split: str) -> dict[int, Current]:
    """What counts now for every image of the closed batches of `split`, by dataset index.

    A correction, or a later batch that asks a doubtful label again, replaces the earlier label.
    """
    found: dict[int, Current] = {}
    for folder in batch_folders(run):
        closed = _read_closed(folder)
        if closed is None or read_batch(folder).split != split:
            continue
        for index, outcome in closed[0].items():
            if index not in found:
                found[index] = Current(folder, outcome)
            elif outcome.state == LABELLED:  # a doubtful label that is skipped stays as it is
                found[index] = Current(folder, outcome, corrected=True)
        for line in AnswerLog(folder).read():
            if line.old is not None and line.image in found:
                found[line.image] = Current(folder, _decided(line), corrected=True)
    return found


def corrections(run: Path, split: str = POOL) -> dict[int, int]:
    """Labels that were changed after the learner took them: dataset index -> class index now.

    A label that was changed and changed back is in it, too, as a round may have trained on it.

    Raises:
        UserError: a file of a batch is damaged.
    """
    return {index: label for index, (label, _) in _corrections(run, split).items()}


def _corrections(run: Path, split: str) -> dict[int, tuple[int, str]]:
    """`corrections`, with those who made them."""
    return {
        index: (
            read_batch(current.folder).class_index(current.outcome.answer),
            _names(current.outcome),
        )
        for index, current in current_outcomes(run, split).items()
        if current.corrected and current.outcome.answer is not None
    }
