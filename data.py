"""Image data sets as arrays that live on the device: load, check, measure, normalise.

`load_splits("pathmnist", "data", ...)` gives three `ImageStore`s. Where images come from is in
`data_sources/`; whatever a source returns is checked here before anything uses it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_sources import bundled_digits, hdf5, image_folder, medmnist_npz
from data_sources.disk_images import release
from data_sources.image_cache import cache_folders
from data_sources.image_file import MAX_PIXELS
from data_sources.image_folder import FolderOptions
from data_sources.raw import UNLABELLED, Notes, RawSplit, RawSplits
from data_sources.sources import ArraySources, Sources
from data_sources.splitting import SplitRequest
from errors import UserError

__all__ = [
    "UNLABELLED",
    "ImageStore",
    "Splits",
    "channel_histograms",
    "channel_statistics",
    "load_splits",
    "normalise",
    "release",
]

FINGERPRINT_ROWS = 4096  # hashed at a time
STATISTICS_BLOCK_BYTES = 64 * 2**20
DEVICE_SHARE = 0.5  # of a GPU's free memory, for the images of one split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageStore:
    """All images of one split.

    Attributes:
        images: uint8 [N, C, H, W], C is 1 or 3. They may be mapped from a file
            (`data_sources.disk_images`) and are never written to. Images that do not fit on the
            device stay on the host; the labels tell which device is meant.
        labels: int64 [N], class indices; `UNLABELLED` (-1) where nobody has said the class yet.
            Only data sets that are read with `allow_unlabelled` hold such images: those of a folder
            that lie in no class folder, and those with the label -1 in an HDF5 or NPZ file.
        class_names: of the classes, in the order of their indices.
        sources: where each image came from. `sources[i]` is text for people: the file, relative to
            the data set's folder, or "array:position". `sources.path(i)` is the file, or None.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    sources: Sources = field(default_factory=lambda: ArraySources("image", ()))

    def __post_init__(self) -> None:
        if not len(self.sources):  # images that were made in memory are named by their position
            names = ArraySources("image", range(len(self.labels)))
            object.__setattr__(self, "sources", names)
        if not len(self.images) == len(self.labels) == len(self.sources):
            raise ValueError(
                f"{len(self.images)} images, {len(self.labels)} labels, {len(self.sources)} sources"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    def to(self, device: torch.device | str) -> ImageStore:
        """The same store on `device`, or only its labels where the images do not fit there."""
        device, images = torch.device(device), self.images
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
        if images.nbytes <= DEVICE_SHARE * free:
            images = images.to(device)
            release(self.images)
        return ImageStore(images, self.labels.to(device), self.class_names, self.sources)

    def subset(self, indices: Tensor) -> ImageStore:
        """The images at `indices`, int64 [k] on any device, in that order."""
        return ImageStore(
            self.images[indices.to(self.images.device)],
            self.labels[indices.to(self.labels.device)],
            self.class_names,
            self.sources.take(indices.cpu().numpy()),
        )


@dataclass(frozen=True)
class Splits:
    """A whole data set. `train` is the pool; `val` chooses; `test` is only reported.

    `notes` say how it was read: how the splits were made, what was left out, what looks wrong.
    `load_splits` logs them; reports can show them.
    """

    name: str
    train: ImageStore
    val: ImageStore
    test: ImageStore
    notes: Notes = field(default_factory=Notes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def num_classes(self) -> int:
        return self.train.num_classes

    @property
    def channels(self) -> int:
        return self.train.channels

    def fingerprint(self) -> str:
        """Hex digest of every pixel, label and name, the same on every device and machine."""
        digest = hashlib.sha256()  # the fastest of hashlib where the CPU has SHA instructions
        digest.update(json.dumps([self.name, self.class_names]).encode())
        for store in (self.train, self.val, self.test):
            for tensor in (store.images, store.labels):
                digest.update(json.dumps(list(tensor.shape)).encode())
                for part in tensor.split(FINGERPRINT_ROWS):
                    digest.update(part.cpu().contiguous().numpy().data)
                    release(tensor)
        return digest.hexdigest()


def load_splits(
    dataset: str,
    data_dir: str | Path,
    *,
    image_size: int,
    split_seed: int,
    validation_fraction: float,
    test_fraction: float,
    download: bool = True,
    group_by: str = "",
    allow_unlabelled: bool = False,
    max_pixels: int = MAX_PIXELS,
    read_only: bool = False,
) -> Splits:
    """Load and check a data set.

    Args:
        dataset: one of

            - the flag of a 2-D MedMNIST set, such as `pathmnist`: `data_dir/pathmnist.npz` (28x28)
              or `pathmnist_64.npz`, downloaded into `data_dir` where missing;
            - `folder:NAME`: image files in `data_dir/NAME/CLASS/`, or in
              `data_dir/NAME/{train,val,test}/CLASS/`; `classes.txt` there may list the classes in
              the order of their labels, one a line;
            - `hdf5:NAME`: `data_dir/NAME_{train,valid,test}_{x,y}.h5`;
            - `digits`: scikit-learn's bundled handwritten digits, which need no file.
        data_dir: the folder of all data sets.
        image_size: side of the images in pixels.
        split_seed, validation_fraction, test_fraction: how to split `digits`, and a folder that
            brings no splits.
        download: whether a missing MedMNIST file may be fetched.
        group_by: for `folder:`, which images have to share a split: a regular expression on the
            path, or the name of a CSV file in the folder (`data_sources.folder_groups`).
        allow_unlabelled: keep images without a label, as `UNLABELLED`. They are split like the
            others, so that a validation split drawn from them is a random one. Without it, a folder
            leaves them out and says so, and a label of -1 is an error.
        max_pixels: an image file with more is refused before it is decoded.
        read_only: write nothing into `data_dir`, except a MedMNIST file that is downloaded. Decoded
            images are then cached in the user's own cache folder instead of `data_dir/.cache`.

    Raises:
        UserError: the data cannot be used.
    """
    if image_size < 1:
        raise UserError(f"image_size: {image_size} is not a size in pixels; use 28")
    folder = Path(data_dir).expanduser()
    kind, colon, name = dataset.partition(":")
    if colon and (name in ("", ".", "..") or Path(name).name != name):
        raise UserError(f"dataset: {dataset!r} must name something directly in {folder}; no paths")
    is_folder = bool(colon) and kind == "folder"
    if group_by and not is_folder:
        raise UserError(
            f"group_by: {group_by!r} needs files, as folder:NAME has them; remove it for {dataset}"
        )
    split = (split_seed, validation_fraction, test_fraction)
    caches = cache_folders(folder, read_only)
    if dataset == "digits":
        raw = bundled_digits.load(image_size, SplitRequest(*split))
    elif is_folder:
        options = FolderOptions(group_by, allow_unlabelled, max_pixels)
        raw = image_folder.load(name, folder, image_size, SplitRequest(*split), options, caches)
    elif colon and kind == "hdf5":
        raw = hdf5.load(name, folder, image_size, caches)
    else:
        raw = medmnist_npz.load(dataset, folder, image_size, download)
    splits = _checked(raw, image_size, allow_unlabelled)
    for fact in splits.notes.facts:
        logger.info("%s", fact)
    for warning in splits.notes.warnings:
        logger.warning("%s", warning)
    return splits


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W] images, scaled to [0, 1].

    Two float32 [C] tensors on the images' device, computed from exact histograms, block by block.
    A channel that is the same everywhere (an unused stain, say) gets the deviation 1, so that
    normalising gives zeros and not NaN.
    """
    if images.numel() == 0:
        raise ValueError("channel_statistics needs at least one image")
    # In float64 on the CPU, because some accelerators lack the type.
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = torch.zeros(2, images.shape[1])
    for channel, histogram in enumerate(channel_histograms(images).cpu()):
        share = histogram.double() / histogram.sum()
        average = (share * values).sum()
        spread = (share * (values - average).square()).sum().sqrt()
        mean[channel] = average
        std[channel] = 1.0 if share.max() == 1 else spread
    return mean.to(images.device), std.to(images.device)


def channel_histograms(images: Tensor) -> Tensor:
    """How often each value from 0 to 255 occurs in each channel of uint8 [N, C, H, W] images.

    Returns int64 [C, 256] on the images' device, computed block by block.
    """
    histograms = torch.zeros(images.shape[1], 256, dtype=torch.int64, device=images.device)
    block = max(1, STATISTICS_BLOCK_BYTES // images[0].numel())
    for start in range(0, len(images), block):
        for channel, pixels in enumerate(images[start : start + block].unbind(1)):
            histograms[channel] += torch.bincount(pixels.reshape(-1), minlength=256)
        release(images)
    return histograms


def normalise(
    images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """uint8 [B, C, H, W] images as `(images / 255 - mean) / std`, of type `dtype`.

    Computed in float32 on the images' device and in their memory format. `mean` and `std` are [C],
    in the units of `channel_statistics`; keep them on that device to avoid a copy per batch.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"normalise takes uint8 images, not {images.dtype}")
    mean, std = (value.to(images.device, torch.float32).view(-1, 1, 1) for value in (mean, std))
    # On the fresh float copy, one multiplication and one subtraction instead of two divisions.
    return images.to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std).to(dtype)


