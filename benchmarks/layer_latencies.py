"""What each layer takes in ONNX Runtime, in float32 and in 8-bit integers, as a table of costs.

python -m benchmarks.layer_latencies latency.csv
python -m benchmarks.layer_latencies latency.csv --model resnet18 --classes 1000 --size 224
python train.py cost=table loss.cost_options.entries=latency.csv search=sensitivity \\
    quant.widths=[8,16] loss.target_bits=12 data=cifar10 model.checkpoint_path=FLOAT

The network is exported with norms folded, in float32 and in dqnet's integer form, and run an image
at a time on one thread. Rows are medians over runs in microseconds, from ONNX Runtime's profile:
``8`` of the integer network, ``full`` and ``16`` of the float one. A processor has no faster
kernels for fewer than 8 bits and none for 16-bit integers, so that what is narrower than 8 bits
costs as much as 8 and what is wider runs as float32; other rows are for other hardware. What runs
between layers is not in the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
from torch import Tensor

import dqnet
from dqnet.costs.rows import write_rows
from dqnet.costs.table import COLUMNS
from dqnet.plan import LayerPlan

#: operators that multiply by a weight, after ONNX Runtime has fused what follows
OPERATORS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "QLinearConv", "QGemm")


def exported(
    name: str, classes: int, size: int, folder: Path
) -> tuple[Sequence[LayerPlan], Tensor]:
    """Writes ``full.onnx`` and ``8.onnx``; returns the layers and an image."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=classes).eval()
    images = torch.randn(16, 3, size, size)
    dqnet.fold_batch_norms(net, images[:1])
    torch.onnx.export(
        net, (images[:1],), folder / "full.onnx", input_names=["images"], dynamo=False
    )
    model = dqnet.quantize(net, images[:1], [8], ("symmetric", "affine"), first_last=8, residual=8)
    dqnet.calibrate(model, [images])
    dqnet.export_onnx(model.eval(), folder / "8.onnx", form="integer")
    return model.layers, images[:1]


def latencies(path: Path, layers: Sequence[LayerPlan], image: Tensor, runs: int) -> list[float]:
    """Microseconds of each layer, the median over runs.

    Raises:
        RuntimeError: if the runtime's operators are not the layers, one by one.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, {"images": image.numpy()})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    events = [event for event in events if event.get("args", {}).get("op_name") in OPERATORS]
    events = [event for event in events if event["name"].endswith("_kernel_time")]
    if len(events) != runs * len(layers):
        raise RuntimeError(f"{path.name}: {len(events)} operators for {len(layers)} layers")
    for layer, event in zip(layers, events, strict=False):
        (shape,) = event["args"]["output_type_shape"][0].values()
        if np.prod(shape) != layer.outputs:
            raise RuntimeError(
                f"{path.name}: {layer.name} has {layer.outputs} outputs, not {shape}"
            )
    own = [events[i :: len(layers)] for i in range(len(layers))]
    return [statistics.median(event["dur"] for event in of) for of in own]


def measure(name: str, classes: int, size: int, runs: int) -> list[tuple[str, str, float]]:
    """Rows of layer, precision and microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        layers, image = exported(name, classes, size, Path(folder))
        integer, full = (
            latencies(Path(folder, f"{form}.onnx"), layers, image, runs) for form in ("8", "full")
        )
    rows = []
    for layer, of_integer, of_full in zip(layers, integer, full, strict=True):
        at = {"8": of_integer, "16": of_full, "full": of_full}
        rows += [(layer.name, precision, float(cost)) for precision, cost in at.items()]
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layer_latencies", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path, help="a CSV file for cost=table")
    parser.add_argument("--model", default="resnet20_cifar", help="a timm model")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--size", type=int, default=32, help="pixels of each side")
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    rows = measure(options.model, options.classes, options.size, options.runs)
    write_rows(options.out, COLUMNS, tuple(rows))
    totals = {own: sum(cost for _, at, cost in rows if at == own) for own in ("8", "full")}
    print(f"all layers: {totals['8']:.0f} us in 8 bits, {totals['full']:.0f} us in float32")


if __name__ == "__main__":
    main()
