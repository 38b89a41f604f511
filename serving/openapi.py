"""The OpenAPI document of the service, written by hand."""

from __future__ import annotations

from typing import Any

from serving.exported import ExportedModel

NUMBER = {"type": "number"}
COUNT = {"type": "integer", "minimum": 0}
TEXT = {"type": "string"}
PREDICTION = {
    "type": "object",
    "required": [
        "index",
        "file",
        "image",
        "width",
        "height",
        "class",
        "probability",
        "probabilities",
        "uncertainty",
        "outlier",
        "distance",
    ],
    "properties": {
        "index": {**COUNT, "description": "Place of the file in the form, from 0."},
        "file": {**TEXT, "description": "Name of the file in a form, else empty."},
        "image": {**TEXT, "description": "Place of the image in its file, such as `x[3]`."},
        "width": {**COUNT, "description": "Pixels, before resizing."},
        "height": {**COUNT, "description": "Pixels, before resizing."},
        "class": {**TEXT, "description": "The likeliest class."},
        "probability": {**NUMBER, "minimum": 0, "maximum": 1},
        "probabilities": {
            "type": "object",
            "additionalProperties": {**NUMBER, "minimum": 0, "maximum": 1},
            "description": "Calibrated, of every class.",
        },
        "uncertainty": {
            **NUMBER,
            "minimum": 0,
            "description": "Entropy of the probabilities, in nats.",
        },
        "outlier": {
            "type": ["boolean", "null"],
            "description": "Whether the image is unlike all that was labelled; null: not known.",
        },
        "distance": {
            "type": ["number", "null"],
            "description": "Mean distance to the nearest labelled images.",
        },
        "preview": {**TEXT, "description": "A PNG as a data URL, with ?preview=true."},
    },
}
REFUSED = {
    "type": "object",
    "required": ["index", "file", "status", "error"],
    "properties": {"index": COUNT, "file": TEXT, "status": {"type": "integer"}, "error": TEXT},
}
ANSWER = {
    "type": "object",
    "required": ["version", "predictions", "refused"],
    "properties": {
        "version": {**TEXT, "description": "Of the model."},
        "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}},
        "refused": {
            "type": "array",
            "description": "Files of a form that could not be read; the others were predicted.",
            "items": {"$ref": "#/components/schemas/Refused"},
        },
    },
}
ERROR = {"type": "object", "required": ["error"], "properties": {"error": TEXT}}
MODEL = {
    "type": "object",
    "required": ["architecture", "classes", "image_size", "channels", "training", "version"],
    "properties": {
        "architecture": TEXT,
        "classes": {"type": "array", "items": TEXT},
        "image_size": COUNT,
        "channels": COUNT,
        "temperature": NUMBER,
        "outliers": {"type": ["object", "null"]},
        "training": {"type": "object"},
        "version": TEXT,
        "limits": {"type": "object"},
    },
}
STATUSES = {
    "400": "The file or the request is damaged.",
    "401": "The token is missing or wrong.",
    "403": "The Host or Origin is not allowed.",
    "404": "There is no such address.",
    "405": "The address takes another method.",
    "408": "The body took too long.",
    "413": "The file is too large.",
    "415": "The file is of a kind that is not read, or not of the kind that it claims to be.",
    "500": "The server failed.",
    "501": "Activation maps of this network need torch, which is not here.",
    "503": "Too many requests wait; Retry-After says for how many seconds to wait.",
}
READ_STATUSES = ("401", "403", "500")
SEND_STATUSES = ("400", "401", "403", "408", "413", "415", "500", "503")
BINARY = {"type": "string", "format": "binary"}
PICTURES = ("image/png", "image/jpeg", "image/tiff")
ARRAYS = ("application/x-npy", "application/x-hdf5")
PREVIEW = {
    "name": "preview",
    "in": "query",
    "required": False,
    "schema": {"type": "string", "enum": ["true", "false"], "default": "false"},
    "description": "Answer with a small picture of every image.",
}


def openapi_document(model: ExportedModel) -> dict[str, Any]:
    """The document for a service of `model`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Classification by {model.architecture}, {model.training.dataset}",
            "version": model.version,
        },
        "paths": {
            "/health": {"get": _reading("health", "Whether the service is up.", _json(_health()))},
            "/ping": {"get": _reading("ping", "The same, for SageMaker.", _json(_health()))},
            "/model": {"get": _reading("model", "What the model is.", _json(MODEL))},
            "/metrics": {
                "get": _reading(
                    "metrics", "Counters for Prometheus.", {"text/plain": {"schema": TEXT}}
                )
            },
            "/predict": {
                "post": _sending(
                    "predict",
                    "Predictions for every image of a file, or of the files of a form.",
                    _prediction_body((*PICTURES, *ARRAYS)),
                    [PREVIEW],
                )
            },
            "/invocations": {
                "post": _sending(
                    "invocations",
                    "The same, for SageMaker.",
                    _prediction_body((*PICTURES, *ARRAYS, "application/x-image")),
                    [PREVIEW],
                )
            },
            "/activation": {"post": _activation(model)},
        },
        "components": {
            "schemas": {
                "Prediction": PREDICTION, "Refused": REFUSED, "Answer": ANSWER, "Error": ERROR
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }  # fmt: skip


def _health() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["status", "version", "uptime_seconds"],
        "properties": {
            "status": {"const": "ok"}, "version": TEXT, "uptime_seconds": {**NUMBER, "minimum": 0}
        },
    }  # fmt: skip


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _responses(content: dict[str, Any], statuses: tuple[str, ...]) -> dict[str, Any]:
    error = _json({"$ref": "#/components/schemas/Error"})
    refusals = {code: {"description": STATUSES[code], "content": error} for code in statuses}
    return {"200": {"description": "The answer.", "content": content}, **refusals}


def _reading(name: str, summary: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": name, "summary": summary, "responses": _responses(content, READ_STATUSES)
    }  # fmt: skip


def _sending(
    name: str, summary: str, body: dict[str, Any], parameters: list[dict[str, Any]]
) -> dict[str, Any]:
    answer = _json({"$ref": "#/components/schemas/Answer"})
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, "content": body},
        "responses": _responses(answer, SEND_STATUSES),
    }


def _prediction_body(types: tuple[str, ...]) -> dict[str, Any]:
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "array", "minItems": 1, "items": BINARY}},
    }
    return {
        **{media_type: {"schema": BINARY} for media_type in types},
        "multipart/form-data": {"schema": form},
    }


def _activation(model: ExportedModel) -> dict[str, Any]:
    parameter = {
        "name": "class",
        "in": "query",
        "required": True,
        "schema": {"type": "string", "enum": model.classes},
    }
    return {
        "operationId": "activation",
        "summary": "Where an image speaks for a class: a PNG to lay over it (Grad-CAM).",
        "parameters": [parameter],
        "requestBody": {
            "required": True, "content": {kind: {"schema": BINARY} for kind in PICTURES}
        },
        "responses": _responses({"image/png": {"schema": BINARY}}, (*SEND_STATUSES, "501")),
    }  # fmt: skip
