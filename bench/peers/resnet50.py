"""ResNet-50 (He et al. 2016, with the stride in the 3x3 convolution), written out: torchvision may be missing."""

import torch
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, norm, inputs, width, stride):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return y.relu_()


def resnet50(norm, classes=1000):
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    blocks, inputs = [], 64
    for width, depth, stride in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
        for at in range(depth):
            blocks.append(Bottleneck(norm, inputs, width, stride if at == 0 else 1))
            inputs = 4 * width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*stem, *blocks, *head)


if __name__ == "__main__":
    print(sum(parameter.numel() for parameter in resnet50(nn.BatchNorm2d).parameters()), "parameters, expected 25557032")
    print(resnet50(nn.BatchNorm2d)(torch.randn(2, 3, 64, 64)).shape)
