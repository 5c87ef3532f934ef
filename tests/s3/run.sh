#!/usr/bin/env bash
# Tests shared storage (kvtier's feature `s3`) against an S3-compatible server: moto, from PyPI, in an
# environment of its own below the target directory. Not part of `./run test`: it downloads 100 MB and
# compiles a TLS library.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
venv=${KVD_S3_VENV:-${CARGO_TARGET_DIR:-target}/s3-venv}
if [[ ! -x $venv/bin/moto_server ]]; then
    if ! command -v python3 >/dev/null; then
        echo "skipped: no python3, so no S3-compatible server" >&2
        exit 0
    fi
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet 'moto[server,s3]==5.2.5'
fi
KVD_S3_SERVER=$(realpath "$venv/bin/moto_server") exec cargo test -p kvtier --features s3 --test s3 -- --nocapture "$@"
