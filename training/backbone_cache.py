"""Keeps finished self-supervision on disk, so that equal trials on one machine train it once.

A file's name holds the digest of all that the result depends on: the images, the initial weights,
the settings and the version of the method. Trials with several seeds therefore share one file. The
first process to begin holds a lock while it trains; the others wait for its file. The system frees
the lock when its holder dies.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from data_sources.image_cache import cache_folders
from data_sources.raw import describe_os_error
from errors import UserError
from training.backbone_file import backbone_bytes, read_finished
from training.hyperparameters import Hyperparameters
from training.ranks import Ranks
from training.scoring import Progress
from training.self_supervision import SelfSupervision

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0  # between two looks at a lock that another process holds

Report = Callable[[dict[str, float]], bool]


def backbone_folder(hp: Hyperparameters) -> Path:
    """Where the trials of a machine keep finished backbones: beside their data."""
    return cache_folders(Path(hp.data_dir).expanduser(), read_only=False)[0]


class _Look(enum.IntEnum):
    """What a look into the cache has shown."""

    FINISHED = 0  # the file is there
    OURS = 1  # it is not, and this process trains
    ELSEWHERE = 2  # it is not, and another process trains


def train_once(
    work: SelfSupervision,
    folder: Path,
    ranks: Ranks,
    report: Report,
    go_on: Callable[[], bool],
    progress: Progress,
) -> bool:
    """Finish `work`: from its file in `folder`, or by training, which then writes that file.

    Where the file cannot be written, a warning says so and the process trains for itself.

    Args:
        work: the self-supervision, perhaps begun.
        folder: where finished backbones are kept.
        ranks: of this process. The first alone looks at files.
        report: as of `SelfSupervision.train`; it also receives the metrics of a backbone that is
            taken from its file.
        go_on: asked every `POLL_SECONDS` while another process trains; False interrupts the wait.
        progress: shows the progress of the training.

    Returns:
        False if `report` or `go_on` has interrupted it.

    Raises:
        DivergedError: the loss is not finite.
    """
    cache = _Cache(folder, work, ranks)
    waited = False
    with contextlib.ExitStack() as held:
        while True:
            look = cache.look(held) if ranks.rank == 0 else _Look.OURS
            agreed = ranks.agree(torch.tensor(int(look), device=work.device))
            look = _Look(int(agreed))
            if look is not _Look.ELSEWHERE:
                break
            if not waited and ranks.rank == 0:
                logger.info("another process learns this backbone; waiting for %s", cache.path)
            waited = True
            if not go_on():
                return False
        if look is _Look.FINISHED:
            work.finish_with(*cache.finished(ranks))
            report(work.report())
            return True
        if not work.train(report, progress):
            return False
        if ranks.rank == 0:
            cache.write()
    return True


class _Cache:
    """The file of one finished self-supervision, and the lock that its trainer holds."""

    def __init__(self, folder: Path, work: SelfSupervision, ranks: Ranks) -> None:
        self._work = work
        # The digest reads all images; only the first rank needs it.
        name = f"backbone_{work.digest()}.safetensors" if ranks.rank == 0 else ""
        self.path = folder / name
        self._lock = FileLock(self.path.with_name(f".{name}.lock"))
        self._usable = True
        self._finished = (work.backbone, 0.0)  # the shapes are those of the file's tensors

    def look(self, held: contextlib.ExitStack) -> _Look:
        """Look for the file, else try for the lock, which `held` then releases."""
        if self._read():
            return _Look.FINISHED
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(self._lock.acquire(timeout=POLL_SECONDS))
        except Timeout:
            return _Look.ELSEWHERE
        except (OSError, NotImplementedError) as error:  # the latter: no locks on this file system
            self._usable = False
            self._warn(error)
            return _Look.OURS
        return _Look.FINISHED if self._read() else _Look.OURS

    def _read(self) -> bool:
        """Read the file; False if there is none that can be used."""
        if not self.path.exists():
            return False
        try:
            self._finished = read_finished(self.path, self._work.network)
        except UserError as error:
            logger.warning("%s; the backbone is learnt again", error)
            with contextlib.suppress(OSError):
                self.path.unlink()
            return False
        logger.info("learning without labels: finished before, in %s", self.path)
        return True

    def finished(self, ranks: Ranks) -> tuple[dict[str, Tensor], float]:
        """The backbone that the first rank has read, and its last loss, on every rank."""
        weights, loss = self._finished
        device = self._work.device
        weights = {name: ranks.agree(value.to(device)) for name, value in weights.items()}
        agreed = ranks.agree(torch.tensor(loss, dtype=torch.float64, device=device))
        return weights, float(agreed)

    def write(self) -> None:
        """Write the finished backbone, if the folder can be used."""
        if not self._usable:
            return
        work = self._work
        content = backbone_bytes(work.backbone, work.hp, work.last_loss)
        partial = self.path.with_name(f".{self.path.name}.part")
        try:
            try:
                partial.write_bytes(content)
                partial.replace(self.path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError | NotImplementedError) -> None:
        reason = describe_os_error(error) if isinstance(error, OSError) else error
        logger.warning("%s: not kept (%s); every trial learns for itself", self.path, reason)
