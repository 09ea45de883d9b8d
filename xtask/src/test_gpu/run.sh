#!/bin/sh
# What a bundle can do on a machine with a GPU:
#   run test [--sanitize memcheck|racecheck|initcheck|synccheck] [FILTER...]    every test that needs a GPU
#   run bench ARGUMENTS...      times the backends (--help shows how)
#   run report ARGUMENTS...     joins results into a table and charts
#   run demo ARGUMENTS...       single, local and synchronised batch norm side by side
#   run accuracy ARGUMENTS...   errors of one rank and of many
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
    failed= ran=
    for program in "$here"/tests/*; do
        name=$(basename "$program")
        echo "== $name"
        case $tool:$name in
        # Groups of several GPUs are made once and used by one test at a time.
        :*-nccl | :*-peers | :*-processes) "$program" --test-threads=1 "$@" || failed="$failed $name" ;;
        :*) "$program" "$@" || failed="$failed $name" ;;
        *-cuda-conformance) sanitize "$tool" "$program" "$@" || failed="$failed $name" ;;
        # Without those that are long, ask for more memory than there is, or watch the device's free memory.
        *-cuda-memory | *-cuda-graph | *-cuda-errors)
            sanitize "$tool" "$program" --skip 2_to_the_31 --skip 1000_times --skip has_not_begun --skip does_not_have "$@" ||
                failed="$failed $name"
            ;;
        *) echo "not under $tool: the conformance kit runs every kernel" ;;
        esac
    done
    [ -z "$tool" ] || [ -n "$ran" ] || { echo "no test of that name"; exit 1; }
    [ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
}

# Every law in a process of its own, as many at a time as there are processors: a sanitizer slows kernels a hundredfold. So a few
# cases of each law, which show each kernel's accesses.
sanitize() {
    tool=$1 program=$2
    shift 2
    export SYNCBN_CASES="${SYNCBN_CASES:-0.03}"
    if [ "$tool" = racecheck ]; then # it loses track of kernels that run side by side
        export SYNCBN_CUDA_OVERLAP=0 CUDA_DEVICE_MAX_CONNECTIONS=1
    fi
    laws=$("$program" --list "$@") || return 1
    laws=$(printf '%s\n' "$laws" | sed -n 's/: test$//p')
    [ -n "$laws" ] || return 0
    ran=1
    jobs=$(nproc)
    [ "$jobs" -le 16 ] || jobs=16 # each has its share of the device's memory
    printf '%s\n' "$laws" | xargs -P "$jobs" -I {} "$here/run" sanitize_law "$tool" "$program" {}
}

# One law. A tool that says that it failed itself is asked again.
sanitize_law() {
    for _ in 1 2 3; do
        log=$(compute-sanitizer --tool "$1" --error-exitcode 9 "$2" --exact "$3" 2>&1)
        status=$?
        case $log in *'Internal Sanitizer Error'*) ;; *) break ;; esac
    done
    case $status:$log in
    *'Internal Sanitizer Error'*) ;;
    0:*' 1 passed'*) echo "$3 ... ok" && return ;;
    esac
    printf '%s\n' "$3 ... FAILED under $1" "$log"
    return 1
}

case $what in
test) test_all "$@" ;;
sanitize_law) sanitize_law "$@" ;;
bench) exec "$here/bin/syncbn-bench" "$@" ;;
report) exec "$here/bin/bench-report" "$@" ;;
accuracy) exec "$here/bin/accuracy" "$@" ;;
demo) exec "$here/bin/demo" --svg loss.svg "$@" ;;
peers) script=$1 && shift && exec python3 "$here/peers/peers/$script" "$@" ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0" ;;
esac
