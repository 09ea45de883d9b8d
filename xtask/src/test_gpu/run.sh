#!/bin/sh
# What a bundle can do on a machine with GPUs:
#   run test [OPTIONS] [FILTER...]   every test that needs a GPU; FILTER: names of tests
#   run measure [OPTIONS]            times this project beside PyTorch and candle
#       --only PART                  this part of the bundle alone; may be given several times
#       --logs DIR                   keeps the output of each step there, in place of logs beside this script
#       --limit SECONDS              stops a step after so long; 1800
#       --sanitize TOOL              test: runs kernels under memcheck, racecheck, initcheck or synccheck
#   run bench ARGUMENTS...           times the backends (--help shows how)
#   run report ARGUMENTS...          joins results into a table and charts
#   run demo ARGUMENTS...            single, local and synchronised batch norm side by side
#   run accuracy ARGUMENTS...        errors of one rank and of many
#   run peers SCRIPT ARGUMENTS...    times PyTorch the same way
#   run launch N SCRIPT ARGUMENTS... starts N ranks of a Python script, or of a program after --no-python
# Without a GPU, test and measure say so and exit with 2. SYNCBN_PYTHON names a Python other than python3.
set -u
here=$(cd "$(dirname "$0")" && pwd)
python=${SYNCBN_PYTHON:-python3}
export PYTHONPATH="$here/python/site${PYTHONPATH:+:$PYTHONPATH}"

# run_steps test|measure OPTIONS: the steps of each part, and a table of what came of them.
run_steps() {
    what=$1 only='' logs=$here/logs limit=1800 sanitize='' failed=''
    shift
    while [ $# -gt 0 ]; do
        case $1 in
        --only | --logs | --limit | --sanitize) [ $# -gt 1 ] || { echo "$1 needs a value" && exit 2; } ;;
        *) break ;;
        esac
        case $1 in
        --only) has_part "$2" && only="$only $2 " ;;
        --logs) logs=$2 ;;
        --limit) limit=$2 ;;
        --sanitize) sanitize=$2 ;;
        esac
        shift 2
    done
    filters=$*
    devices=$("$here/bin/devices") || exit 2
    echo "$devices"
    gpus=$(echo "$devices" | grep -c '^device')
    mkdir -p "$logs" && logs=$(cd "$logs" && pwd) && : >"$logs/results.txt" || exit 2
    export SYNCBN_REQUIRE="${SYNCBN_REQUIRE:-cuda}" PYTHONUNBUFFERED=1
    for steps in "$here"/steps/*.sh; do
        part=$(part_of "$steps")
        # Each in a shell of its own, which keeps its variables from the others.
        # shellcheck disable=SC1090
        case $only in '' | *" $part "*) (. "$steps") || failed=1 ;; esac
    done
    echo && cat "$logs/results.txt" && echo "all output: $logs"
    [ -z "$failed" ] && ! grep -qE ': (FAILED|STOPPED)' "$logs/results.txt" || exit 1
    [ "$what" = test ] && good=passed || good=done
    grep -q ": $good" "$logs/results.txt" || { echo "nothing ran" && exit 1; }
}

part_of() { basename "$1" .sh | sed 's/^[0-9]*-//'; }

has_part() {
    for steps in "$here"/steps/*.sh; do
        [ "$(part_of "$steps")" != "$1" ] || return 0
    done
    echo "this bundle has no part $1: it was made without it" >&2
    exit 2
}

# step NAME COMMAND...: runs it within the limit, its output in a file. One line says what came of it. If it failed or
# measures, the end of its output follows.
step() { run_step done "$@"; }

# The same for a program that runs tests and says how many.
tests() { run_step passed "$@"; }

run_step() {
    good=$1 name=$2
    log=$logs/$name.log
    shift 2
    echo "== $name"
    began=$(date +%s)
    # What torchrun starts gets 30 s to end.
    timeout --kill-after=35 "$limit" "$@" >"$log" 2>&1
    status=$?
    counts=$(counts "$log")
    case $status:$good:$counts in
    # 5 is pytest's own word for it.
    [05]:passed:0*) [ -n "$filters" ] && result="ran no test" || result="FAILED: ran no test ($counts)" ;;
    0:passed:*) result="passed ($counts)" ;;
    0:*) result=$good ;;
    124:* | 137:*) result="STOPPED at its limit of $limit s ($counts)" ;;
    *) result="FAILED with status $status ($counts)" ;;
    esac
    printf '%6d s  %s: %s\n' $(($(date +%s) - began)) "$name" "$result" | tee -a "$logs/results.txt"
    case $what:$result in measure:* | *:FAILED* | *:STOPPED*) tail -n 50 "$log" | cut -c 1-400 ;; esac
    case $result in FAILED* | STOPPED*) return 1 ;; esac
}

# What libtest, pytest, run_ranks.py and sanitize say of their tests.
counts() {
    awk '/^test result:/ || /[0-9] (passed|skipped|deselected).* in [0-9.]+s/ {
             for (at = 2; at <= NF; at++) { if ($at ~ /^passed/) passed += $(at - 1); if ($at ~ /^skipped/) skipped += $(at - 1) }
         }
         /^rank 0: .*: passed$/ || /^[^ ]+ \.\.\. ok$/ { passed++ }
         /skipped: / { skipped++ }
         END { printf "%d passed, %d skips told", passed, skipped }' "$1"
}

program() {
    [ -x "$here/bin/$1" ] || { echo "this bundle has no $1: it was made without the part bench" >&2 && exit 2; }
    name=$1
    shift
    exec "$here/bin/$name" "$@"
}

what=${1:-help}
[ $# -eq 0 ] || shift
case $what in
test | measure) run_steps "$what" "$@" ;;
bench) program syncbn-bench "$@" ;;
report) program bench-report "$@" ;;
accuracy) program accuracy "$@" ;;
demo) program demo --svg loss.svg "$@" ;;
peers)
    script=$1 && shift
    exec "$python" "$here/peers/peers/$script" "$@"
    ;;
launch) exec "$python" -m torch.distributed.run --standalone --nproc-per-node "$@" ;;
*) sed -n '2,15s/^# \{0,1\}//p' "$0" ;;
esac
