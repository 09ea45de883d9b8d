"""Makes data/golden.json: batch normalisation as others compute it, for the law `golden`.

    pip install torch onnx numpy && python golden/make.py data/golden.json

Two sources:
- PyTorch's BatchNorm in float64 on the CPU, on whole batches that the law then splits over ranks;
- the node tests of BatchNormalization in the onnx package (ONNX's reference data, float32).

ONNX differs in two conventions. Its momentum is the weight of the OLD statistics: ours is 1 - momentum. Its running variance
takes the population's variance: `running_var` here is converted to the unbiased one by adding what the factor M/(M-1) adds.

Inputs drawn here are multiples of 1/8 below 8 in size, so that every type from bf16 (8 bits) on holds them exactly.
"""

import json
import sys

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases
import torch


def numbers(array):
    return [float(v) for v in np.asarray(array, dtype=np.float64).ravel()]


def eighths(generator, *shape):
    return torch.randint(-31, 32, shape, generator=generator).double() / 8


def from_torch(name, seed, shape, splits, momentum, eps):
    g = torch.Generator().manual_seed(seed)
    channels = shape[1]
    # Only to hold the parameters: the function below takes any number of axes.
    layer = torch.nn.BatchNorm1d(channels).double()
    x = eighths(g, *shape).requires_grad_()
    dy = eighths(g, *shape)
    with torch.no_grad():
        layer.weight.copy_(eighths(g, channels))
        layer.bias.copy_(eighths(g, channels))
        layer.running_mean.copy_(eighths(g, channels))
        layer.running_var.copy_(eighths(g, channels).abs() + 0.5)
    case = {
        "name": name,
        "channels": channels,
        "spatial": list(shape[2:]),
        "splits": splits,
        "eps": eps,
        "momentum": momentum,
        "x": numbers(x.detach()),
        "dy": numbers(dy),
        "weight": numbers(layer.weight.detach()),
        "bias": numbers(layer.bias.detach()),
        "old_mean": numbers(layer.running_mean),
        "old_var": numbers(layer.running_var),
    }
    running_mean, running_var = layer.running_mean.clone(), layer.running_var.clone()
    a = 1.0 if momentum is None else momentum  # the first batch of a cumulative average
    y = torch.nn.functional.batch_norm(
        x, running_mean, running_var, layer.weight, layer.bias, training=True, momentum=a, eps=eps
    )
    y.backward(dy)
    case |= {
        "y": numbers(y.detach()),
        "dx": numbers(x.grad),
        "d_weight": numbers(layer.weight.grad),
        "d_bias": numbers(layer.bias.grad),
        "new_mean": numbers(running_mean),
        "new_var": numbers(running_var),
    }
    return case


def from_onnx():
    cases = []
    for test in collect_testcases("BatchNormalization"):
        # Each test comes a second time, expanded into other operators.
        node = test.model.graph.node[0]
        if node.op_type != "BatchNormalization":
            continue
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        inputs, outputs = ([np.asarray(v, dtype=np.float64) for v in side] for side in test.data_sets[0])
        x, scale, bias, mean, var = inputs
        training = bool(given.get("training_mode", 0))
        a = 1.0 - given.get("momentum", 0.9)
        case = {
            "name": "onnx_" + test.name,
            "channels": x.shape[1],
            "spatial": list(x.shape[2:]),
            "splits": [x.shape[0]],
            "eps": float(given.get("epsilon", 1e-5)),
            "momentum": a,
            "training": training,
            "x": numbers(x),
            "weight": numbers(scale),
            "bias": numbers(bias),
            "old_mean": numbers(mean),
            "old_var": numbers(var),
            "y": numbers(outputs[0]),
        }
        if training:
            m = x.size // x.shape[1]
            population = x.var(axis=tuple(i for i in range(x.ndim) if i != 1))
            case["new_mean"] = numbers(outputs[1])
            case["new_var"] = numbers(outputs[2] + a * population / (m - 1))
        cases.append(case)
    return cases


def main():
    cases = [
        from_torch("torch_2d", 1, (7, 5), [3, 0, 4], 0.1, 1e-5),
        from_torch("torch_3d", 2, (4, 3, 6), [1, 3], 0.25, 1e-3),
        from_torch("torch_4d", 3, (5, 4, 3, 2), [2, 2, 1], 0.99, 1e-5),
        from_torch("torch_5d", 4, (3, 2, 2, 3, 2), [1, 1, 1], 0.1, 1e-5),
        from_torch("torch_4d_one_rank", 5, (4, 3, 5, 5), [4], 0.1, 1e-5),
        from_torch("torch_4d_cumulative", 6, (4, 3, 2, 3), [1, 2, 1], None, 1e-5),
    ]
    onnx_cases = from_onnx()
    assert onnx_cases, "the onnx package has no node tests of batch normalisation"
    versions = {"torch": torch.__version__, "onnx": onnx.__version__, "numpy": np.__version__}
    with open(sys.argv[1], "w") as file:
        json.dump({"versions": versions, "cases": cases + onnx_cases}, file, indent=None, separators=(",", ":"))
        file.write("\n")
    print([case["name"] for case in cases + onnx_cases])


main()
