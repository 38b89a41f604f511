"""Input that cannot be used, laid out in the current folder, for tests/test_bad_input.py."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from run_folder.names import FORMAT
from tests.conftest import small_values
from training.hyperparameters import Hyperparameters

Arrays = dict[str, Any]
Make = Callable[[], list[str]]  # lays out a case; the command line that is then to be refused

FLAG = "breastmnist"  # grey, two classes
RUN = "run"  # where a case's run folder is to be

# --- how a case is laid out -----------------------------------------------------------------------


def config_of(**changes: Any) -> dict[str, Any]:
    return {
        "hyperparameters": small_values(**changes),
        "reproducibility": {"experiment_seed": 0},
    }


def write_config(config: Any) -> list[str]:
    Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return ["--config", "config.yaml", "--output-dir", RUN]


def hp(**changes: Any) -> Make:
    """Valid hyperparameters with `changes`."""
    return lambda: write_config(config_of(**changes))


def search(**changes: Any) -> Make:
    """A search with wrong `changes`."""
    searcher = {"name": "adaptive_asha", "max_time": 3, "time_metric": "epochs", **changes}
    return lambda: write_config({**config_of(), "searcher": searcher})


def config_file(content: bytes) -> Make:
    def make() -> list[str]:
        Path("config.yaml").write_bytes(content)
        return ["--config", "config.yaml", "--output-dir", RUN]

    return make


def assigned(*assignments: str) -> Make:
    return lambda: [*write_config(config_of()), "--set", *assignments]


def seeded(seed: Any) -> Make:
    return lambda: write_config({**config_of(), "reproducibility": {"experiment_seed": seed}})


def data(
    dataset: str, lay_out: Callable[[Path], object] = lambda folder: None, **changes: Any
) -> Make:
    """A run on `dataset`, whose files `lay_out` puts into the data folder."""

    def make() -> list[str]:
        folder = Path("data").absolute()
        folder.mkdir(exist_ok=True)
        lay_out(folder)
        values = {"image_size": 28, "data_dir": str(folder), **changes}
        return write_config(config_of(dataset=dataset, **values))

    return make


# --- archives of arrays ---------------------------------------------------------------------------


def good_arrays(size: int = 28) -> Arrays:
    rng = np.random.default_rng(0)
    arrays: Arrays = {}
    for split, count in (("train", 200), ("val", 4), ("test", 6)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    return arrays


def as_npz(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def archive(content: Callable[[], bytes] | bytes) -> Make:
    def lay_out(folder: Path) -> None:
        (folder / f"{FLAG}.npz").write_bytes(content() if callable(content) else content)

    return data(FLAG, lay_out)


def changed(**replace: Any) -> Make:
    """A good file with some arrays replaced; a value of None leaves the array out."""

    def content() -> bytes:
        arrays = {**good_arrays(), **replace}
        return as_npz({key: value for key, value in arrays.items() if value is not None})

    return archive(content)


def damaged_in_the_middle() -> bytes:
    content = bytearray(as_npz(good_arrays()))
    content[1000] ^= 0xFF
    return bytes(content)


def with_member(name: str, content: bytes) -> Make:
    """A good file, of which one member is replaced."""

    def make() -> bytes:
        arrays = good_arrays()
        arrays.pop(name, None)
        file = io.BytesIO(as_npz(arrays))
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr(f"{name}.npy", content)
        return file.getvalue()

    return archive(make)


def npy_header(shape: str, dtype: str = "|u1", version: bytes = b"\x01\x00") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header


def zip_bomb() -> bytes:
    """Zeros that shrink to a thousandth."""
    return as_npz({**good_arrays(), "train_images": np.zeros((9000, 28, 28), dtype=np.uint8)})


def out_of_the_folder() -> bytes:
    arrays = good_arrays()
    arrays["../../../train_images"] = arrays.pop("train_images")
    return as_npz(arrays)


IMAGES = np.zeros((200, 28, 28), dtype=np.uint8)
GOOD_FILE = "replace it with https://"  # where a good file comes from

# --- folders of images ----------------------------------------------------------------------------


def image_folder(spoil: Callable[[Path], object]) -> Make:
    """Two classes of 100 images, changed by `spoil`."""

    def lay_out(folder: Path) -> None:
        rng = np.random.default_rng(0)
        for number in range(200):
            path = folder / "set" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
        spoil(folder / "set")

    return data("folder:set", lay_out, image_size=8)


def cut_short(root: Path) -> None:
    path = root / "a" / "cut.png"
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (99, 99), dtype=np.uint8)).save(path)
    os.truncate(path, 5000)


def image_bomb(root: Path) -> None:
    """A PNG of a few bytes whose header promises 3.6 thousand million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    (root / "a" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def linked_out(root: Path) -> None:
    (root.parent / "private").mkdir()
    shutil.move(root / "a" / "0.png", root.parent / "private" / "0.png")
    (root / "a" / "0.png").symlink_to(root.parent / "private" / "0.png")


def class_of_scans(root: Path) -> None:
    (root / "c").mkdir()
    (root / "c" / "scan.dcm").write_text("no image")


def twelve_bits(root: Path) -> None:
    Image.fromarray(np.full((9, 9), 4095, dtype=np.uint16)).save(root / "a" / "deep.png")


def real_numbers(root: Path) -> None:
    Image.fromarray(np.zeros((9, 9), dtype=np.float32)).save(root / "a" / "deep.tif")


def pages(root: Path) -> None:
    page = Image.fromarray(np.zeros((9, 9), dtype=np.uint8))
    page.save(root / "a" / "stack.tif", save_all=True, append_images=[page, page])


# --- HDF5 -----------------------------------------------------------------------------------------


def hdf5(file: str, spoil: Callable[[Any], object]) -> Make:
    """Valid files in PatchCamelyon's layout; `spoil` changes one of them."""

    def lay_out(folder: Path) -> None:
        import h5py

        for split in ("train", "valid", "test"):
            with h5py.File(folder / f"set_{split}_x.h5", "w") as opened:
                opened["x"] = np.zeros((200, 8, 8, 3), dtype=np.uint8)
            with h5py.File(folder / f"set_{split}_y.h5", "w") as opened:
                opened["y"] = (np.arange(200, dtype=np.uint8) % 2).reshape(200, 1, 1, 1)
        with h5py.File(folder / f"set_{file}.h5", "a") as opened:
            spoil(opened)

    return data("hdf5:set", lay_out, image_size=8)


def put(key: str, value: Any) -> Callable[[Any], None]:
    def spoil(file: Any) -> None:
        for name in list(file):
            del file[name]
        file[key] = value

    return spoil


def external_link(file: Any) -> None:
    import h5py

    del file["x"]
    file["x"] = h5py.ExternalLink("set_test_x.h5", "x")


def external_storage(file: Any) -> None:
    """Pixels that are the bytes of any other file of the machine."""
    del file["x"]
    secret = Path("secret").absolute()
    secret.write_bytes(bytes(200 * 8 * 8 * 3))
    file.create_dataset("x", (200, 8, 8, 3), np.uint8, external=[(str(secret), 0, 38_400)])


def one_endless_image(file: Any) -> None:
    del file["x"]
    file.create_dataset("x", (1, 10**6, 10**6), np.uint8, chunks=(1, 64, 64))


CHECKPOINT_ID = "8b2fb1f6-2f8f-4b4e-9a63-1f2f5f0f8f11"

# --- run folders ----------------------------------------------------------------------------------


def run_folder(spoil: Callable[[Path], object]) -> Make:
    """A run on the digits that was killed in its first round and then damaged by `spoil`."""

    def make() -> list[str]:
        run = Path(RUN)
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump(config_of()), encoding="utf-8")
        identity()(run)
        spoil(run)
        return ["--resume", RUN]

    return make


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(content, encoding="utf-8")


