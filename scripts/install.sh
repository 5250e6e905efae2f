#!/bin/sh
# Create $VENV with $PYTHON and install a lock file into it. torch comes first: where there is no NVIDIA GPU its CPU
# build is taken, from wherever pip already looks, or else from $TORCH_INDEX; PyPI's own build is the last resort.
set -eu
lock=$1

version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || {
    echo "error: PYTHON=$PYTHON cannot be run; install Python 3.11 or name it: make demo PYTHON=/path/to/python3.11" >&2
    exit 2
}
[ "$version" = 3.11 ] || {
    echo "error: PYTHON=$PYTHON is Python $version; the lock file is for 3.11: make demo PYTHON=/path/to/python3.11" >&2
    exit 2
}
# a venv whose creation was interrupted has no pip: make it anew
"$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear "$VENV"

# -qq: errors alone
pip() { "$VENV/bin/python" -m pip -qq --disable-pip-version-check "$@"; }
torch=$(sed -n 's/^torch==//p' "$lock")

if "$VENV/bin/python" -c "import importlib.metadata as m; assert m.version('torch').split('+')[0] == '$torch'" 2>/dev/null; then
    :
elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    echo "installing torch $torch for NVIDIA GPUs"
    pip install "torch==$torch"
else
    echo "installing torch $torch for CPU"
    pip install "torch==$torch+cpu" 2>/dev/null ||
        pip install --retries 1 --index-url "$TORCH_INDEX" "torch==$torch+cpu" 2>/dev/null ||
        { echo "no CPU build found ($TORCH_INDEX): taking PyPI's, which is large" >&2; pip install "torch==$torch"; }
fi
echo "installing $(grep -c == "$lock") pinned packages"
pip install -r "$lock"
