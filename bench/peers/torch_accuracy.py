"""PyTorch's errors beside those of `cargo xtask accuracy`: nn.BatchNorm for one rank, the kernels of nn.SyncBatchNorm for several.

The ranks are parts of one tensor on one GPU: the kernels are those that SyncBatchNorm calls, and the gather is a stack.
Deliberately not here: any process group.
"""

import argparse
import json
import pathlib

import torch

SAMPLES, CHANNELS, LENGTH, EPS = 197, 4, 16, 1e-5
SIZES = {torch.float64: [1.0, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12], torch.float32: [1.0, 1e2, 1e4, 1e6, 8e6]}


def batch(dtype, mean_over_std):
    torch.manual_seed(1)
    offsets = mean_over_std * (1 + torch.arange(CHANNELS, dtype=torch.float64) / 7)
    noise = torch.randn(SAMPLES, CHANNELS, LENGTH, dtype=torch.float64)
    x = (noise + offsets[None, :, None]).to(dtype)
    return x, torch.randn(SAMPLES, CHANNELS, LENGTH, dtype=torch.float64).to(dtype)


def truth(x, dy):
    """From the differences to each channel's first element, which are exact."""
    d = x.double() - x.double()[:1, :, :1]
    d = d - d.mean((0, 2), keepdim=True)
    biased = d.square().mean((0, 2), keepdim=True)
    invstd = 1 / (biased + EPS).sqrt()
    xhat, dy = d * invstd, dy.double()
    slope = (dy * xhat).mean((0, 2), keepdim=True)
    dx = invstd * (dy - dy.mean((0, 2), keepdim=True) - xhat * slope)
    count = SAMPLES * LENGTH
    return xhat, dx, biased.flatten() * count / (count - 1)


def local(x, dy):
    norm = torch.nn.BatchNorm1d(CHANNELS, eps=EPS, momentum=1.0, dtype=x.dtype, device=x.device)
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(dy)
    return y.detach(), x.grad, norm.running_var


def synchronised(x, dy, ranks):
    weight = torch.ones(CHANNELS, dtype=x.dtype, device=x.device)
    bias, running_mean, running_var = torch.zeros_like(weight), torch.zeros_like(weight), torch.ones_like(weight)
    cuts = [rank * SAMPLES // ranks for rank in range(ranks + 1)]
    parts = [(x[a:b].contiguous(), dy[a:b].contiguous()) for a, b in zip(cuts, cuts[1:])]
    stats = [torch.batch_norm_stats(part, EPS) for part, _ in parts]
    counts = torch.tensor([part.numel() // CHANNELS for part, _ in parts], dtype=weight.dtype, device=x.device)
    mean, invstd = torch.batch_norm_gather_stats_with_counts(
        x, torch.stack([m for m, _ in stats]), torch.stack([i for _, i in stats]), running_mean, running_var, 1.0, EPS, counts
    )
    y = torch.cat([torch.batch_norm_elemt(part, weight, bias, mean, invstd, EPS) for part, _ in parts])
    sums = [torch.batch_norm_backward_reduce(g, part, mean, invstd, weight, True, True, True)[:2] for part, g in parts]
    sum_dy, sum_dy_xmu = sum(s for s, _ in sums), sum(s for _, s in sums)
    dx = [
        torch.batch_norm_backward_elemt(g, part, mean, invstd, weight, sum_dy, sum_dy_xmu, counts.to(torch.int32))
        for part, g in parts
    ]
    return y, torch.cat(dx), running_var


def relative(got, expected):
    return ((got.double() - expected).norm() / expected.norm()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    rows = []
    for dtype, sizes in SIZES.items():
        for size in sizes:
            x, dy = (tensor.cuda() for tensor in batch(dtype, size))
            expected = truth(x, dy)
            for ranks in [1, 2, 7, 64]:
                got = local(x, dy) if ranks == 1 else synchronised(x, dy, ranks)
                y, dx, running_var = (relative(a, b) for a, b in zip(got, expected))
                name = {torch.float64: "f64", torch.float32: "f32"}[dtype]
                rows.append(dict(backend=f"torch {torch.__version__}", dtype=name, mean_over_std=size, ranks=ranks,
                                 y=y, dx=dx, running_var=running_var))
                print(f"torch {name} {size:.0e} {ranks:3d}  {y:.1e}  {dx:.1e}  {running_var:.1e}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
