# The PyTorch package: its tests that need a GPU, and what layers and training steps take beside PyTorch's.
[ -z "$sanitize" ] || return 0
folder=$here/python
# A scenario that hangs says after SYNCBN_HANG seconds where.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}" SYNCBN_HANG="${SYNCBN_HANG:-60}"

python_tests() {
    step python "$python" -c 'import pytest, torch, syncbn; print(torch.__version__, syncbn.__file__)' || return 0
    names=$(printf ' or %s' "$@")
    # Interrupted a little before its limit, pytest still says why tests failed.
    tests python-one-process timeout --signal=INT $((limit - limit / 10)) \
        "$python" -m pytest "$folder/tests" --ignore "$folder/tests/test_ranks.py" -m cuda -k "${names# or }" \
        -vv --tb=short -p no:cacheprovider -o faulthandler_timeout="$SYNCBN_HANG"
    # test_ranks.py starts these and tells at the end; here each tells at once. SYNCBN_WORLDS: how many ranks;
    # those of more than there are GPUs share one.
    # shellcheck disable=SC2046
    [ $# -gt 0 ] || set -- $(cd "$folder/tests/scenarios" && ls | sed -n 's/^\([a-z].*\.\)py$/\1/p')
    for world in ${SYNCBN_WORLDS:-1 2 3}; do
        for scenario in "$@"; do
            tests "python-$world-ranks-${scenario%.}" \
                "$here/run" launch "$world" "$folder/tests/run_ranks.py" --device cuda --only "$scenario"
        done
    done
}

python_times() {
    peers=$here/peers/peers
    step python-layers "$here/run" launch "$gpus" "$peers/torch_module.py" --only layers
    step python-steps "$here/run" launch "$gpus" "$peers/torch_module.py" --only steps
    step python-host "$python" "$peers/torch_host.py" --device cuda
}

case $what in
test) python_tests "$@" ;;
measure) python_times ;;
esac
