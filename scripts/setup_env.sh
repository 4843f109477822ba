# Sourced by the other scripts: provides a Python with the requirements installed.
#
#   source scripts/setup_env.sh requirements.txt
#
# Uses the active virtual or conda environment; without one it makes .venv in the repository.
# Sets PYTHON. Installs only when the requirements have changed since the last time.

_fail() {
    echo "error: $*" >&2
    exit 2
}

_requirements=$1
_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ -n "${VIRTUAL_ENV:-}" ]; then
    _env=$VIRTUAL_ENV
    PYTHON=$_env/bin/python
elif [ -n "${CONDA_PREFIX:-}" ]; then
    _env=$CONDA_PREFIX
    PYTHON=$_env/bin/python
else
    _env=$_root/.venv
    PYTHON=$_env/bin/python
    # An environment whose making was cut short has no pip.
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        _base=$(command -v python3 || command -v python) || _fail "Python 3.11 or newer is needed"
        "$_base" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' ||
            _fail "Python 3.11 or newer is needed; $_base is $("$_base" --version)"
        echo "making the environment $_env"
        "$_base" -m venv --clear "$_env" ||
            _fail "cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv"
    fi
fi
[ -x "$PYTHON" ] || _fail "the active environment $_env has no bin/python"

# The stamp lists what was installed; requirements-test.txt includes requirements.txt.
_stamp=$_env/.hidiff_$(basename "$_requirements" .txt)
_wanted=$(cat "$_root/requirements.txt" "$_root/$_requirements" && "$PYTHON" --version)
if [ "$(cat "$_stamp" 2>/dev/null)" != "$_wanted" ]; then
    echo "installing $_requirements into $_env (a few minutes the first time)"
    # From the root: requirements.txt names this folder itself.
    (cd "$_root" && "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$_requirements") ||
        _fail "installing $_requirements failed; the lines above say why"
    if ! "$PYTHON" -c "import cv2" 2>/dev/null; then
        # opencv-python needs the system's libGL, which servers often lack; this one does not.
        _opencv=$(sed -n 's/^opencv-python==//p' "$_root/requirements.txt")
        "$PYTHON" -m pip uninstall --quiet --yes opencv-python
        "$PYTHON" -m pip install --quiet "opencv-python-headless==$_opencv" &&
            "$PYTHON" -c "import cv2" || _fail "OpenCV cannot be imported: $("$PYTHON" -c 'import cv2' 2>&1)"
    fi
    printf '%s\n' "$_wanted" >"$_stamp"
fi
export PYTHON
