"""The prediction service: what it answers, what it counts, and what it does under load."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import gc
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message

from benchmarks.service_clients import png, running_service
from data import normalise
from errors import UserError
from labelling.log import AnswerLog
from labelling.uploads import Uploads
from reporting.grad_cam import grad_cam
from run_folder import reader
from run_folder.reader import Run, open_run
from serving import command
from serving.activation import enlarged
from serving.app import Correct, service_app
from serving.batching import Batcher
from serving.decoding.limits import Limits
from serving.engine import OnnxEngine, TorchEngine
from serving.exported import EVIDENCE, ExportedModel, read_exported, read_references
from serving.outliers import CACHED_BYTES, Neighbours
from serving.service import Service, ServiceSettings
from tests.conftest import ROOT
from tools import serve
from web.access import Access

PNG = {"Content-Type": "image/png"}
NPY = {"Content-Type": "application/x-npy"}


@pytest.fixture(scope="module")
def run(small_run: Path) -> Run:
    return open_run(small_run)


@pytest.fixture(scope="module")
def images(run: Run) -> NDArray[np.uint8]:
    """Test images, uint8 [20, 1, 8, 8]."""
    return run.splits.test.images[:20].numpy()


@contextlib.contextmanager
def client_of(
    folder: Path,
    settings: ServiceSettings | None = None,
    log: io.StringIO | None = None,
    correct: Correct | None = None,
) -> Iterator[tuple[TestClient, Service]]:
    service = Service(folder, settings or ServiceSettings())
    app = service_app(service, Access.for_address("127.0.0.1", 80), log or io.StringIO(), correct)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client, service


@pytest.fixture(scope="module")
def client(exported: Path) -> Iterator[TestClient]:
    with client_of(exported) as (client, _):
        yield client


def npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class TestPredictions:
    def test_are_those_of_the_run_calibrated(
        self, client: TestClient, exported: Path, run: Run, images: NDArray[np.uint8]
    ) -> None:
        model = read_exported(exported)
        embeddings = run.inference.embed(torch.from_numpy(images), "test")
        expected = (run.inference.logits(embeddings) / model.temperature).softmax(1)
        references = read_references(exported, model)
        assert references is not None
        assert model.outliers is not None
        nearest = torch.cdist(embeddings, torch.from_numpy(references)).sort(1).values[:, :5]
        for index, image in enumerate(images):
            answer = client.post("/predict", content=png(image), headers=PNG)
            (found,) = answer.json()["predictions"]
            assert list(found["probabilities"]) == model.classes
            values = list(found["probabilities"].values())
            np.testing.assert_allclose(values, expected[index].tolist(), atol=2e-5)
            assert found["class"] == model.classes[int(expected[index].argmax())]
            entropy = torch.special.entr(expected[index]).sum().item()
            assert found["uncertainty"] == pytest.approx(entropy, abs=1e-4)
            distance = nearest[index].mean().item()
            assert found["distance"] == pytest.approx(distance, abs=1e-3)
            assert found["outlier"] == (distance > model.outliers.threshold)

    def test_agree_for_every_way_of_sending(
        self, client: TestClient, images: NDArray[np.uint8]
    ) -> None:
        one_by_one = [
            client.post("/invocations", content=png(image), headers=PNG).json()["predictions"][0]
            for image in images
        ]
        together = client.post("/predict", content=npy(images[:, 0]), headers=NPY).json()
        files = [("file", (f"{n}.png", png(image))) for n, image in enumerate(images)]
        form = client.post("/predict", files=files).json()
        assert [one["image"] for one in together["predictions"]] == [f"[{n}]" for n in range(20)]
        assert [one["file"] for one in form["predictions"]] == [f"{n}.png" for n in range(20)]
        assert [one["index"] for one in form["predictions"]] == list(range(20))
        for several in (together, form):
            for alone, one in zip(one_by_one, several["predictions"], strict=True):
                assert one["class"] == alone["class"]
                assert one["probability"] == pytest.approx(alone["probability"], abs=1e-5)
                assert one["distance"] == pytest.approx(alone["distance"], abs=1e-3)

    def test_images_of_noise_are_outliers(self, client: TestClient) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
        answer = client.post("/predict", content=npy(noise), headers=NPY).json()
        assert np.mean([one["outlier"] for one in answer["predictions"]]) > 0.9

    def test_a_damaged_file_of_a_form_is_listed(
        self, client: TestClient, images: NDArray[np.uint8]
    ) -> None:
        files = [("file", ("a.png", png(images[0])[:40])), ("file", ("b.png", png(images[1])))]
        answer = client.post("/predict", files=files)
        assert answer.status_code == 200
        assert [one["index"] for one in answer.json()["predictions"]] == [1]
        (refused,) = answer.json()["refused"]
        assert (refused["index"], refused["file"], refused["status"]) == (0, "a.png", 400)

    def test_preview_is_the_picture(self, client: TestClient, images: NDArray[np.uint8]) -> None:
        answer = client.post("/predict?preview=true", content=png(images[0]), headers=PNG).json()
        _, _, text = answer["predictions"][0]["preview"].partition("base64,")
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        np.testing.assert_array_equal(picture, images[0, 0])

    def test_without_references_there_is_no_flag(self, exported: Path, tmp_path: Path) -> None:
        plain = tmp_path / "plain"
        plain.mkdir()
        os.link(exported / "model.onnx", plain / "model.onnx")
        model = dataclasses.replace(read_exported(exported), outliers=None)
        (plain / "config.json").write_text(model.to_json(), encoding="utf-8")
        image = png(np.zeros((1, 8, 8), np.uint8))
        with client_of(plain) as (client, _):
            answer = client.post("/predict", content=image, headers=PNG).json()
        assert answer["predictions"][0]["outlier"] is None
        assert answer["predictions"][0]["distance"] is None


def test_torch_and_onnx_agree(exported: Path, images: NDArray[np.uint8]) -> None:
    model = read_exported(exported)
    for found, expected in zip(
        TorchEngine(exported, model).run(images), OnnxEngine(exported).run(images), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_onnx_runtime_sends_nothing(exported: Path, tmp_path: Path) -> None:
    """Its telemetry would write a device's number into the cache at once."""
    code = (
        "import sys; from pathlib import Path; from serving.onnx_file import OnnxFile; "
        "OnnxFile(Path(sys.argv[1]))"
    )
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", code, str(exported / "model.onnx")]
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_neighbours_are_the_nearest() -> None:
    generator = np.random.default_rng(0)
    references = generator.normal(size=(40, 6)).astype(np.float32)
    others = generator.normal(size=(9, 6)).astype(np.float32)
    every = np.linalg.norm(others[:, None] - references[None], axis=2)
    expected = np.sort(every, axis=1)[:, :5].mean(1)
    np.testing.assert_allclose(Neighbours(references).distances(others), expected, rtol=1e-4)
    few = Neighbours(references[:2]).distances(others)
    np.testing.assert_allclose(few, every[:, :2].mean(1), rtol=1e-4)


