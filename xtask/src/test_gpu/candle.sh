# candle's layer on CUDA, and the trainer with it: ranks as threads and as processes, on one GPU and on all.
[ -z "$sanitize" ] || return 0
# Candle links CUDA's libraries, which PyTorch's packages have where no toolkit is.
packages=$("$python" -c 'import glob, sys; print(*(lib for path in sys.path for lib in glob.glob(path + "/nvidia/*/lib")), sep=":")')
export LD_LIBRARY_PATH="$packages:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}"
trainer=$here/bin/candle-trainer

candle_tests() {
    # Each thread has a stream and memory of its own.
    tests candle "$here"/tests/candle.syncbn-candle-cuda --test-threads=3 "$@"
    [ $# -eq 0 ] || return 0
    step trainer-1-rank "$trainer" train --gpus 1 --ranks 1 --samples 16 --epochs 2
    step trainer-2-ranks-of-one-gpu "$trainer" train --gpus 1 --ranks 2 --samples 8 --epochs 2
    [ "$gpus" -gt 1 ] || return 0
    step "trainer-nccl-$gpus" "$here/run" launch "$gpus" --no-python "$trainer" train --nccl --samples 8 --epochs 2
    step "trainer-tcp-$gpus" "$here/run" launch "$gpus" --no-python "$trainer" train --tcp --gpus "$gpus" --samples 8 --epochs 2
    step "trainer-threads-$gpus" "$trainer" train --gpus "$gpus" --ranks "$gpus" --samples 8 --epochs 2
}

# Images a second, by our layer and by candle's own in turn.
candle_times() {
    for round in 1 2; do
        for way in sync candle; do
            set -- train --way "$way" --width 64 --epochs 2
            step "trainer-$way-1-round-$round" "$trainer" "$@" --gpus 1 --ranks 1 --samples 256
            [ "$gpus" -gt 1 ] || continue
            step "trainer-$way-$gpus-round-$round" "$here/run" launch "$gpus" --no-python "$trainer" "$@" --nccl --samples 128
        done
    done
}

case $what in
test) candle_tests "$@" ;;
measure) candle_times ;;
esac
