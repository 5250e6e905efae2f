#!/bin/sh
# Resolve requirements*.in in fresh virtual environments and write the exact versions.
set -eu
here=$(mktemp -d)
server=$(mktemp -d)
trap 'rm -rf "$here" "$server"' EXIT
header() { echo "# Written by 'make lock' from $1; do not edit."; }
freeze() { "${1:-$here}/bin/python" -m pip freeze --disable-pip-version-check | sed -e 's/+cpu$//' -e 's/^\(torch\) @ .*/\1/' | sort -f; }

grep '^torch==' requirements.in > "$here.torch"
VENV="$here" PYTHON="$PYTHON" TORCH_INDEX="$TORCH_INDEX" sh scripts/install.sh "$here.torch"
rm "$here.torch"
"$here/bin/python" -m pip install -qq --disable-pip-version-check -r requirements.in
{ header requirements.in; freeze; } > requirements.lock
"$here/bin/python" -m pip install -qq --disable-pip-version-check -r requirements-dev.in
{ header requirements-dev.in; freeze | grep -vxFf requirements.lock; } > requirements-dev.lock

"$PYTHON" -m venv "$server"
"$server/bin/python" -m pip install -qq --disable-pip-version-check -r requirements-s3-server.in
{ header requirements-s3-server.in; freeze "$server"; } > requirements-s3-server.lock
