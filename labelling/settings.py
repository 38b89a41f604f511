"""Who labels a run, how many images everyone labels, and whether the page hides suggestions."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from errors import UserError
from labelling.batch import Batch
from reporting.files import write_atomically

LONGEST_NAME = 80


@dataclass(frozen=True)
class LabellingSettings:
    """How the work is shared.

    Attributes:
        annotators: their names. Empty: anyone may label, and one answer per image is enough.
        overlap: share of each batch that every annotator labels, 0 to 1; the rest is shared out.
        blind: hide suggestions and the answers of others.
    """

    annotators: tuple[str, ...] = ()
    overlap: float = 0.0
    blind: bool = False

    def __post_init__(self) -> None:
        for name in self.annotators:
            check_annotator(name)
        if len(set(self.annotators)) != len(self.annotators):
            raise UserError(
                f"annotators: {', '.join(self.annotators)} has a name twice; give each once"
            )
        if not 0 <= self.overlap <= 1:
            raise UserError(f"overlap: {self.overlap} is not a share; give 0 to 1")
        if self.overlap and len(self.annotators) < 2:
            raise UserError(
                f"overlap: {self.overlap} needs two annotators or more; name them in annotators"
            )

    def shared_by_all(self, batch: Batch) -> frozenset[int]:
        """Dataset indices of the images that every annotator labels: a fixed random draw."""
        count = math.ceil(self.overlap * len(batch.images))
        return frozenset(sorted((item.index for item in batch.images), key=_draw(batch))[:count])

    def assigned(self, batch: Batch) -> dict[int, str]:
        """Whose turn each of the other images is; empty where no annotators are named.

        It is an order of work and no rule: anyone's answer counts.
        """
        if not self.annotators:
            return {}
        everyone = self.shared_by_all(batch)
        rest = sorted((i.index for i in batch.images if i.index not in everyone), key=_draw(batch))
        return {index: self.annotators[k % len(self.annotators)] for k, index in enumerate(rest)}

    def votes_needed(self, batch: Batch) -> dict[int, int]:
        """How many annotators have to label each image."""
        everyone = self.shared_by_all(batch)
        return {
            item.index: len(self.annotators) if item.index in everyone else 1
            for item in batch.images
        }


def _draw(batch: Batch) -> Callable[[int], bytes]:
    """A sorting key that puts dataset indices into a random order, the same for the same batch."""

    def key(index: int) -> bytes:
        return hashlib.sha256(f"{batch.split} {batch.round} {index}".encode()).digest()

    return key


def check_annotator(name: str) -> str:
    """`name`, if it can stand in the log.

    Raises:
        UserError: it is empty, too long or has control characters.
    """
    if (
        not name.strip()
        or name != name.strip()
        or len(name) > LONGEST_NAME
        or not name.isprintable()
    ):
        raise UserError(
            f"annotator {name[:LONGEST_NAME]!r}: give a name of 1 to {LONGEST_NAME} printable "
            "characters, without spaces around it"
        )
    return name


def settings_path(run: Path) -> Path:
    """Where a run keeps them."""
    return run / "labelling" / "settings.json"


def read_settings(run: Path) -> LabellingSettings:
    """The settings of a run; the defaults where none were written.

    Raises:
        UserError: the file is damaged.
    """
    path = settings_path(run)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return LabellingSettings(
            tuple(map(str, values["annotators"])), float(values["overlap"]), bool(values["blind"])
        )
    except FileNotFoundError:
        return LabellingSettings()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); remove it and give the options again"
        ) from error


def write_settings(run: Path, settings: LabellingSettings) -> None:
    """Keep the settings in the run."""
    path = settings_path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(settings), indent=1, ensure_ascii=False) + "\n")
