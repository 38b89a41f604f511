"""Hostile and damaged files: each is one clear refusal, soon, and memory stays where it was."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import io
import os
import pickle
import signal
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.decoding.decoder import Decoder, ReadImage
from serving.decoding.formats import declared_format
from serving.decoding.limits import Limits, RefusedFileError
from serving.decoding.pool import ChildPool

SIZE = 8
SECONDS = 1.0
LIMITS = Limits()


def decoding_children() -> list[psutil.Process]:
    """This process's children that decode files; a test's process has others, too."""
    children = psutil.Process().children()
    return [one for one in children if "serving.decoding.child" in " ".join(one.cmdline())]


def decode(data: bytes, name: str = "", limits: Limits = LIMITS) -> list[ReadImage]:
    """What a fresh child process makes of a file."""

    async def work() -> list[ReadImage]:
        async with Decoder(SIZE, 1, limits) as decoder:
            return await decoder.decode(data, declared_format(name, ""), preview=0)

    return asyncio.run(work())


def picture(kind: str, size: tuple[int, int] = (20, 10)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def npy(array: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def hdf5(fill: Callable[[h5py.File], object]) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        fill(content)
    return file.getvalue()


def zipped(content: bytes = b"0" * 10**6) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)
    return file.getvalue()


def huge_png() -> bytes:
    """13,000 x 13,000 pixels of grey in 1 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 0, 0, 0, 0)
    rows = zlib.compressobj(1)
    data = b"".join(rows.compress(bytes(13_001)) for _ in range(13_000)) + rows.flush()
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def claimed_npy(shape: tuple[int, ...]) -> bytes:
    """A header that claims `shape`, and no values."""
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def pages() -> bytes:
    file = io.BytesIO()
    one = Image.new("L", (8, 8))
    one.save(file, "TIFF", save_all=True, append_images=[one])
    return file.getvalue()


def external_link(file: h5py.File) -> None:
    file["x"] = h5py.ExternalLink("/etc/passwd", "x")


def external_values(file: h5py.File) -> None:
    file.create_dataset("x", (2, 8, 8), np.uint8, external=[("/etc/passwd", 0, 128)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2, 8, 8), np.uint8)
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (2, 8, 8), np.uint8)
    file.create_virtual_dataset("x", layout)


def soft_link(file: h5py.File) -> None:
    file["values"] = np.zeros((2, 8, 8), np.uint8)
    file["x"] = h5py.SoftLink("/values")


def never_written(file: h5py.File) -> None:
    file.create_dataset("x", (10**6, 96, 96, 3), np.uint8, chunks=(64, 96, 96, 3))


def few_never_written(file: h5py.File) -> None:
    file.create_dataset("x", (10, 8, 8), np.uint8, chunks=(1, 8, 8))[0] = 1


def contiguous_never_written(file: h5py.File) -> None:
    file.create_dataset("x", (10, 8, 8), np.uint8)


def chunk_bomb(file: h5py.File) -> None:
    chunks = (64, 256, 256)
    shape = {"shape": (1, 8, 8), "maxshape": (None, None, None), "chunks": chunks}
    file.create_dataset("x", dtype=np.uint8, compression="gzip", **shape)[:] = 0


