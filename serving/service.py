"""The service itself: a model, its decoders and its network, without any HTTP."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.activation import ActivationMaps
from serving.batching import Batcher
from serving.decoding.decoder import Decoder, ReadImage
from serving.decoding.formats import declared_format
from serving.decoding.limits import Limits, RefusedFileError
from serving.engine import Engine, load_engine
from serving.exported import read_exported, read_references
from serving.metrics import Metrics
from serving.predictions import Interpreter, Prediction
from serving.uploads import Admission, Upload

MAX_BATCH = 32
PREVIEW_PIXELS = 256  # longest side of the pictures on the page


@dataclass(frozen=True)
class ServiceSettings:
    """How a service runs.

    Attributes:
        engine: `onnx` or `torch`.
        workers: threads that run the network, each a batch at a time.
        max_batch: images in one run of the network; 1 turns batching off.
        decoders: child processes that read files.
        max_requests: accepted at a time; more are answered by 503.
    """

    engine: str = "onnx"
    workers: int = 1
    max_batch: int = MAX_BATCH
    decoders: int = 1
    max_requests: int = 128
    limits: Limits = field(default_factory=Limits)


class Service:
    """An exported model, ready to be asked. Use it as an asynchronous context manager.

    Raises:
        UserError: the folder is damaged or of another version.
    """

    def __init__(self, folder: Path, settings: ServiceSettings) -> None:
        self.folder = folder
        self.settings = settings
        self.model = read_exported(folder)
        self.metrics = Metrics(self.model.version)
        limits = settings.limits
        self.admission = Admission(settings.max_requests, 4 * limits.max_bytes, limits.max_bytes)
        self.metrics.in_progress.set_function(lambda: self.admission.requests)
        self._interpreter = Interpreter(self.model, read_references(folder, self.model))
        self._engine: Engine = load_engine(settings.engine, folder, self.model)
        self._batcher = Batcher(
            self._run, settings.workers, settings.max_batch, self.metrics.batch_sizes.observe
        )
        self._decoder = Decoder(
            self.model.image_size, self.model.channels, limits, settings.decoders
        )
        self._stack = contextlib.AsyncExitStack()
        self._maps = ActivationMaps(folder, self._engine)

    async def __aenter__(self) -> Service:
        await self._stack.enter_async_context(self._decoder)
        await self._stack.enter_async_context(self._batcher)
        await self._stack.enter_async_context(self._maps)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _run(self, images: NDArray[np.uint8]) -> list[Prediction]:
        return self._interpreter.interpret(*self._engine.run(images))

    async def predict(self, uploads: list[Upload], preview: bool) -> dict[str, Any]:
        """The answer to a prediction request, ready for JSON.

        Files that cannot be read are listed; the others are predicted.

        Raises:
            RefusedFileError: no file could be read; the first one's reason.
        """
        images: list[tuple[int, ReadImage]] = []
        refused: list[dict[str, Any]] = []
        pixels = PREVIEW_PIXELS if preview else 0
        for index, upload in enumerate(uploads):
            try:
                images += [(index, one) for one in await self.read(upload, pixels)]
                if len(images) > self.settings.limits.max_images:
                    text = f"the request has more than {self.settings.limits.max_images} images"
                    raise RefusedFileError(413, text)
            except RefusedFileError as error:
                self.metrics.count_refusal(error.status)
                described = {"file": upload.name, "status": error.status, "error": error.text}
                refused.append({"index": index, **described})
        if refused and len(refused) == len(uploads):
            # A new error: one that a variable here kept would keep the request's bytes, by a cycle.
            raise RefusedFileError(refused[0]["status"], refused[0]["error"])
        predictions = await self._batcher.run([one.pixels for _, one in images])
        # In the next turn of the event loop, so that the answer does not wait for it.
        asyncio.get_running_loop().call_soon(self.metrics.count_predictions, predictions)
        answers = [
            {"index": index, "file": uploads[index].name, **_described(image, prediction)}
            for (index, image), prediction in zip(images, predictions, strict=True)
        ]
        return {"version": self.model.version, "predictions": answers, "refused": refused}

    async def read(self, upload: Upload, preview: int = 0) -> list[ReadImage]:
        """The images of one file, with pictures of at most `preview` pixels a side.

        Raises:
            RefusedFileError: it cannot be read.
        """
        declared = declared_format(upload.name, upload.media_type)
        return await self._decoder.decode(upload.data, declared, preview)

    async def activation_map(self, image: ReadImage, class_name: str) -> bytes:
        """A PNG that shows where an image speaks for a class, to be laid over the picture.

        Raises:
            RefusedFileError: 400, there is no such class, or the map cannot be made; 501, it needs
                torch, which is not here.
        """
        if class_name not in self.model.classes:
            raise RefusedFileError(400, f"class {class_name[:60]!r} is unknown")
        return await self._maps.draw(image.pixels, self.model.classes.index(class_name))


def _described(image: ReadImage, prediction: Prediction) -> dict[str, Any]:
    described: dict[str, Any] = {
        "image": image.name,
        "width": image.width,
        "height": image.height,
        "class": prediction.class_name,
        "probability": prediction.probabilities[prediction.class_name],
        "probabilities": prediction.probabilities,
        "uncertainty": prediction.uncertainty,
        "outlier": prediction.outlier,
        "distance": prediction.distance,
    }
    if image.preview:
        described["preview"] = "data:image/png;base64," + base64.b64encode(image.preview).decode()
    return described