@pytest.mark.parametrize("kind", ["clusters", "far clusters", "no structure", "copies"])
def test_many_neighbours_are_the_nearest(kind: str) -> None:
    """Lower bounds rule most references out, and never one of the nearest."""
    generator = np.random.default_rng(0)
    count, size = 1500, 400
    spread = {"clusters": 3.0, "far clusters": 1000.0}.get(kind, 0.0)
    centres = spread * generator.normal(size=(9, size))
    points = centres[generator.integers(0, 9, count)] + generator.normal(size=(count, size))
    if kind == "copies":
        points = points[generator.integers(0, 100, count)]
    references = points[:-60].astype(np.float32)
    assert references.nbytes > CACHED_BYTES  # as few are not ruled out
    outliers = 2000 * generator.normal(size=(5, size))
    others = np.concatenate((points[-60:], outliers)).astype(np.float32)
    apart = others[:, None].astype(np.float64) - references
    expected = np.sort(np.linalg.norm(apart, axis=2), axis=1)[:, :5].mean(1)
    np.testing.assert_allclose(
        Neighbours(references).distances(others), expected, rtol=1e-5, atol=1e-6
    )


def test_distances_of_a_broken_network_are_not_numbers() -> None:
    references = np.random.default_rng(0).normal(size=(2000, 400)).astype(np.float32)
    broken = np.full((1, 400), np.nan, np.float32)
    assert np.isnan(Neighbours(references).distances(broken)).all()


