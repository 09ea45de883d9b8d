"""A small ResNet by PyTorch: makes the files that the test `pytorch` reads, and takes back the file that it writes.

    pip install torch safetensors numpy
    python resnet.py make .                 # resnet.safetensors (the state dict) and evaluated.safetensors (x and y)
    python resnet.py check WRITTEN          # loads a file strictly, evaluates it, and compares with both

With SYNCBN_RESNET=WRITTEN, the whole path of a file, the test keeps there what it writes.
"""

import pathlib
import sys

from safetensors.torch import load_file, save_file
import torch
from torch import nn

HERE = pathlib.Path(__file__).parent


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """The names of torchvision's ResNet, with two stages of one block each."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 16, 2))
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def make(folder):
    torch.manual_seed(1)
    model = ResNet()
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(20):  # so that no variable is as it was made
        x, classes = torch.randn(16, 3, 12, 12) * 2 + 1, torch.randint(10, (16,))
        sgd.zero_grad()
        nn.functional.cross_entropy(model(x), classes).backward()
        sgd.step()
    model.eval()
    x = torch.randn(4, 3, 12, 12) * 2 + 1
    with torch.no_grad():
        y = model(x)
    save_file(model.state_dict(), folder / "resnet.safetensors", {"format": "pt"})
    save_file({"x": x, "y": y}, folder / "evaluated.safetensors", {"format": "pt"})


def check(written):
    original, evaluated = load_file(HERE / "resnet.safetensors"), load_file(HERE / "evaluated.safetensors")
    state = load_file(written)
    model = ResNet().eval()
    model.load_state_dict(state, strict=True)
    for name, value in original.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name
    with torch.no_grad():
        error = (model(evaluated["x"]) - evaluated["y"]).abs().max().item()
    assert error < 1e-6, error
    print(f"PyTorch {torch.__version__} loads {len(state)} tensors strictly; y differs by {error}")


if __name__ == "__main__":
    command, path = sys.argv[1:]
    {"make": make, "check": check}[command](pathlib.Path(path))