PNG, JPEG = picture("PNG"), picture("JPEG")
CASES: dict[str, tuple[Callable[[], bytes], str, int, str]] = {
    # what: (bytes, file name, status, a part of the refusal)
    "empty": (lambda: b"", "a.png", 400, "empty"),
    "text": (lambda: b"hello", "a.png", 415, "no known kind"),
    "wrong ending": (lambda: JPEG, "a.png", 415, "JPEG by its content"),
    "ending that is not read": (lambda: PNG, "a.exe", 415, "'.exe'"),
    "archive": (zipped, "", 415, "ZIP"),
    "gzip": (lambda: gzip.compress(PNG), "a.png", 415, "gzip"),
    "pickle": (lambda: pickle.dumps([1]), "a.npy", 415, "pickle"),
    "truncated PNG": (lambda: PNG[:200], "a.png", 400, "too early"),
    "truncated JPEG": (lambda: JPEG[:200], "a.jpg", 400, "too early"),
    "truncated TIFF": (lambda: picture("TIFF")[:200], "a.tif", 400, "unusable"),
    "truncated NPY": (lambda: npy(np.zeros((9, 8, 8), np.uint8))[:-9], "a.npy", 400, "claims"),
    "truncated HDF5": (
        lambda: hdf5(lambda f: f.create_dataset("x", data=np.zeros((9, 8, 8), np.uint8)))[:900],
        "a.h5", 400, "cannot be read",
    ),
    "damaged PNG": (
        lambda: PNG[:60] + bytes(20) + PNG[80:], "a.png", 400, "unusable",
    ),
    "PNG and archive": (lambda: PNG + zipped(), "a.png", 415, "behind the end|ZIP"),
    "PNG and data": (lambda: PNG + b"more", "a.png", 415, "4 bytes behind"),
    "JPEG and archive": (lambda: JPEG + zipped(), "a.jpg", 415, "ZIP"),
    "JPEG and data": (lambda: JPEG + b"more", "a.jpg", 415, "4 bytes behind"),
    "JPEG with a script": (
        lambda: JPEG[:2] + b"\xff\xfe\x00\x13<script>x</script" + JPEG[2:], "a.jpg", 415, "script",
    ),
    "TIFF and archive": (lambda: picture("TIFF") + zipped(), "a.tif", 415, "ZIP"),
    "several pages": (pages, "a.tif", 400, "2 pages"),
    "huge PNG": (huge_png, "a.png", 413, "13000 x 13000"),
    "claimed NPY": (lambda: claimed_npy((10**6, 96, 96)), "a.npy", 413, "1,000,000 images"),
    "claimed pixels": (lambda: claimed_npy((1, 10**6, 10**6)), "a.npy", 413, "pixels"),
    "objects": (lambda: npy(np.array([{}]), allow_pickle=True), "a.npy", 415, "Python objects"),
    "float images": (lambda: npy(np.zeros((2, 8, 8))), "a.npy", 415, "float64"),
    "four channels": (lambda: npy(np.zeros((2, 8, 8, 4), np.uint8)), "a.npy", 415, "read are"),
    "never written": (lambda: hdf5(never_written), "a.h5", 413, "1,000,000 images"),
    "partly written": (lambda: hdf5(few_never_written), "a.h5", 400, "never written"),
    "never written as one": (lambda: hdf5(contiguous_never_written), "a.h5", 400, "never written"),
    "chunk bomb": (lambda: hdf5(chunk_bomb), "a.h5", 413, "chunks are larger"),
    "external link": (lambda: hdf5(external_link), "a.h5", 415, "link"),
    "soft link": (lambda: hdf5(soft_link), "a.h5", 415, "link"),
    "external values": (lambda: hdf5(external_values), "a.h5", 415, "another file"),
    "virtual": (lambda: hdf5(virtual), "a.h5", 415, "another file"),
    "no images": (lambda: hdf5(lambda f: f.create_dataset("y", data=[1, 2])), "a.h5", 415, "top"),
}  # fmt: skip


def test_every_hostile_file_is_refused_soon_in_flat_memory() -> None:
    """One child takes them all, so that what one file leaves behind would show."""

    async def work() -> None:
        async with Decoder(SIZE, 1, LIMITS) as decoder:
            await decoder.decode(PNG, None, 0)
            (child,) = decoding_children()
            await decoder.decode(GOOD_HDF5, None, 0)  # h5py is loaded
            before = child.memory_info().rss
            for what, (make, name, status, text) in CASES.items():
                data = make()
                start = time.perf_counter()
                with pytest.raises(RefusedFileError, match=text) as caught:
                    await decoder.decode(data, declared_format(name, ""), 0)
                assert caught.value.status == status, what
                assert "\n" not in caught.value.text, what
                assert time.perf_counter() - start < SECONDS, what
            assert child.memory_info().rss - before < 30 * 2**20
            assert len(await decoder.decode(PNG, None, 0)) == 1

    asyncio.run(work())


GOOD_HDF5 = hdf5(lambda file: file.create_dataset("x", data=np.zeros((3, 8, 8), np.uint8)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_pictures_are_read_as_training_reads_them(kind: str, tmp_path: Path) -> None:
    from data_sources import image_file

    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(picture(kind, (40, 24)))
    (found,) = decode(path.read_bytes(), path.name)
    expected = image_file.decode(path, SIZE).pixels
    grey = np.asarray(Image.fromarray(expected).convert("L"))
    np.testing.assert_array_equal(found.pixels[0], grey)
    assert (found.width, found.height) == (40, 24)


class TestLayouts:
    images = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE), dtype=np.uint8)

    @pytest.mark.parametrize(
        ("array", "count"),
        [
            (images, 4),
            (images[..., None], 4),
            (np.asfortranarray(images), 4),
            (images[0], 1),
            (np.stack([images] * 3, -1), 4),
            (np.stack([images[0]] * 3, -1), 1),
        ],
    )
    def test_arrays(self, array: NDArray[np.uint8], count: int) -> None:
        for data, name in (
            (npy(array), "a.npy"),
            (hdf5(lambda file: file.create_dataset("x", data=array)), "a.h5"),
        ):
            found = decode(data, name)
            assert len(found) == count
            for one, expected in zip(found, self.images, strict=False):
                np.testing.assert_array_equal(one.pixels[0], expected)

    def test_only_x_is_read_where_there_is_one(self) -> None:
        def fill(file: h5py.File) -> None:
            file["x"] = self.images
            file["y"] = np.zeros((4, 1, 1), np.uint8)

        assert [one.name for one in decode(hdf5(fill), "a.h5")] == [f"x[{n}]" for n in range(4)]

    def test_all_arrays_of_images_where_there_is_none(self) -> None:
        def fill(file: h5py.File) -> None:
            file["first"] = self.images[:1]
            file["second"] = self.images[1:]
            file["labels"] = np.zeros(4, np.int64)

        found = decode(hdf5(fill), "a.h5")
        assert [one.name for one in found] == ["first[0]", "second[0]", "second[1]", "second[2]"]

    def test_phase_of_two_channel_images(self) -> None:
        phase = np.linspace(-1, 8, 2 * SIZE * SIZE).reshape(2, SIZE, SIZE)
        phase[0, 0, 1] = np.nan
        expected = np.rint(np.nan_to_num(phase).clip(0, 2 * np.pi) * 255 / (2 * np.pi))

        def fill(file: h5py.File) -> None:
            file["amplitude/images"] = np.ones_like(phase)
            file["phase/images"] = phase

        stacked = np.stack([np.ones_like(phase), phase], axis=-1).astype(np.float32)
        for data, name in ((hdf5(fill), "a.h5"), (npy(stacked), "a.npy")):
            found = np.stack([one.pixels[0] for one in decode(data, name)]).astype(float)
            np.testing.assert_allclose(found, expected, atol=1)