class TestActivation:
    def ask(self, client: TestClient, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        answer = client.post("/activation?class=3", content=png(image), headers=PNG)
        assert answer.headers["content-type"] == "image/png", answer.text
        return np.asarray(Image.open(io.BytesIO(answer.content)))

    def test_equals_grad_cam(
        self, client: TestClient, exported: Path, run: Run, images: NDArray[np.uint8]
    ) -> None:
        classes = torch.full((len(images),), 3)
        mean, std = run.inference.mean, run.inference.std
        normalised = normalise(torch.from_numpy(images), mean, std)
        expected = grad_cam(run.inference.network, normalised, classes).numpy()
        engine = OnnxEngine(exported)
        for image, one in zip(images, expected, strict=True):
            found = enlarged(engine.evidence(image)[3], images.shape[-1])
            np.testing.assert_allclose(found, one, atol=1e-4)
        picture = self.ask(client, images[0])
        assert picture.shape == (256, 256, 4)
        assert picture[..., 3].max() > 100

    def test_of_another_network_comes_from_torch(
        self, client: TestClient, exported: Path, images: NDArray[np.uint8], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        other = Path(shutil.copytree(exported, tmp_path / "other"))
        proto = onnx.load(other / "model.onnx")
        (evidence,) = [output for output in proto.graph.output if output.name == EVIDENCE]
        proto.graph.output.remove(evidence)
        onnx.save(proto, other / "model.onnx")
        with client_of(other) as (slow, _):
            expected = self.ask(client, images[0]).astype(int)
            assert abs(self.ask(slow, images[0]).astype(int) - expected).max() <= 1
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with client_of(other) as (none, _):
            answer = none.post("/activation?class=3", content=png(images[0]), headers=PNG)
            assert answer.status_code == 501
            assert "need torch" in answer.json()["error"]

    def test_unknown_class_and_several_images(
        self, client: TestClient, images: NDArray[np.uint8]
    ) -> None:
        answer = client.post("/activation?class=cat", content=png(images[0]), headers=PNG)
        assert answer.status_code == 400
        answer = client.post("/activation?class=3", content=npy(images[:2, 0]), headers=NPY)
        assert answer.json() == {"error": "activation: give one image"}


class TestCorrections:
    def send(self, client: TestClient, image: bytes, **fields: str) -> httpx.Response:
        values = {"class": "3", "annotator": "Ana", "name": "cells/a.png", **fields}
        return client.post("/corrections", files={"file": ("a.png", image)}, data=values)

    def test_join_the_labelling_log(
        self, exported: Path, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        uploads = Uploads(tmp_path)
        with client_of(exported, correct=uploads.add) as (client, _):
            assert client.get("/model").json()["corrections"] is True
            first = self.send(client, png(images[0]))
            assert first.json() == {"number": 0, "class": "3"}
            self.send(client, png(images[1]), **{"class": "5", "annotator": "Ben"})
            # A change of mind about the same picture is one more line, not one more picture.
            assert self.send(client, png(images[0]), **{"class": "4"}).json()["number"] == 0
        found = Uploads(tmp_path).labelled()
        assert [(one.class_name, one.annotator) for one in found] == [("4", "Ana"), ("5", "Ben")]
        assert found[0].source == "cells/a.png"
        stored = np.asarray(Image.open(found[0].path))
        np.testing.assert_array_equal(stored, images[0, 0])
        assert len(AnswerLog(tmp_path / "labelling" / "uploads").read()) == 3

    @pytest.mark.parametrize(
        ("fields", "status"),
        [({"class": "cat"}, 400), ({"annotator": ""}, 400), ({"annotator": "x" * 500}, 400)],
    )
    def test_are_refused_without_a_trace(
        self, exported: Path, images: NDArray[np.uint8], tmp_path: Path,
        fields: dict[str, str], status: int,
    ) -> None:  # fmt: skip
        with client_of(exported, correct=Uploads(tmp_path).add) as (client, _):
            assert self.send(client, png(images[0]), **fields).status_code == status
            assert self.send(client, b"no image").status_code == 415
        assert Uploads(tmp_path).labelled() == []

    def test_need_a_run(self, client: TestClient, images: NDArray[np.uint8]) -> None:
        assert client.get("/model").json()["corrections"] is False
        assert self.send(client, png(images[0])).status_code == 404


class TestTheRest:
    def test_model_tells_what_it_is(self, client: TestClient, run: Run) -> None:
        model = client.get("/model").json()
        assert model["classes"] == list(run.class_names)
        assert model["training"]["labelled_images"] == len(run.pool.labelled)
        assert model["outliers"]["percentile"] == 95
        assert model["limits"]["max_images"] == 1000

    def test_health(self, client: TestClient, exported: Path) -> None:
        for path in ("/health", "/ping"):
            assert client.get(path).json()["version"] == read_exported(exported).version

    def test_pages_need_nothing_from_outside(self, client: TestClient) -> None:
        for path in ("/", "/docs", "/static/upload.js", "/static/files.js", "/static/upload.css"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert "https://" not in answer.text
            assert "default-src 'none'" in answer.headers["content-security-policy"]

    def test_metrics_and_log_tell_of_requests(
        self, exported: Path, images: NDArray[np.uint8]
    ) -> None:
        log = io.StringIO()
        with client_of(exported, log=log) as (client, _):
            client.post("/predict?secret=1", content=npy(images[:7, 0]), headers=NPY)
            client.post("/predict", content=b"no image", headers=PNG)
            client.get("/health/patient-17")
            text = client.get("/metrics").text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        assert float(values['http_requests_total{path="/predict",status="200"}']) == 1
        assert float(values['http_requests_total{path="other",status="404"}']) == 1
        assert float(values['refused_files_total{status="415"}']) == 1
        assert float(values["uncertainty_nats_count"]) == 7
        counted = [
            float(value) for name, value in values.items()
            if name.startswith("predicted_images_total")
        ]  # fmt: skip
        assert sum(counted) == 7
        lines = [json.loads(line) for line in log.getvalue().splitlines()]
        assert [line["status"] for line in lines] == [200, 415, 404, 200]
        assert lines[0]["images"] == 7
        assert "secret" not in log.getvalue()
        assert "patient-17" not in log.getvalue()

    def test_another_address_needs_the_token(self, exported: Path) -> None:
        service = Service(exported, ServiceSettings())
        access = Access.for_address("0.0.0.0", 80, "a-token-of-many-characters")
        app = service_app(service, access, io.StringIO())
        with TestClient(app, base_url="http://127.0.0.1") as client:
            assert client.get("/model").status_code == 401
            token = {"Authorization": "Bearer a-token-of-many-characters"}
            assert client.get("/model", headers=token).status_code == 200


class TestBatching:
    def collect(self, max_batch: int, workers: int = 1) -> tuple[list[int], list[float]]:
        """Batch sizes and results of 20 images sent one by one while the network is busy."""
        sizes: list[int] = []

        def double(batch: NDArray[np.uint8]) -> list[float]:
            time.sleep(0.005)
            return [2.0 * float(image.sum()) for image in batch]

        async def send() -> list[float]:
            async with Batcher(double, workers, max_batch, sizes.append) as batcher:
                ones = [np.full((1, 1, 1), n, np.uint8) for n in range(20)]
                results = await asyncio.gather(*(batcher.run([one]) for one in ones))
                return [result for (result,) in results]

        return sizes, asyncio.run(send())

    def test_images_of_concurrent_requests_run_together(self) -> None:
        sizes, results = self.collect(max_batch=8)
        assert results == [2.0 * n for n in range(20)]
        assert sum(sizes) == 20
        assert max(sizes) == 8

    def test_can_be_turned_off(self) -> None:
        sizes, results = self.collect(max_batch=1, workers=3)
        assert results == [2.0 * n for n in range(20)]
        assert sizes == [1] * 20

    def test_an_error_reaches_those_whose_images_it_concerns(self) -> None:
        def fail_on_zero(batch: NDArray[np.uint8]) -> list[int]:
            if batch.min() == 0:
                raise RuntimeError("zero")
            return [int(image.sum()) for image in batch]

        async def send() -> list[Any]:
            async with Batcher(fail_on_zero, 1, 1, lambda _: None) as batcher:
                ones = [np.full((1, 1, 1), n, np.uint8) for n in (0, 1)]
                tasks = (batcher.run([one]) for one in ones)
                return list(await asyncio.gather(*tasks, return_exceptions=True))

        first, second = asyncio.run(send())
        assert isinstance(first, RuntimeError)
        assert second == [1]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (png(np.zeros((1, 8, 8), np.uint8)), PNG, 200),
        (b"no image", PNG, 415),
        (b"no form", {"Content-Type": "multipart/form-data; boundary=x"}, 400),
        (bytes(2000), NPY, 413),
    ],
)
def test_a_request_leaves_no_cycles_behind(
    exported: Path, body: bytes, headers: dict[str, str], status: int
) -> None:
    """Else its bytes would stay until Python's collector runs, which it seldom does here."""
    settings = ServiceSettings(limits=Limits(max_bytes=1000))
    service = Service(exported, settings)
    app = service_app(service, Access.for_address("127.0.0.1", 80), io.StringIO())
    statuses: list[int] = []
    pairs = {"Host": "127.0.0.1", **headers}
    scope = {
        **{"type": "http", "method": "POST", "path": "/predict", "query_string": b""},
        "headers": [(name.lower().encode(), value.encode()) for name, value in pairs.items()],
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        statuses.append(message.get("status", 0))

    async def work() -> int:
        async with service:
            await app(dict(scope), receive, send)  # fills caches
            gc.collect()
            gc.disable()
            try:
                for _ in range(5):
                    await app(dict(scope), receive, send)
                return gc.collect()
            finally:
                gc.enable()

    assert asyncio.run(work()) < 5  # not even one object a request
    assert status in statuses


def test_overload_is_answered_by_503(
    exported: Path, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    run = OnnxEngine.run

    def slow(self: OnnxEngine, batch: NDArray[np.uint8]) -> Any:
        go_on.wait(20)
        return run(self, batch)

    monkeypatch.setattr(OnnxEngine, "run", slow)
    statuses: list[int] = []
    body = png(images[0])
    with client_of(exported, ServiceSettings(max_requests=2)) as (client, service):

        def send() -> None:
            statuses.append(client.post("/predict", content=body, headers=PNG).status_code)

        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        while service.admission.requests < 2:
            time.sleep(0.01)
        refused = client.post("/predict", content=body, headers=PNG)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200
        go_on.set()
        for thread in threads:
            thread.join()
        assert statuses == [200, 200]
        assert client.post("/predict", content=body, headers=PNG).status_code == 200


def test_shutdown_finishes_what_it_accepted(exported: Path) -> None:
    body = npy(np.zeros((1000, 64, 64, 3), np.uint8))
    with running_service(exported) as (process, port):
        answers: list[httpx.Response] = []

        def send() -> None:
            url = f"http://127.0.0.1:{port}/predict"
            answers.append(httpx.post(url, content=body, headers=NPY, timeout=60))

        thread = threading.Thread(target=send)
        thread.start()
        metrics = f"http://127.0.0.1:{port}/metrics"
        while "requests_in_progress 1.0" not in httpx.get(metrics).text:
            pass
        children = process.children()
        process.terminate()
        thread.join()
        process.wait(30)
        assert answers[0].status_code == 200
        assert len(answers[0].json()["predictions"]) == 1000
        assert not [one for one in children if one.is_running()]


def test_exported_code_serves_without_torch(exported: Path) -> None:
    """What the container runs, but for its address: only its own code, and SageMaker's calls."""
    _, entry = (exported / "Dockerfile").read_text(encoding="utf-8").split("ENTRYPOINT ")
    here: dict[str, list[str]] = {
        "python": [sys.executable],
        "--container": ["--port", "0"],
        "/opt/ml/model": [str(exported)],
    }
    # SageMaker adds "serve".
    command = [part for word in [*json.loads(entry), "serve"] for part in here.get(word, [word])]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        command, cwd=exported / "service", env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        assert httpx.get(address + "ping").status_code == 200
        image = {"Content-Type": "application/x-image"}
        body = png(np.zeros((1, 8, 8), np.uint8))
        answer = httpx.post(address + "invocations", content=body, headers=image)
        assert len(answer.json()["predictions"]) == 1
        activation = httpx.post(address + "activation?class=3", content=body, headers=PNG)
        assert activation.headers["content-type"] == "image/png"
        loaded = Path(f"/proc/{process.pid}/maps")
        if loaded.exists():
            assert "libtorch" not in loaded.read_text()
    finally:
        process.terminate()
        assert process.wait(30) == 0


class TestSources:
    """`tools.serve` on what is not exported yet; the service itself does not start."""

    @pytest.fixture
    def served(self, monkeypatch: pytest.MonkeyPatch) -> list[ExportedModel]:
        models: list[ExportedModel] = []

        def note(folder: Path, _: object, correct: Correct | None) -> None:
            self.folder = folder
            models.append(read_exported(folder))

        monkeypatch.setattr(command, "run_service", note)
        return models

    def test_a_run_is_exported_to_a_temporary_folder(
        self, small_run: Path, served: list[ExportedModel]
    ) -> None:
        assert serve.main([str(small_run)]) == 0
        (model,) = served
        assert model.outliers is not None
        assert model.training.run == small_run.name
        assert not self.folder.exists()

    def test_a_checkpoint_is_exported_as_well(
        self, small_run: Path, served: list[ExportedModel]
    ) -> None:
        checkpoint = max((small_run / "checkpoints").iterdir(), key=lambda one: one.name)
        assert serve.main([str(checkpoint)]) == 0
        assert served[0].training.checkpoint == checkpoint.name

    def test_without_its_data_there_is_no_outlier_flag(
        self, small_run: Path, served: list[ExportedModel], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        def gone(*_: object, **__: object) -> None:
            raise UserError("the data set is gone")

        monkeypatch.setattr(reader, "load_data", gone)
        assert serve.main([str(small_run)]) == 0
        assert served[0].outliers is None
        assert "without outlier flags: the data set is gone" in capsys.readouterr().err

    def test_an_exported_folder_is_served_as_it_is(
        self, exported: Path, served: list[ExportedModel]
    ) -> None:
        assert serve.main([str(exported)]) == 0
        assert self.folder == exported

    def test_corrections_need_a_run_of_people(
        self, exported: Path, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert serve.main([str(exported), "--corrections", str(tmp_path)]) == 2
        assert "not a run" in capsys.readouterr().err
        assert serve.main([str(exported), "--corrections", str(small_run)]) == 2
        assert "oracle is simulated" in capsys.readouterr().err

    def test_anything_else_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert serve.main([str(tmp_path)]) == 2
        captured = capsys.readouterr().err
        assert captured.startswith("error: ")
        assert captured.count("\n") == 1


def test_limits_of_the_body(exported: Path) -> None:
    settings = ServiceSettings(limits=dataclasses.replace(Limits(), max_bytes=1000, max_images=3))
    with client_of(exported, settings) as (client, _):
        answer = client.post("/predict", content=b"x" * 1001, headers=PNG)
        assert answer.status_code == 413
        image = png(np.zeros((1, 8, 8), np.uint8))
        files = [("file", (f"{n}.png", image)) for n in range(4)]
        assert client.post("/predict", files=files).status_code == 413
        assert client.post("/predict", files=files[:3]).status_code == 200
