# The CUDA backend on several GPUs, a rank on each. Groups are made once and used by one test at a time.
[ "$what" = test ] || return 0
for program in "$here"/tests/peers.*; do
    name=${program##*/peers.}
    # In one process, for the same reason, and a few cases of each law. NCCL's kernels are not ours.
    sanitized() {
        tests "$name-$sanitize" env SYNCBN_CASES="${SYNCBN_CASES:-0.03}" \
            compute-sanitizer --tool "$sanitize" --error-exitcode 9 --target-processes all "$program" --test-threads=1 "$@"
    }
    case $sanitize:$name in
    :*) tests "$name" "$program" --test-threads=1 "$@" ;;
    *-peers) sanitized "$@" ;;
    *-processes) sanitized processes_that_meet_inside_kernels_do_too ;;
    esac
done
