#!/bin/sh
# Measures kvd's index and the published ones on the same streams, and prints one table.
#
#   benches/peers/run.sh [TRACE]
#
# TRACE is a request trace in the form of Mooncake's conversation trace (JSON lines with hash_ids and
# output_length); without one, made-up conversations stand in. Results are appended to RESULTS.md, and
# drawn in RESULTS.svg.
#
# From the environment:
#   SEED=42            of everything that chance decides
#   STREAMS, PEERS     which, by name (see below); all-streams adds the larger ones
#   ROUNDS=3           processes per stream and index; the table shows their median and range
#   RESULTS=FILE       where to append, instead of RESULTS.md
#   BENCH_ARGS         more arguments of `peer-bench bench`, for example --huge-pages
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
trace=${1:-}
seed=${SEED:-42}
rounds=${ROUNDS:-3}
results=${RESULTS:-$here/RESULTS.md}
small="mc512-w64 mc16-w8 mc16-w64 mc16-w64-holes adv-w8 deep-w64"
large="mc512-w8 mc512-w512 mc16-w512 deep-w512"
streams=${STREAMS:-$small}
[ "$streams" = all-streams ] && streams="$small $large"
peers=${PEERS:-kvd-local kvd-seq kvd-canonical kvd-tokens smg-chain smg-chain-map dynamo-crtc dynamo-radix dynamo-positional \
dynamo-positional-bin flat-map flat-map-seq proto-strand proto-strand-seq}
# The entries of the memory measurement and how many pods hold each block.
memory="1000000:1 1000000:8 10000000:1 10000000:8"

if [ -n "$trace" ] && [ ! -f "$trace" ]; then
    echo "$trace: no such file; leave it out to measure on made-up conversations" >&2
    exit 2
fi

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target/peers}"
echo "building (about three minutes on two cores the first time)" >&2
cargo build --release --quiet --locked --manifest-path "$here/Cargo.toml"
bench="$CARGO_TARGET_DIR/release/peer-bench"

name=$(if [ -n "$trace" ]; then basename "$trace" .jsonl; else echo made-up; fi)
ops="$root/target/bench-ops/$name-$seed"
mkdir -p "$ops"

mooncake() { # tokens per block, pods, capacity in blocks, eviction
    "$bench" mooncake ${trace:+--trace "$trace"} --block-size "$1" --pods "$2" --capacity "$3" --evict "$4" \
        --seed "$seed" "$5"
}

generate() {
    out="$ops/$1.bin"
    case $1 in
    mc512-w8) mooncake 512 8 2048 tail "$out" ;;
    mc512-w64) mooncake 512 64 768 tail "$out" ;;
    mc512-w512) mooncake 512 512 384 tail "$out" ;;
    mc16-w8) mooncake 16 8 65536 tail "$out" ;;
    mc16-w64) mooncake 16 64 24576 tail "$out" ;;
    mc16-w512) mooncake 16 512 12288 tail "$out" ;;
    mc16-w64-holes) mooncake 16 64 24576 head "$out" ;;
    deep-w64) "$bench" deep --pods 64 --sessions 256 --seed "$seed" "$out" ;;
    deep-w512) "$bench" deep --pods 512 --sessions 1024 --seed "$seed" "$out" ;;
    adv-w8) "$bench" adversarial --pods 8 --rounds 200000 --seed "$seed" "$out" ;;
    *)
        echo "no stream is called $1; there are: $small $large" >&2
        exit 2
        ;;
    esac
}

# What a run that is broken off has measured stays here: peer-bench table <raw.jsonl
raw="$ops/raw.jsonl"
summary="$ops/streams.txt"
: >"$raw"
: >"$summary"
for s in $streams; do
    generate "$s" | sed "s|$ops/||; s|\.bin||" | tee -a "$summary" >&2
done

load_before=$(cut -d' ' -f1-3 /proc/loadavg)
# A process per index, so that no one finds memory that another has touched; round by round, so
# that what the machine does meanwhile hits all alike.
round=1
while [ "$round" -le "$rounds" ]; do
    for s in $streams; do
        for p in $peers; do
            echo "round $round of $rounds: $s $p" >&2
            # shellcheck disable=SC2086
            "$bench" bench "$ops/$s.bin" "$p" --append "$raw" ${BENCH_ARGS:-} >/dev/null
        done
    done
    round=$((round + 1))
done
for m in $memory; do
    for p in $peers; do
        "$bench" memory "$p" --entries "${m%:*}" --share "${m#*:}" --append "$raw" >/dev/null
    done
done
load_after=$(cut -d' ' -f1-3 /proc/loadavg)

commit=$(git -C "$root" describe --always --dirty=" with uncommitted changes" 2>/dev/null || echo unknown)
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
{
    echo
    echo "## $(date -u +%Y-%m-%d), $commit"
    echo
    echo "$(nproc) x $cpu; $(rustc --version); load average $load_before before, $load_after after; seed $seed,"
    echo "trace $name, $rounds rounds${BENCH_ARGS:+, $BENCH_ARGS}."
    echo
    sed 's/^/- /' "$summary"
    echo
    "$bench" table <"$raw"
    echo
    echo "<details><summary>Raw results</summary>"
    echo
    echo '```json'
    cat "$raw"
    echo '```'
    echo
    echo "</details>"
} >>"$results"
"$bench" plot <"$raw" >"${results%.md}.svg"
"$bench" table <"$raw"
echo "appended to $results" >&2
