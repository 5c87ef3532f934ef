#!/bin/sh
# Installs Dynamo's standalone indexer for `kvd-benches http` into target/bench-venv (275 MB).
# Does nothing where it is there already.
set -eu
version=1.6.1
venv=$(dirname "$0")/../target/bench-venv
if [ -x "$venv/bin/python" ] && "$venv/bin/python" -m dynamo.indexer --help >/dev/null 2>&1; then
    echo "already installed: $venv"
    exit 0
fi
command -v python3 >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv" >&2; exit 1; }
mkdir -p "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet "ai-dynamo-runtime==$version"
"$venv/bin/python" -m dynamo.indexer --help >/dev/null
echo "installed: ai-dynamo-runtime $version in $venv"
