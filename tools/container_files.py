"""Writes what it takes to serve an exported model from a container: a Dockerfile and the code.

The code is a copy of the service, which needs neither torch nor the rest of the project.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CODE = ("errors.py", "data_sources/__init__.py", "data_sources/image_file.py", "serving", "web")
PACKAGES = (
    "h5py",
    "httptools",
    "numpy",
    "onnxruntime",
    "pillow",
    "prometheus-client",
    "python-multipart",
    "safetensors",
    "starlette",
    "uvicorn",
    "uvloop",
)
REQUIREMENT_FILES = ("requirements.txt", "tools/requirements.txt")

DOCKERFILE = """\
# docker build -t model . && docker run --rm -p 127.0.0.1:8080:8080 model
# Answers GET /ping and POST /invocations on port 8080, as Amazon SageMaker expects, and everything
# else of the service. Whoever reaches the port may use it: put access control in front.
FROM python:3.11-slim
WORKDIR /opt/service
COPY service/requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY service/ .
COPY *.json *.onnx *.safetensors README.md /opt/ml/model/
RUN useradd --system service
USER service
EXPOSE 8080
ENTRYPOINT ["python", "-m", "serving", "--container", "/opt/ml/model"]
"""


def write_container_files(folder: Path) -> None:
    """Write `Dockerfile` and `service/` into an exported folder.

    Raises:
        UserError: this checkout lacks a part of the service.
    """
    (folder / "Dockerfile").write_text(DOCKERFILE, encoding="utf-8")
    service = folder / "service"
    service.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    try:
        for name in CODE:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, service / name, ignore=ignored)
            else:
                (service / name).parent.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, service / name)
        requirements = "\n".join(_requirements()) + "\n"
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be copied ({error.strerror}); export from a whole checkout"
        ) from error
    (service / "requirements.txt").write_text(requirements, encoding="utf-8")


def _requirements() -> list[str]:
    """The lines of the project's requirement files that the service needs."""
    lines = [
        line.split("#")[0].strip()
        for file in REQUIREMENT_FILES
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines()
    ]
    return sorted(line for line in lines if _package(line) in PACKAGES)


def _package(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement)[0].lower().replace("_", "-")
