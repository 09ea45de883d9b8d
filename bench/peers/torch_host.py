"""What a call of syncbn's PyTorch module takes on the host, and where: one core, tiny tensors, microseconds, the best of many short rounds,
so that other work on the machine is not measured."""

import argparse
import timeit

import torch

import syncbn
from syncbn import eager


def best(work, number=100, rounds=150):
    work()
    return min(timeit.repeat(work, number=number, repeat=rounds)) / number * 1e6


class Empty(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, *others):
        ctx.save_for_backward(x, weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight), None, None, None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    x = torch.randn(2, 3, 2, 2, device=device, requires_grad=True)
    dy = torch.randn_like(x)
    ours, native = syncbn.SyncBatchNorm(3).to(device), torch.nn.BatchNorm2d(3).to(device)
    operation = lambda: torch.ops.syncbn.forward(x, ours.weight, ours.bias, ours.key)[0]  # noqa: E731
    empty = lambda: Empty.apply(x, ours.weight, ours.bias, None, None, None)  # noqa: E731
    print(torch.__version__, torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    for name, forward in [
        ("native batch_norm, module", lambda: native(x)),
        ("an empty autograd.Function", empty),
        ("syncbn, module", lambda: ours(x)),
        ("syncbn, torch.library", operation),
    ]:
        leaves = [x, native.weight, native.bias] if "native" in name else [x, ours.weight, ours.bias]
        alone = best(forward)
        both = best(lambda: torch.autograd.grad(forward(), leaves, dy))
        print(f"{name:28} forward {alone:6.1f}   backward {both - alone:6.1f}")
    passes = ours.passes(x)
    layer, running = passes.layer, (ours.running_mean, ours.running_var, ours.num_batches_tracked)
    saved = torch.empty(10, dtype=torch.float64, device=device)
    y, weight, bias, leaf = torch.empty_like(x), ours.weight.detach(), ours.bias.detach(), x.detach()
    token = layer.forward(leaf, y, weight, bias, running, saved, group=True)
    wanted = (True, True, True)
    for name, work in [
        ("native forward call", lambda: layer.forward(leaf, y, weight, bias, running, saved, group=True)),
        ("native backward call", lambda: layer.backward(leaf, dy, y, weight, bias, weight.new_empty(3), saved, token)),
        ("its gradients' function", lambda: eager.gradients(dy, leaf, weight, saved, layer, token, wanted)),
        ("empty_like", lambda: torch.empty_like(leaf)),
        ("empty, f64", lambda: torch.empty(10, dtype=torch.float64, device=device)),
    ]:
        print(f"{name:28} {best(work):6.2f}")


if __name__ == "__main__":
    main()
