"""ResNet-18 (He et al. 2016) on small images, trained by several processes with two samples each; draws the losses as an SVG.

    torchrun --nproc-per-node 2 python/examples/resnet18.py --device cpu --out losses.svg

With local batch norm, statistics of two samples are noise; synchronised, they are those of the whole batch. The images are made here: a
class is a direction of stripes, under noise.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import syncbn

CLASSES, SIZE = 8, 24


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + self.downsample(x)).relu()


def resnet18(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for outputs, stride in [(width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)]:
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def batch(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    angle = (labels * (math.pi / CLASSES)).view(-1, 1, 1)
    row, column = torch.arange(SIZE).view(1, -1, 1), torch.arange(SIZE).view(1, 1, -1)
    phase = 6.3 * torch.rand(samples, 1, 1, generator=generator)
    stripes = (0.9 * (row * angle.sin() + column * angle.cos()) + phase).sin()
    return (stripes + torch.randn(samples, SIZE, SIZE, generator=generator)).unsqueeze(1), labels


def train(synchronised: bool, args: argparse.Namespace, device: torch.device) -> list[float]:
    """The mean loss of all ranks at every step."""
    torch.manual_seed(0)
    model = resnet18(args.width).to(device, memory_format=torch.channels_last)
    if synchronised:
        model = syncbn.convert_sync_batchnorm(model)
    model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(1 + dist.get_rank())
    losses = []
    for step in range(args.steps):
        syncbn.step(step)
        images, labels = (tensor.to(device) for tensor in batch(args.samples, generator))
        loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / dist.get_world_size())
    return losses


def svg(curves: dict[str, list[float]]) -> str:
    """Losses over steps, each the mean of the ten around it."""
    width, height, colours = 640, 360, ["#c0392b", "#2471a3"]
    most = max(max(losses) for losses in curves.values())
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">']
    lines.append(f'<rect width="{width}" height="{height}" fill="white"/><text x="10" y="20">loss</text>')
    for (name, losses), colour in zip(curves.items(), colours, strict=True):
        smooth = [sum(part) / len(part) for at in range(len(losses)) if (part := losses[max(0, at - 5) : at + 5])]
        points = " ".join(
            f"{40 + at * (width - 60) / len(smooth):.1f},{height - 30 - loss * (height - 60) / most:.1f}"
            for at, loss in enumerate(smooth)
        )
        y = 20 + 18 * list(curves).index(name)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        lines.append(f'<text x="{width - 200}" y="{y}" fill="{colour}">{name}: {smooth[-1]:.2f}</text>')
    return "\n".join([*lines, f'<text x="{width - 60}" y="{height - 8}">steps</text>', "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--samples", type=int, default=2, help="of one rank's batch")
    parser.add_argument("--width", type=int, default=8, help="channels of the first layer; 64 is He et al.'s")
    parser.add_argument("--out", type=Path, default=Path("resnet18.svg"))
    args = parser.parse_args()
    device = torch.device("cpu")
    if args.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    curves = {"local batch norm": train(False, args, device), "synchronised": train(True, args, device)}
    if dist.get_rank() == 0:
        args.out.write_text(svg(curves))
        last = {name: sum(losses[-20:]) / len(losses[-20:]) for name, losses in curves.items()}
        print(", ".join(f"{name}: {loss:.3f}" for name, loss in last.items()), f"(the last 20 steps); wrote {args.out}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
