"""What every peer script shares: the list of tensors, the arguments, and the files that a run leaves."""

import argparse
import datetime
import json
import pathlib
import statistics

import torch

REPETITIONS = 31
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
DEFAULT_SHAPES = pathlib.Path(__file__).resolve().parent.parent / "shapes.txt"


class Case:
    """One line of the list, such as `bf16 nhwc 2x64x256x512`."""

    def __init__(self, line):
        self.dtype_name, self.layout, self.shape_name = line.split()
        self.dtype = DTYPES[self.dtype_name]
        self.shape = [int(size) for size in self.shape_name.split("x")]
        if self.layout not in ("nchw", "nhwc"):
            raise ValueError(f"layout of `{line}`, expected nchw or nhwc")

    def __str__(self):
        return f"{self.dtype_name} {self.layout} {self.shape_name}"

    def tensor(self, device):
        """Random values in this type, shape and layout."""
        x = torch.randn(self.shape, device=device).to(self.dtype)
        if self.layout == "nhwc" and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    @property
    def param_dtype(self):
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shapes", type=pathlib.Path, default=DEFAULT_SHAPES)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    return parser.parse_args()


def cases(path):
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [Case(line) for line in lines if line]


def row(implementation, op, case, samples, copy_us=None):
    """A row of results.json; `samples` in microseconds."""
    print(f"{case} {implementation} {op}: {statistics.median(samples):.1f} us", flush=True)
    return {
        "impl": implementation,
        "op": op,
        "dtype": case.dtype_name,
        "layout": case.layout,
        "shape": case.shape_name,
        "median_us": statistics.median(samples),
        "min_us": min(samples),
        "copy_us": copy_us,
    }


def write(out, rows, device, machine, versions):
    out.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    meta = {"device": device, "machine": machine, "versions": versions, "date": date}
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    print(f"wrote {len(rows)} figures to {out}")
