"""A batch: the images that one round asks people to label, as a folder of plain files."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import UserError
from reporting.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 1
BATCH_FILE, IMAGES = "batch.json", "images"
POOL, VALIDATION = "pool", "validation"
FOLDER_NAME = re.compile(r"round_(\d{3,})(?:_part_(\d+))?|validation")


@dataclass(frozen=True)
class BatchImage:
    """One image of a batch.

    Attributes:
        index: dataset index.
        source: file name, or "dataset:index" where there is no file.
        image: the pixels, uint8 [C, H, W] with 1 or 3 channels; or the path of the original file;
            or None, which is what `read_batch` gives: the pixels lie in images/INDEX.png then.
        suggested: class index that the network finds likeliest, or None without a network.
        probability: of that class, 0 to 1.
        uncertainty: predictive entropy in nats.
        label: class index given in an earlier round, where a doubtful label is asked again.
    """

    index: int
    source: str
    image: NDArray[np.uint8] | Path | None = None
    suggested: int | None = None
    probability: float | None = None
    uncertainty: float | None = None
    label: int | None = None


@dataclass(frozen=True)
class Batch:
    """What one round asks. `split` says of which images the indices are: pool or validation."""

    round: int
    strategy: str
    class_names: tuple[str, ...]
    images: tuple[BatchImage, ...]
    split: str = POOL

    def class_index(self, name: str) -> int:
        """The index of a class.

        Raises:
            UserError: no class has that name.
        """
        try:
            return self.class_names.index(name)
        except ValueError:
            raise UserError(
                f"class {name!r}: is not in the class list; give one of "
                f"{', '.join(self.class_names)}"
            ) from None


def batch_folder(run: Path, round_: int, part: int = 1) -> Path:
    """Where the batch of `round_` lies; parts from 2 on replace images that were skipped."""
    name = f"round_{round_:03d}" + (f"_part_{part}" if part > 1 else "")
    return run / "labelling" / name


def validation_folder(run: Path) -> Path:
    """Where the batch of the validation sample lies."""
    return run / "labelling" / VALIDATION


def batch_folders(run: Path) -> list[Path]:
    """All complete batches of a run, in the order in which they were asked."""
    parent = run / "labelling"
    found = []
    for folder in parent.iterdir() if parent.is_dir() else ():
        match = FOLDER_NAME.fullmatch(folder.name)
        if match and (folder / BATCH_FILE).is_file():
            number, part = match.groups()
            found.append((-1 if number is None else int(number), int(part or 1), folder))
    return [folder for _, _, folder in sorted(found)]


def write_batch(folder: Path, batch: Batch) -> None:
    """Write `batch` into `folder`; a reader sees all of it or nothing.

    The images are written first and batch.json last. Writing the same batch again changes nothing,
    so a run that was killed can simply repeat the call.

    Raises:
        UserError: `folder` holds another batch, an original file is unusable, or a write fails.
    """
    content = json.dumps(_to_json(batch), indent=1, ensure_ascii=False) + "\n"
    try:
        if (folder / BATCH_FILE).exists():
            if (folder / BATCH_FILE).read_text(encoding="utf-8") != content:
                raise UserError(
                    f"{folder}: holds another batch than this run asks for; move the folder away, "
                    "or resume with the settings and data that the run began with"
                )
            return
        (folder / IMAGES).mkdir(parents=True, exist_ok=True)
        _write_images(folder, batch)
        write_atomically(folder / BATCH_FILE, content)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); free space or mend the "
            "permissions, then resume"
        ) from error


def parts_of_round(run: Path, round_: int) -> list[Path]:
    """The folders of all complete batches of one round, in the order in which they were asked."""
    return [
        folder
        for folder in batch_folders(run)
        if (match := FOLDER_NAME.fullmatch(folder.name)) and match[1] == f"{round_:03d}"
    ]


def read_batch(folder: Path) -> Batch:
    """The batch in `folder`, without pixels.

    Raises:
        UserError: there is no batch, it is damaged, or a newer version wrote it.
    """
    path = folder / BATCH_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] > FORMAT:
            raise UserError(f"{path}: format {values['format']} is newer than this version reads")
        batch = _from_json(values)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path}: missing or damaged ({type(error).__name__}: {error}); put it back as the run "
            "wrote it, or name another run"
        ) from error
    return batch


def image_path(folder: Path, index: int) -> Path:
    """The PNG file of the image with dataset index `index`."""
    return folder / IMAGES / f"{index}.png"


def _write_images(folder: Path, batch: Batch) -> None:
    """Put all images on the disk. Half an image does no harm, as there is no batch.json yet."""
    for item in batch.images:
        image_path(folder, item.index).write_bytes(_png(item))
    os.sync()  # once for all of them: one call per file takes minutes for 10,000


def _png(item: BatchImage) -> bytes:
    """The image as PNG, upright and without the metadata of its file, which may name a patient."""
    if item.image is None:
        raise ValueError(f"image {item.index} has neither pixels nor a file")
    # NumPy is half of the page's start-up time, and the page never comes here.
    import numpy as np
    from PIL import Image

    from data_sources.image_file import read_picture

    buffer = io.BytesIO()
    if isinstance(item.image, Path):
        read_picture(item.image).save(buffer, "PNG")
        return buffer.getvalue()
    pixels = np.asarray(item.image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"image {item.index}: {pixels.dtype} {pixels.shape}, not uint8 [C, H, W]")
    picture = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def _to_json(batch: Batch) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "round": batch.round,
        "strategy": batch.strategy,
        "split": batch.split,
        "class_names": list(batch.class_names),
        "images": [
            {
                "index": item.index,
                "source": item.source,
                "suggested": _name(batch, item.suggested),
                "probability": item.probability,
                "uncertainty": item.uncertainty,
                "label": _name(batch, item.label),
            }
            for item in batch.images
        ],
    }


def _name(batch: Batch, label: int | None) -> str | None:
    return None if label is None else batch.class_names[label]


def _from_json(values: Mapping[str, Any]) -> Batch:
    names = tuple(str(name) for name in values["class_names"])

    def position(name: str | None) -> int | None:
        return None if name is None else names.index(name)

    images = tuple(
        BatchImage(
            index=int(item["index"]),
            source=str(item["source"]),
            suggested=position(item["suggested"]),
            probability=item["probability"],
            uncertainty=item["uncertainty"],
            label=position(item["label"]),
        )
        for item in values["images"]
    )
    return Batch(int(values["round"]), str(values["strategy"]), names, images, values["split"])
