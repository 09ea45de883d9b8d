#!/bin/sh
# sanitize TOOL PROGRAM [FILTER...]: every law of a program in a process of its own, as many at a time as there are processors, since
# compute-sanitizer slows kernels a hundredfold. So a few cases of each law, which show each kernel's accesses.
set -u
export SYNCBN_CASES="${SYNCBN_CASES:-0.03}"

# One law. A tool that says that it failed itself is asked again.
one_law() {
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

if [ "$1" = --law ]; then
    shift
    one_law "$@"
    exit
fi
tool=$1 program=$2
shift 2
if [ "$tool" = racecheck ]; then # it loses track of kernels that run side by side
    export SYNCBN_CUDA_OVERLAP=0 CUDA_DEVICE_MAX_CONNECTIONS=1
fi
laws=$("$program" --list "$@") || exit 1
laws=$(printf '%s\n' "$laws" | sed -n 's/: test$//p')
[ -n "$laws" ] || exit 0
jobs=$(nproc)
[ "$jobs" -le 16 ] || jobs=16 # each has its share of the device's memory
printf '%s\n' "$laws" | xargs -P "$jobs" -I {} "$0" --law "$tool" "$program" {}
