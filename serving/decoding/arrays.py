"""Images in NPY and HDF5 files: which layouts are read, and all the checks before reading.

| file | layout | read as |
| --- | --- | --- |
| NPY, HDF5 | uint8 [N, H, W] or [N, H, W, 1 or 3] | N images |
| NPY, HDF5 | uint8 [H, W] or [H, W, 3] | one image |
| NPY, HDF5 | float [N, H, W, 2]: amplitude, phase | N images, the phase |
| HDF5 | amplitude/images and phase/images, number [N, H, W] | N images, the phase |

Of an HDF5 file with a data set `x`, only `x` is read; else every array of images at its top. The
phase, in radians, is read as a grey image from 0 (black) to 2 pi (white). The amplitude is checked
and not used: networks here see one grey channel, and a cell stands out in the phase.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from serving.decoding.limits import Limits, RefusedFileError

LAYOUTS = (
    "read are uint8 [N, H, W], [N, H, W, 1], [N, H, W, 3], [H, W] and [H, W, 3], float "
    "[N, H, W, 2] with amplitude and phase, and in HDF5 amplitude/images with phase/images"
)
PHASE_RANGE = 2 * math.pi  # radians; the phase is unwrapped by less than that across a cell
Images = Iterator[tuple[str, NDArray[np.uint8]]]


def read_npy(data: bytes, limits: Limits) -> Images:
    """Yield names and images of an NPY file; never a pickle.

    Raises:
        RefusedFileError: the file is damaged, too large or of another layout.
    """
    stream = BytesIO(data)
    try:
        version = npy.read_magic(stream)
        if version != (1, 0):  # later versions let a header itself claim 4 GB
            raise ValueError(f".npy version {version} is not read")
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    except Exception as error:  # numpy's header parser raises a dozen types on bad bytes
        reason = " ".join(str(error).split())[:120]
        raise RefusedFileError(400, f"the NPY file is damaged: {reason}") from error
    if dtype.hasobject:
        raise RefusedFileError(415, "the NPY file holds Python objects, which are never loaded")
    _check_layout(shape, dtype, "the array", limits)
    claimed, there = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if claimed != there:
        raise RefusedFileError(
            400, f"the NPY file claims {claimed:,} bytes of values and has {there:,}; send it again"
        )
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    array = flat.reshape(shape, order="F" if fortran else "C")
    return _images(array, "")


def read_hdf5(data: bytes, limits: Limits) -> Images:
    """Yield names and images of an HDF5 file, which is never on disk.

    Links and values outside of the file are refused, and so are values that were never written.

    Raises:
        RefusedFileError: the file is damaged, too large or of another layout.
    """
    import h5py

    try:
        with h5py.File(BytesIO(data), "r") as file:
            found = _image_data_sets(file, limits)
            for name, dataset in found.items():
                values = np.asarray(dataset[()])
                if name.startswith("phase/"):
                    values = values.astype(np.float32)[..., np.newaxis].repeat(2, axis=3)
                yield from _images(values, name)
    except (RefusedFileError, MemoryError):
        raise
    # h5py raises OSError for most damage, and KeyError, RuntimeError, ValueError for the rest.
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise RefusedFileError(400, f"the HDF5 file cannot be read: {reason}") from error


def _image_data_sets(file: Any, limits: Limits) -> dict[str, Any]:
    """The data sets that hold images, by name, each checked."""
    import h5py

    phase, amplitude = (_inside(file, f"{name}/images") for name in ("phase", "amplitude"))
    if phase is not None and amplitude is not None:
        if phase.shape != amplitude.shape or phase.ndim != 3:
            raise RefusedFileError(
                415, f"phase/images {phase.shape} and amplitude/images {amplitude.shape} differ"
            )
        _check_stored(phase, "phase/images")
        _check_layout((*phase.shape, 2), np.dtype(np.float32), "phase/images", limits)
        if phase.dtype.kind not in "fiu":
            raise RefusedFileError(415, f"phase/images holds {phase.dtype}; give numbers")
        return {"phase/images": phase}
    names = ["x"] if "x" in file else sorted(file)[: limits.max_images]
    found = {}
    for name in names:
        dataset = _inside(file, name)
        if not isinstance(dataset, h5py.Dataset):
            continue
        if name != "x" and dataset.ndim < 3:
            continue  # labels and the like
        _check_layout(dataset.shape, dataset.dtype, name[:60], limits)
        _check_stored(dataset, name[:60])
        found[name] = dataset
    if not found:
        raise RefusedFileError(415, f"the HDF5 file has no images at its top; {LAYOUTS}")
    if sum(math.prod(one.shape[:3]) for one in found.values()) > limits.max_file_pixels:
        raise _too_many_pixels("the file", limits)
    return found


def _inside(file: Any, path: str) -> Any:
    """What is at `path`, reached by hard links alone; None: nothing."""
    import h5py

    node = file
    for name in path.split("/"):
        if not isinstance(node, h5py.Group) or name not in node:
            return None
        if node.get(name, getclass=True, getlink=True) is not h5py.HardLink:
            raise RefusedFileError(415, f"{path[:60]} is a link; copy the values into its place")
        node = node[name]
    return node


def _check_stored(dataset: Any, where: str) -> None:
    """Refuse values that lie outside of the file, or nowhere."""
    if dataset.external or dataset.is_virtual:
        raise RefusedFileError(415, f"{where}: its values lie in another file; copy them into this")
    if dataset.chunks:
        needed = math.prod(
            -(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True)
        )
        missing = needed - dataset.id.get_num_chunks()
        # A chunk is decompressed whole, whatever part of it the array needs.
        if math.prod(dataset.chunks) > 2 * max(dataset.size, 2**20):
            raise RefusedFileError(413, f"{where}: its chunks are larger than its images")
    else:
        missing = int(dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize)
    if missing:
        raise RefusedFileError(400, f"{where}: some of its values were never written")


def _check_layout(shape: tuple[int, ...], dtype: np.dtype[Any], where: str, limits: Limits) -> None:
    two_channels = len(shape) == 4 and shape[3] == 2 and dtype.kind == "f"
    readable = dtype == np.uint8 and (
        len(shape) in (2, 3) or (len(shape) == 4 and shape[3] in (1, 3))
    )
    if not (two_channels or readable) or 0 in shape:
        raise RefusedFileError(415, f"{where} is {dtype} of shape {list(shape)[:6]}; {LAYOUTS}")
    one_image = _is_one_image(shape)
    count = 1 if one_image else shape[0]
    height, width = shape[:2] if one_image else shape[1:3]
    if count > limits.max_images:
        raise RefusedFileError(
            413, f"{where} has {count:,} images, more than {limits.max_images}; split it"
        )
    if height * width > limits.max_pixels or count * height * width > limits.max_file_pixels:
        raise _too_many_pixels(where, limits)


def _too_many_pixels(where: str, limits: Limits) -> RefusedFileError:
    return RefusedFileError(
        413,
        f"{where} has more than {limits.max_pixels:,} pixels in an image or "
        f"{limits.max_file_pixels:,} in all; split it",
    )


def _is_one_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)


def _images(array: NDArray[Any], name: str) -> Images:
    """Yield the images of an array whose layout was checked: uint8 [H, W] or [H, W, 3] each."""
    if _is_one_image(array.shape):
        yield name, array
        return
    for index, image in enumerate(array):
        if image.shape[-1] == 2 and image.dtype.kind == "f":
            image = _phase_as_grey(image[..., 1])
        elif image.ndim == 3 and image.shape[2] == 1:
            image = image[..., 0]
        yield f"{name}[{index}]", np.ascontiguousarray(image)


def _phase_as_grey(phase: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """A phase in radians, [H, W], as uint8: 0 is black, 2 pi white; NaN is black."""
    scaled = np.nan_to_num(phase.astype(np.float32)) * (255 / PHASE_RANGE)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
