# Determined sources this file in every container before the workload starts. The working directory
# is the folder with the experiment's code.
#
# 1. It links ./data to a folder on the agent if config.yaml mounts one, so that the next container
#    finds the downloads.
# 2. It installs the packages of requirements.txt that the task image lacks. It never replaces the
#    image's own torch, torchvision and numpy, which are built for its CUDA.
#
# It prints nothing when it has nothing to do. Determined reads the log level from the start of a line.
{ set +x; } 2> /dev/null  # Determined's entry point echoes every command

if [[ -d agent_tmp ]]; then
    _folder="$PWD/agent_tmp/determined_active_learning"
    # All users of the agent share the folder, as they share /tmp.
    if mkdir -p -m 1777 "$_folder"; then
        export AGENT_FOLDER="$_folder"  # where training/threads.py looks for other trials
        [[ -e data ]] || ln -s "$_folder" data
    fi
fi

# Holds lines of two kinds: "keep torch==2.3.1" and "install h5py>=3.10".
_packages="$("${DET_PYTHON_EXECUTABLE:-python3}" - << 'PYTHON'
from importlib.metadata import PackageNotFoundError, version

try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement

OF_THE_IMAGE = ("torch", "torchvision", "numpy")
OF_THE_AGENT = ("determined",)

for line in open("requirements.txt", encoding="utf-8"):
    text = line.partition("#")[0].strip()
    if not text:
        continue
    package = Requirement(text)
    try:
        installed = version(package.name)
    except PackageNotFoundError:
        installed = ""
    if package.name in OF_THE_IMAGE:
        if installed:
            print("keep", f"{package.name}=={installed}")
    elif package.name not in OF_THE_AGENT and not (
        installed and package.specifier.contains(installed, prereleases=True)
    ):
        print("install", text)
PYTHON
)"
_missing=($(sed -n 's/^install //p' <<< "$_packages"))
if (( ${#_missing[@]} )); then
    echo "INFO: startup-hook.sh: the task image lacks ${_missing[*]}; pip installs them now"
    _kept="$(mktemp)"
    sed -n 's/^keep //p' <<< "$_packages" > "$_kept"
    if ! PIP_ROOT_USER_ACTION=ignore "${DET_PYTHON_EXECUTABLE:-python3}" -m pip install --quiet \
        --disable-pip-version-check --constraint "$_kept" "${_missing[@]}"; then
        echo "ERROR: startup-hook.sh: pip failed (see above); where containers have no network, build an" \
            "image with the Dockerfile and name it under environment: image: in the YAML" >&2
        return 1
    fi
    rm -f "$_kept"
fi
unset _folder _packages _missing _kept