class TestChildren:
    def test_one_that_takes_too_long_is_killed_and_replaced(self) -> None:
        file = io.BytesIO()
        Image.new("RGB", (4900, 4900)).save(file, "PNG", compress_level=1)

        async def work() -> None:
            async with Decoder(SIZE, 1, dataclasses.replace(LIMITS, seconds=20)) as decoder:
                await decoder.decode(PNG, None, 0)
                (first,) = decoding_children()
                decoder._pool._children[0]._seconds = 0.1
                with pytest.raises(RefusedFileError, match=r"more than 0\.1 s") as caught:
                    await decoder.decode(file.getvalue(), None, 0)
                assert caught.value.status == 413
                while first.is_running():  # until its end is noticed
                    await asyncio.sleep(0.01)
                assert len(await decoder.decode(PNG, None, 0)) == 1

        asyncio.run(work())

    def test_one_that_dies_is_replaced(self) -> None:
        async def work() -> None:
            async with Decoder(SIZE, 1, LIMITS) as decoder:
                await decoder.decode(PNG, None, 0)
                (child,) = decoding_children()
                os.kill(child.pid, signal.SIGSTOP)
                task = asyncio.create_task(decoder.decode(PNG, None, 0))
                await asyncio.sleep(0.05)
                os.kill(child.pid, signal.SIGKILL)
                with pytest.raises(RefusedFileError, match="crashes"):
                    await task
                assert len(await decoder.decode(PNG, None, 0)) == 1

        asyncio.run(work())

    def test_only_the_message_that_kills_its_child_is_refused(self) -> None:
        child = (
            "import os, sys\n"
            "from serving.decoding.frames import packed, read_unit\n"
            "while (unit := read_unit(sys.stdin.buffer)) is not None:\n"
            "    if any(data == b'deadly' for _, data in unit): os._exit(1)\n"
            "    sys.stdout.buffer.write(packed([(b'', data[::-1]) for _, data in unit]))\n"
            "    sys.stdout.buffer.flush()\n"
        )
        sent = [b"deadly" if n == 5 else f"message {n}".encode() for n in range(40)]

        async def work() -> list[Any]:
            async with ChildPool(("-c", child), 1, 20) as pool:
                asked = (pool.ask(b"", data) for data in sent)
                return list(await asyncio.gather(*asked, return_exceptions=True))

        answers = asyncio.run(work())
        assert isinstance(answers.pop(5), RefusedFileError)
        assert answers == [(b"", data[::-1]) for data in sent if data != b"deadly"]

    def test_all_are_read_when_a_decoder_of_many_dies(self) -> None:
        async def work() -> None:
            async with Decoder(SIZE, 1, LIMITS) as decoder:
                await decoder.decode(PNG, None, 0)
                (child,) = decoding_children()
                os.kill(child.pid, signal.SIGSTOP)
                tasks = [asyncio.create_task(decoder.decode(PNG, None, 0)) for _ in range(40)]
                await asyncio.sleep(0.05)
                tasks[1].cancel()
                os.kill(child.pid, signal.SIGKILL)
                found = await asyncio.gather(*tasks, return_exceptions=True)
                assert isinstance(found.pop(1), asyncio.CancelledError)
                assert [len(images) for images in found if isinstance(images, list)] == [1] * 39

        asyncio.run(work())

    def test_memory_is_limited(self) -> None:
        limits = dataclasses.replace(LIMITS, memory_bytes=300 * 2**20, max_pixels=10**8)
        with pytest.raises(RefusedFileError) as caught:
            decode(huge_png(), "a.png", limits)
        assert caught.value.status in (400, 413)

    def test_nothing_is_left_at_the_end(self) -> None:
        decode(PNG)
        assert decoding_children() == []