def _checked(raw: RawSplits, image_size: int, allow_unlabelled: bool) -> Splits:
    """`raw` as `Splits`, once every promise that `ImageStore` makes is known to hold."""
    channels = raw.channels
    stores = {}
    for name in ("train", "val", "test"):
        split: RawSplit = getattr(raw, name)
        images = _checked_images(split, image_size, channels)
        labels = _checked_labels(split, len(raw.class_names), allow_unlabelled)
        channels = images.shape[1]
        stores[name] = ImageStore(images, labels, raw.class_names, split.sources)
    if len(raw.class_names) < 2:
        names = ", ".join(map(repr, raw.class_names))
        raise UserError(f"{raw.name}: {len(raw.class_names)} class ({names}); give two or more")
    _check_classes(raw, stores)
    return Splits(raw.name, **stores, notes=raw.notes)


def _checked_images(split: RawSplit, size: int, channels: int | None) -> Tensor:
    images, where = split.images, split.images_from
    if images.dtype != np.uint8:
        raise UserError(f"{where}: dtype {images.dtype}; convert the pixels to uint8, 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise UserError(
            f"{where}: shape {images.shape}; give [N, {size}, {size}] or [N, {size}, {size}, 3]"
        )
    if len(images) == 0:
        raise UserError(f"{where}: no images; every split needs some")
    if images.shape[1:3] != (size, size):
        raise UserError(
            f"{where}: images of {images.shape[1]}x{images.shape[2]} pixels, {size}x{size} asked "
            "for; change image_size or resize them"
        )
    if images.shape[3] not in ((1, 3) if channels is None else (channels,)):
        wanted = "1 or 3" if channels is None else channels
        raise UserError(
            f"{where}: {images.shape[3]} channels, {wanted} expected; convert the images"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor written to
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _checked_labels(split: RawSplit, num_classes: int, allow_unlabelled: bool) -> Tensor:
    labels, where, count = split.labels, split.labels_from, len(split.images)
    if labels.shape[:1] != (count,) or labels.size != count:
        raise UserError(
            f"{where}: shape {labels.shape} for {count} images; give one label per image"
        )
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: dtype {labels.dtype}, beginning {labels.reshape(-1)[:3].tolist()}; "
            "give whole numbers from 0, as an integer dtype"
        )
    low, high = int(labels.min()), int(labels.max())
    if low == UNLABELLED and not allow_unlabelled:
        raise UserError(
            f"{where}: label {UNLABELLED}, which means an image without a label; label all images, "
            "or have people label them (oracle: people)"
        )
    if low < UNLABELLED or high >= num_classes:
        raise UserError(
            f"{where}: label {low if low < 0 else high} out of range; "
            f"number the {num_classes} classes 0 to {num_classes - 1}"
        )
    return torch.from_numpy(labels.reshape(-1).astype(np.int64))


def _check_classes(raw: RawSplits, stores: dict[str, ImageStore]) -> None:
    """Warn of classes that a split lacks; refuse a split whose labels are all of one class.

    Nothing can be learnt from or measured on such a split. Images without a label may turn out to
    be of any class, so a split that holds some is not judged.
    """
    consequences = {
        "train": "the network cannot learn it",
        "val": "its accuracy does not choose the best round, and it has no AUC",
        "test": "it has no AUC",
    }
    for name, store in stores.items():
        if (store.labels == UNLABELLED).any():
            continue
        counts = torch.bincount(store.labels, minlength=store.num_classes).tolist()
        absent = [cls for cls, count in zip(store.class_names, counts, strict=True) if count == 0]
        where = getattr(raw, name).labels_from
        if len(absent) == store.num_classes - 1:
            raise UserError(
                f"{where}: no image of class {', '.join(map(repr, absent))}; "
                "add some, or use a data set without the class"
            )
        if absent:
            raw.notes.warnings.append(
                f"{where}: no image of class {', '.join(absent)}; {consequences[name]}"
            )
