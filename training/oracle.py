"""Oracles answer a proposal with labels. These are simulated: they know the hidden labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from data import ImageStore
from query_strategies.scores import top_k_stable
from training.hyperparameters import Hyperparameters
from training.label_noise import noisy_labels
from training.pool import Answers, ImageState, Pool


@dataclass(frozen=True)
class Proposal:
    """The images that a round asks an oracle to label.

    round: which one, from 0.
    strategy: the name of the query strategy.
    indices: int64 [k], dataset indices in the strategy's order of preference.
    uncertainty: float32 [k], predictive entropy in nats; None where nothing was scored.
    candidates_uncertainty: its mean over all candidates, nats; None where nothing was scored.
    seconds: how long scoring and selection took.
    """

    round: int
    strategy: str
    indices: Tensor
    uncertainty: Tensor | None
    candidates_uncertainty: float | None
    seconds: float


class Oracle(Protocol):
    """Whoever labels images."""

    def answer(self, proposal: Proposal) -> Answers | None:
        """The answers to all images of `proposal`; None where they have yet to come."""


class Learner(Protocol):
    """What a simulated oracle reads of the learner that it answers."""

    hp: Hyperparameters
    seed: int
    pool: Pool

    def probabilities_of(self, indices: Tensor) -> Tensor:
        """Class probabilities of pool images by the network as it is: float32 [k, C], CPU."""


class SimulatedOracle:
    """Stands in for the annotator and answers at once. Only it sees hidden labels.

    Args:
        labels: the true ones, int64 [N].
        answers: what it says of each image, right or wrong, int64 [N]; None: the truth.
    """

    NAME = "simulated"

    def __init__(self, labels: Tensor, answers: Tensor | None = None) -> None:
        self._labels = labels.cpu()
        self._answers = self._labels if answers is None else answers.cpu()

    @classmethod
    def of_trial(cls, learner: Learner, train: ImageStore) -> SimulatedOracle:
        """The annotator of a trial, who errs as often as `label_noise` says; or two of them."""
        hp, seed = learner.hp, learner.seed
        answers = noisy_labels(train, hp.label_noise, hp.label_noise_kind, seed)
        if not hp.expert_share:
            return SimulatedOracle(train.labels, answers)
        purpose = "expert_label_noise"
        expert = noisy_labels(train, hp.expert_label_noise, hp.label_noise_kind, seed, purpose)
        return TwoAnnotators(train.labels, answers, expert, learner)

    def answer(self, proposal: Proposal) -> Answers:
        """A label for every image; the same image always gets the same label."""
        labels = self._answers[proposal.indices]
        return Answers.all_labelled(proposal.indices, labels, self.NAME)

    def truth(self, indices: Tensor) -> Tensor:
        """The true labels, int64 [k]. They serve reports: nothing is trained or chosen by them."""
        return self._labels[indices]


class TwoAnnotators(SimulatedOracle):
    """One annotator labels every image; a dearer one, the expert, labels the doubtful ones again.

    From the second round on, the expert gets a share `expert_share` of the query. It gets those
    labels that it has not seen yet, of this round or an earlier one, which the network doubts most
    by `doubt`. The expert's label replaces the other one.

    Sheng, Provost & Ipeirotis 2008, "Get Another Label?", show that labels of noisy annotators are
    worth asking again where model or labels are uncertain. The order is that of Bernhardt et al.
    2022, "Active label cleaning for improved dataset quality under resource constraints".

    Args:
        labels: the true ones, int64 [N].
        answers, expert_answers: what each annotator says of each image, int64 [N].
        learner: whose network doubts.
    """

    EXPERT = "expert"

    def __init__(
        self, labels: Tensor, answers: Tensor, expert_answers: Tensor, learner: Learner
    ) -> None:
        super().__init__(labels, answers)
        self._expert_answers = expert_answers
        self._learner = learner

    def answer(self, proposal: Proposal) -> Answers:
        """A label for every image, and corrections of earlier ones."""
        hp, new = self._learner.hp, proposal.indices
        again = self._doubtful(proposal)
        labels = self._answers.clone()
        labels[again] = self._expert_answers[again]
        seconds = dict.fromkeys(new.tolist(), hp.seconds_per_label)
        for index in again.tolist():
            seconds[index] = seconds.get(index, 0.0) + hp.expert_seconds_per_label
        by_expert = set(again.tolist())
        earlier = by_expert - set(new.tolist())
        return Answers(
            new,
            labels[new],
            torch.full((len(new),), int(ImageState.LABELLED)),
            tuple(self.EXPERT if index in by_expert else self.NAME for index in new.tolist()),
            {index: (int(labels[index]), self.EXPERT) for index in sorted(earlier)},
            seconds=seconds,
        )

    def _doubtful(self, proposal: Proposal) -> Tensor:
        """Dataset indices of the labels that the expert gives again, int64 [k]."""
        pool, count = self._learner.pool, self._learner.hp.expert_labels(len(proposal.indices))
        if proposal.round == 0 or count == 0:  # the first round has no network that could doubt
            return proposal.indices[:0]
        unseen = pool.labelled[~pool.labelled_by(self.EXPERT)[pool.labelled]]
        indices = torch.cat([unseen, proposal.indices]).sort().values
        doubts = doubt(self._learner.probabilities_of(indices), self._answers[indices])
        return indices[top_k_stable(doubts, count)]


def doubt(probabilities: Tensor, labels: Tensor) -> Tensor:
    """How confidently a network disagrees with labels, in nats, float32 [k].

    It is the cross-entropy of the label less the entropy of the prediction: high where the network
    is sure of another class, and not where it is unsure of all.

    Args:
        probabilities: float32 [k, C].
        labels: int64 [k].
    """
    own = probabilities.gather(1, labels[:, None]).squeeze(1).clamp_min(1e-12)
    return -own.log() - torch.special.entr(probabilities).sum(dim=1)
