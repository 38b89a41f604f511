"""Whatever is wrong with the input, a run ends before training with one line that helps.

Every case goes through the command line, in this process. The line names the thing, the value
found and the remedy; `CASES` holds a piece of each.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import model_def
from active_learning import ActiveLearner
from data_sources import raw
from data_sources.hdf5 import image_blocks
from data_sources.image_file import decode
from data_sources.medmnist_table import medmnist_sets
from errors import UserError
from run_folder.writer import RunFolder
from tests.bad_input_cases import CASES
from tests.bad_input_makers import (
    FLAG,
    RUN,
    Make,
    as_npz,
    config_of,
    data,
    good_arrays,
    hp,
    identity,
    lost_checkpoint,
    plain_user,
    run_folder,
    write_config,
)
from tests.conftest import small_values
from tests.reliability import processes
from training import experiment_config
from training.devices import check_devices
from training.hyperparameters import Hyperparameters


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder to be in, no network, and no step of training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(raw, "BOMB_BYTES", 2**21)  # so that a small one will do

    def never(learner: ActiveLearner) -> None:
        pytest.fail("training began")

    monkeypatch.setattr(ActiveLearner, "propose", never)


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line, besides the log, that a failing run prints."""
    assert model_def.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:]
    assert not any("Traceback" in line for line in lines)
    return errors[0]


def test_there_are_enough_cases() -> None:
    assert len({name for name, *_ in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize(
    ("make", "thing", "remedy"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_one_line_names_thing_value_and_remedy(
    make: Make, thing: str, remedy: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = make()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    line = complaint(arguments, capsys)
    assert thing in line
    assert remedy in line
    assert len(line) < 500
    # What was there is as it was, and nothing is left that the next attempt would stumble over.
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before
    if "--output-dir" in arguments and not any(path.is_relative_to(RUN) for path in before):
        assert not (tmp_path / RUN / "config.yaml").exists()


# --- what a table cannot hold ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "lay_out", "thing"),
    [
        (FLAG, lambda d: (d / f"{FLAG}.npz").touch(mode=0), "npz: cannot be read (Permission"),
        (FLAG, lambda d: d.chmod(0o555), "could not be downloaded (Permission denied: "),
        ("folder:set", lambda d: (d / "set").mkdir(mode=0), "set: cannot be read (Permission"),
        ("hdf5:set", lambda d: (d / "set_train_x.h5").touch(mode=0), "x.h5: cannot be read"),
    ],
)
def test_data_without_permission(
    dataset: str,
    lay_out: Callable[[Path], object],
    thing: str,
    public_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(public_dir)
    arguments = data(dataset, lay_out)()
    Path(RUN).mkdir()
    Path(RUN).chmod(0o777)
    with plain_user():
        assert thing in complaint(arguments, capsys)


@pytest.mark.parametrize(
    ("make", "thing"),
    [
        (hp(), "--output-dir run: cannot be written (Permission denied); name another"),
        (run_folder(identity()), "--resume run: cannot be written (Permission denied); change its"),
    ],
)
def test_read_only_output(
    make: Make,
    thing: str,
    public_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(public_dir)
    arguments = make()
    with plain_user():
        assert thing in complaint(arguments, capsys)


def test_a_download_with_another_md5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "served.npz").write_bytes(as_npz(good_arrays()))
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/served.npz"
        monkeypatch.setitem(medmnist_sets()[FLAG], "url", url)
        line = complaint(data(FLAG)(), capsys)
        server.shutdown()
    assert f"expected {medmnist_sets()[FLAG]['MD5']}" in line
    assert f"download {url} by hand and save it as" in line
    assert not list((tmp_path / "data").glob("*.npz"))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("found", "environment", "thing", "remedy"),
    [
        (0, {"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES: 0, but torch", "unset it to run"),
        (0, {"CUDA_VISIBLE_DEVICES": "GPU-9"}, "CUDA_VISIBLE_DEVICES: GPU-9", "unset it to run"),
        (1, {"LOCAL_WORLD_SIZE": "3"}, "3 processes but 1 GPUs", "start one per GPU"),
    ],
)
def test_gpus_that_are_not_there(
    found: int,
    environment: dict[str, str],
    thing: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = complaint(hp()(), capsys)
    assert thing in line
    assert remedy in line


@pytest.mark.parametrize(("option", "tracebacks"), [([], 0), (["--traceback"], 1)])
def test_a_traceback_is_shown_where_asked_for(option: list[str], tracebacks: int) -> None:
    """The run is a separate process, as for a user."""
    log = Path("log.txt").absolute()
    write_config(config_of(query_strategy="margni"))
    arguments: list[str | Path] = ["--config", Path("config.yaml").absolute(), *option]
    assert processes.wait(processes.start(arguments, log)) != 0
    said = log.read_text()
    assert said.count("Traceback") == tracebacks
    assert "query_strategy: unknown" in said.splitlines()[-1]
    assert tracebacks or len(said.splitlines()) == 1


def test_gpus_of_a_cluster_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="slots_per_trial: 2 GPUs are assigned, but torch"):
        check_devices({}, 2, 1)
    check_devices({"CUDA_VISIBLE_DEVICES": "-1"}, 0, 4)


# --- fuzzing --------------------------------------------------------------------------------------

YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "val", "vals", "minval", "maxval", "base"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(small_values())), value=YAML_VALUES)
def test_any_value_in_a_configuration_is_used_or_refused(name: str, value: Any) -> None:
    write_config(config_of(**{name: value}))
    with contextlib.suppress(UserError):
        config = experiment_config.load(Path("config.yaml"))
        values, _ = experiment_config.sample(config["hyperparameters"], 0)
        Hyperparameters.from_mapping(values).check_ranks(1)


@settings(max_examples=100)
@given(content=st.data())
def test_a_damaged_image_is_decoded_or_refused(content: st.DataObject) -> None:
    kind = content.draw(st.sampled_from(["PNG", "JPEG", "TIFF", "BMP"]))
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12)).save("image.png", kind)
    damage(Path("image.png"), content, 60)
    with contextlib.suppress(UserError):
        assert decode(Path("image.png"), 8).pixels.shape[:2] == (8, 8)


@settings(max_examples=60)
@given(content=st.data())
def test_a_damaged_hdf5_file_is_read_or_refused(content: st.DataObject) -> None:
    import h5py

    with h5py.File("images.h5", "w") as file:
        file["x"] = np.zeros((4, 8, 8), dtype=np.uint8)
    damage(Path("images.h5"), content, 400)
    with contextlib.suppress(UserError):
        list(image_blocks(Path("images.h5"), 8))


@settings(max_examples=60)
@given(content=st.data())
def test_a_damaged_run_folder_is_opened_or_refused(content: st.DataObject) -> None:
    shutil.rmtree(RUN, ignore_errors=True)
    run_folder(lost_checkpoint)()
    names = ["checkpoints.json", "run.json", "config.yaml"]
    damage(Path(RUN, content.draw(st.sampled_from(names))), content, 10**6)
    with contextlib.suppress(UserError):
        folder, _ = RunFolder.open(Path(RUN))
        folder.latest_checkpoint()


def damage(file: Path, content: st.DataObject, hit: int) -> None:
    """Overwrite a few bytes among the first `hit`, and perhaps cut the rest off."""
    changed = bytearray(file.read_bytes())
    for _ in range(content.draw(st.integers(1, 4))):
        place = content.draw(st.integers(0, min(hit, len(changed)) - 1))
        changed[place] = content.draw(st.integers(0, 255))
    if content.draw(st.booleans()):
        del changed[content.draw(st.integers(0, len(changed))) :]
    file.write_bytes(changed)