def identity(**values: Any) -> Callable[[Path], object]:
    """A run.json as a run on the digits writes it, with `values` in place of its own."""
    content = {
        "format": FORMAT,
        "dataset": "digits",
        "fingerprint": "00",
        "seed": 0,
        "settings": SETTINGS,
        "class_names": [str(digit) for digit in range(10)],
        "image_size": 8,
        "channels": 1,
        "mean": [0.3],
        "std": [0.3],
        "goal": {"metric": "val_loss", "smaller_is_better": True},
        "versions": {"torch": "2.3"},
    }
    return text("run.json", json.dumps({**content, **values}))


SETTINGS = Hyperparameters.from_mapping(small_values()).resolved()
other_settings = identity(settings={**SETTINGS, "rounds": 9})
other_data = identity()  # whose fingerprint is not 00


def occupied() -> list[str]:
    Path(RUN).mkdir()
    (Path(RUN) / "notes.txt").touch()
    return write_config(config_of())


def taken_by_a_file() -> list[str]:
    Path(RUN).touch()
    return write_config(config_of())


def below_a_file() -> list[str]:
    Path("file").touch()
    return [*write_config(config_of())[:2], "--output-dir", f"file/{RUN}"]


def lost_checkpoint(run: Path) -> None:
    entry = {"uuid": CHECKPOINT_ID, "round": 0, "val_loss": 1.0, "blake2b": {"run.json": "00"}}
    (run / "checkpoints.json").write_text(json.dumps([entry]), encoding="utf-8")


# --- permissions ---


@contextlib.contextmanager
def plain_user() -> Iterator[None]:
    """Root may read and write everything: step down for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
