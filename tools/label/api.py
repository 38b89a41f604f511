"""The HTTP interface of the labelling page.

    GET  /                                     the page
    GET  /api/batch?annotator=A[&batch=B][&role=adjudicator]
    GET  /api/changes?batch=B&annotator=A&role=R&since=N
    POST /api/answers      {"batch", "annotator", "role", "answers": [...]}
    POST /api/corrections  the same, for a batch whose answers are in training
    GET  /api/images/B/INDEX.png, /api/thumbnails/B/INDEX
    GET  /api/examples, /api/report
    POST /api/train
    GET  /api/export/B.csv, B.json or B.xml; POST /api/import?batch=B&annotator=A&format=csv

An answer is {"event", "action", "undoes", "image", "answer" or "skip", "seconds"}. The reply to a
save comes when the answers are on the disk; repeating a save with the same events does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from errors import UserError
from labelling.exchange import (
    answers_from_csv,
    answers_from_label_studio,
    csv_of_answers,
    label_studio_config,
    label_studio_tasks,
)
from labelling.log import ANNOTATOR, SKIP_REASONS, ClosedError
from labelling.settings import check_annotator
from tools.label.desk import BatchDesk, Desk, answers_from_json
from tools.label.report import progress_report
from tools.label.training import Rounds
from web.access import Access
from web.application import make_application

STATIC = Path(__file__).parent / "static"
FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}  # the address has a version


def label_application(desk: Desk, training: Rounds, access: Access) -> ASGIApp:
    """The page of one run as an ASGI application."""
    return make_application(_Handlers(desk, training).routes(), access, STATIC)


class _Handlers:
    def __init__(self, desk: Desk, training: Rounds) -> None:
        self.desk = desk
        self.training = training

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/api/batch", self.batch),
            Route("/api/changes", self.changes),
            Route("/api/answers", self.save, methods=["POST"]),
            Route("/api/corrections", self.correct, methods=["POST"]),
            Route("/api/images/{batch}/{index:int}.png", self.image),
            Route("/api/thumbnails/{batch}/{index:int}", self.thumbnail),
            Route("/api/examples", self.examples),
            Route("/api/report", self.report),
            Route("/api/train", self.train, methods=["POST"]),
            Route("/api/export/{name}", self.export),
            Route("/api/import", self.import_file, methods=["POST"]),
        ]

    # Handlers without `async` run in a thread each, so a slow disk holds up nobody else.

    def page(self, request: Request) -> Response:
        return FileResponse(STATIC / "label.html", headers={"Cache-Control": "no-store"})

    def batch(self, request: Request) -> Response:
        query = request.query_params
        settings = self.desk.settings
        overview = {
            "run": self.desk.run.resolve().name,
            "batches": self.desk.overview(),
            "annotators": settings.annotators,
            "blind": settings.blind,
            "skip_reasons": SKIP_REASONS,
            "training": self.training.status(),
        }
        name = query.get("batch") or self.desk.current()
        annotator = query.get("annotator", "")
        if name is None or not annotator:
            return JSONResponse(overview)
        role = query.get("role", ANNOTATOR)
        found = self._find(name)
        values = {**overview, **found.describe(check_annotator(annotator), role)}
        if values["closed"]:
            labels = self.desk.corrected_labels(found.batch.split)
            values["labels"] = {
                index: label for index, (folder, label) in labels.items() if folder == name
            }
        return JSONResponse(values)

    def changes(self, request: Request) -> Response:
        query = request.query_params
        found = self._find(query.get("batch", ""))
        since = query.get("since", "0")
        if not since.isdecimal():
            raise UserError(f"since: {since!r} is no number of lines; send a whole number")
        changes = found.changes(
            check_annotator(query.get("annotator", "")), query.get("role", ANNOTATOR), int(since)
        )
        return JSONResponse(
            {**changes, "current": self.desk.current(), "training": self.training.status()}
        )

    async def save(self, request: Request) -> Response:
        def work(desk: BatchDesk, values: dict[str, Any]) -> None:
            desk.save(answers_from_json(values.get("answers"), values["annotator"], values["role"]))

        return await self._post(request, work)

    async def correct(self, request: Request) -> Response:
        def work(desk: BatchDesk, values: dict[str, Any]) -> None:
            answers = answers_from_json(values.get("answers"), values["annotator"], values["role"])
            labels = self.desk.corrected_labels(desk.batch.split)
            old = {i: label for i, (folder, label) in labels.items() if folder == desk.folder.name}
            desk.correct(answers, old)

        return await self._post(request, work)

    async def _post(
        self, request: Request, work: Callable[[BatchDesk, dict[str, Any]], None]
    ) -> Response:
        try:
            values = json.loads(await request.body())
            texts = {name: str(values.get(name) or "") for name in ("batch", "annotator")}
            values = {**values, **texts, "role": str(values.get("role") or ANNOTATOR)}
        except (ValueError, AttributeError, RecursionError):
            raise UserError("body: is no JSON object; send one") from None
        found = self._find(values["batch"])
        try:
            await run_in_threadpool(work, found, values)
        except ClosedError as error:
            return JSONResponse({"error": str(error), "closed": True}, 409)
        return JSONResponse({"saved": True})

    def image(self, request: Request) -> Response:
        return FileResponse(self._image_path(request), media_type="image/png", headers=FOREVER)

    def thumbnail(self, request: Request) -> Response:
        path = self._image_path(request)
        content, kind = self.desk.thumbnail(path, request.query_params.get("v", "")[:16])
        return Response(content, media_type=kind, headers=FOREVER)

    def _image_path(self, request: Request) -> Path:
        found = self._find(request.path_params["batch"])
        try:
            path = found.image_file(request.path_params["index"])
        except LookupError:
            raise HTTPException(404, "this batch has no such image") from None
        if not path.is_file():
            raise HTTPException(404, f"{path.name}: is missing in the batch's folder")
        return path

    def examples(self, request: Request) -> Response:
        return JSONResponse(
            {
                name: [
                    f"/api/thumbnails/{batch}/{index}?v={self.desk.batch(batch).version}"
                    for batch, index in found
                ]
                for name, found in self.desk.examples().items()
            }
        )

    def report(self, request: Request) -> Response:
        return JSONResponse(progress_report(self.desk))

    def train(self, request: Request) -> Response:
        if not self.desk.complete():
            raise UserError("train: images still wait for an answer; label or skip them first")
        self.training.start()
        return JSONResponse(self.training.status())

    def export(self, request: Request) -> Response:
        name, _, kind = request.path_params["name"].rpartition(".")
        found = self._find(name)
        lines = [line for line in found.lines() if line.old is None]
        if kind == "csv":
            content, media = csv_of_answers(found.batch, lines), "text/csv; charset=utf-8"
        elif kind == "json":
            root = "/data/local-files/?d=images/"
            content, media = label_studio_tasks(found.batch, lines, root), "application/json"
        elif kind == "xml":
            content, media = label_studio_config(found.batch), "application/xml"
        else:
            raise HTTPException(404, f"{kind}: is no export format; ask for csv, json or xml")
        headers = {"Content-Disposition": f'attachment; filename="{name}.{kind}"'}
        return Response(content, media_type=media, headers=headers)

    async def import_file(self, request: Request) -> Response:
        query = request.query_params
        found = self._find(query.get("batch", ""))
        annotator = check_annotator(query.get("annotator", ""))
        readers = {"csv": answers_from_csv, "json": answers_from_label_studio}
        read = readers.get(query.get("format", ""))
        if read is None:
            raise UserError(f"format {query.get('format', '')!r}: is not known; give csv or json")
        try:
            text = (await request.body()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"file: is no UTF-8 text ({error.reason}); save it as UTF-8") from None

        def work() -> int:
            answers = read(text, found.batch, annotator)
            found.save(answers)
            return len(answers)

        try:
            count = await run_in_threadpool(work)
        except ClosedError as error:
            return JSONResponse({"error": str(error), "closed": True}, 409)
        return JSONResponse({"imported": count})

    def _find(self, name: str) -> BatchDesk:
        try:
            return self.desk.batch(name)
        except LookupError:
            raise HTTPException(404, f"batch {name[:80]!r}: is not in this run") from None
