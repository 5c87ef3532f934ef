#!/usr/bin/env bash
# Tests shared storage (kvtier's feature `s3`) against an S3-compatible server: moto, from PyPI, in an
# environment of its own below the target directory, or what KVD_S3_SERVER names.
#
#   tests/s3/run.sh            the tests
#   tests/s3/run.sh bench      its speed beside a plain client of the same server
#
# Exit status: 0 good, 77 skipped because there is no server.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

skip() {
    printf 'skipped: %s\n' "$1" >&2
    exit 77
}

if [[ -z ${KVD_S3_SERVER:-} ]]; then
    venv=${KVD_S3_VENV:-${CARGO_TARGET_DIR:-target}/s3-venv}
    if [[ ! -x $venv/bin/moto_server ]]; then
        command -v python3 >/dev/null || skip "no python3, so no S3-compatible server"
        mkdir -p "$venv"
        { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet 'moto[server,s3]==5.2.5'; } \
            >"$venv/install.log" 2>&1 || skip "moto cannot be installed, see $venv/install.log"
    fi
    KVD_S3_SERVER=$(realpath "$venv/bin/moto_server")
fi
export KVD_S3_SERVER

test=(cargo test --quiet --locked -p kvtier --features s3 --test shared)
case ${1:-test} in
test) "${test[@]}" s3:: -- --nocapture ;;
bench) "${test[@]}" --release s3:: -- --ignored --nocapture ;;
*) printf 'usage: %s [bench]\n' "$0" >&2 && exit 2 ;;
esac
