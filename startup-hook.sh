# Sourced by Determined in every container of the experiment, before the workload starts.
# Installs what the task image lacks. Its own builds of torch, torchvision and numpy, made for its
# CUDA, stay as they are: pip is held to exactly the versions found, and fails rather than replace.
# What only tools/export.py needs is left out.

_hook_folder="$(mktemp -d)"
python3 - > "${_hook_folder}/found.txt" <<'PY'
from importlib.metadata import PackageNotFoundError, version

for name in ("torch", "torchvision", "numpy"):
    try:
        print(f"{name}=={version(name)}")
    except PackageNotFoundError:
        pass
PY
grep -vE '^(#|determined|torch|torchvision|numpy|onnx[a-z]*|safetensors)([^a-z]|$)' requirements.txt \
    > "${_hook_folder}/wanted.txt"
python3 -m pip install --quiet --disable-pip-version-check \
    --constraint "${_hook_folder}/found.txt" --requirement "${_hook_folder}/wanted.txt"
rm -rf "${_hook_folder}"
unset _hook_folder
