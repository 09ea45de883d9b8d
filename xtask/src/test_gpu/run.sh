#!/bin/sh
# What a bundle can do on a machine with a GPU:
#   run test [--sanitize memcheck|racecheck|initcheck|synccheck] [FILTER...]    every test that needs a GPU
#   run bench ARGUMENTS...      times the backends (--help shows how)
#   run report ARGUMENTS...     joins results into a table and charts
#   run demo ARGUMENTS...       single, local and synchronised batch norm side by side
#   run peers SCRIPT ARGUMENTS...   times PyTorch the same way
# Without a GPU, test says so and exits 2.
set -u
here=$(cd "$(dirname "$0")" && pwd)
what=${1:-help}
[ $# -eq 0 ] || shift

test_all() {
    tool=
    if [ "${1:-}" = --sanitize ]; then
        tool=$2
        shift 2
    fi
    "$here/bin/devices" || exit 2
    export SYNCBN_REQUIRE="${SYNCBN_REQUIRE:-cuda}"
    failed=
    for program in "$here"/tests/*; do
        name=$(basename "$program")
        # Groups of several GPUs are made once and used by one test at a time.
        case $name in *-nccl | *-processes) threads=--test-threads=1 ;; *) threads= ;; esac
        echo "== $name"
        if [ -z "$tool" ]; then
            "$program" $threads "$@" || failed="$failed $name"
            continue
        fi
        case $name in
        *-cuda-conformance)
            # A sanitizer slows kernels a hundredfold: a few cases of each law show each kernel's accesses.
            SYNCBN_CASES="${SYNCBN_CASES:-0.03}" compute-sanitizer --tool "$tool" --error-exitcode 9 \
                "$program" --test-threads=4 "$@" || failed="$failed $name"
            ;;
        *) echo "not under $tool: the conformance kit runs every kernel" ;;
        esac
    done
    [ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
}

case $what in
test) test_all "$@" ;;
bench) exec "$here/bin/syncbn-bench" "$@" ;;
report) exec "$here/bin/bench-report" "$@" ;;
demo) exec "$here/bin/demo" --svg loss.svg "$@" ;;
peers) script=$1 && shift && exec python3 "$here/peers/peers/$script" "$@" ;;
*) sed -n '2,8s/^# \{0,1\}//p' "$0" ;;
esac
