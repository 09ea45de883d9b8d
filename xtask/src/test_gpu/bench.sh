# The tensors of docs/performance.md, on one GPU or with a rank on each of several, beside PyTorch's.
[ "$what" = measure ] || return 0
peers=$here/peers ours=$logs/bench-ours torch=$logs/bench-torch
if [ "$gpus" -gt 1 ]; then
    shapes=$peers/shapes-ranks.txt
    step bench-ours "$here/run" launch "$gpus" --no-python \
        "$here/bin/syncbn-bench" --backend cuda --launched --shapes "$shapes" --out "$ours"
    step bench-torch "$here/run" launch "$gpus" "$peers/peers/torch_ranks.py" --shapes "$shapes" --out "$torch"
else
    step bench-ours "$here/bin/syncbn-bench" --backend cuda --out "$ours"
    step bench-torch "$python" "$peers/peers/torch_cuda.py" --out "$torch"
fi
step bench-table "$here/bin/bench-report" "$ours" "$torch" --out "$logs/bench"
