"""Post-training quantization of EfficientNet-Lite0 at 8 bits, beside ONNX Runtime's.

python -m benchmarks.imagenet_sample SOURCE PATH      # 200 images to calibrate on, 800 to measure
python -m benchmarks.post_training PATH --out results/post_training_cpu.json

Both start from the same float network (for ONNX Runtime, exported once and preprocessed by its own
quant_pre_process) and the same decoded images. Measured are seconds from the float network to the
quantized one; top-1 of 800 images; and how many predictions are those of the float network, since
the sample may have been trained on. Methods take turns, repetition by repetition.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

import dqnet
from benchmarks.measure import configuration, machine
from dqnet.data import load_data, loaders
from dqnet.training.build import build_model

BATCH = 50
#: ONNX Runtime's calibrations: its default, and those that its documentation offers beside it
CALIBRATIONS = {
    "min-max": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class Reader(CalibrationDataReader):
    """Batches of images, as ONNX Runtime asks for them."""

    def __init__(self, images: Tensor) -> None:
        self._batches = iter([{"images": batch.numpy()} for batch in images.split(BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def ours(net: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """dqnet's recipe ``ptq_w8a8``, of a network in memory."""
    net, sample = copy.deepcopy(net).eval(), images[:1]
    dqnet.fold_batch_norms(net, sample)
    model = dqnet.quantize(net, sample, [8], "affine", first_last=8)
    dqnet.calibrate(model, images.split(BATCH))
    model.eval()
    return lambda batch: model(batch).logits


def onnx_runtime(
    prepared: Path, folder: Path, images: Tensor, method: CalibrationMethod
) -> Callable[[Tensor], Tensor]:
    """``quantize_static``: QDQ, per channel, 8-bit weights and activations."""
    path = folder / "quantized.onnx"
    quantize_static(
        prepared, path, Reader(images), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=method,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


@torch.no_grad()
def predictions(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``[N, C, H, W]`` to classes ``[N]``."""
    return torch.cat([network(batch).argmax(1) for batch in images.split(BATCH)])


def everything(loader: Any) -> tuple[Tensor, Tensor]:
    """All images and labels of a loader."""
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def measure(root: str, repeats: int) -> dict[str, Any]:
    """Every method's seconds and accuracy."""
    config = configuration(
        "model=efficientnet_lite0", "data=shards", f"data.root={root}", "quant=none"
    )
    splits = load_data(config.data)
    data = loaders(splits, config.data, 0, observed_images=200)
    calibration, _ = everything(data.observed)
    images, labels = everything(data.test)
    size = config.data.size
    net = build_model(config.model, config.quant, splits.num_classes, (3, size, size)).eval()
    exact = predictions(net, images)
    rows = {"float": _row([0.0], exact, exact, labels)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exported, prepared = folder / "float.onnx", folder / "prepared.onnx"
        axes = {"images": {0: "n"}, "logits": {0: "n"}}
        torch.onnx.export(
            net, (calibration[:2],), exported, input_names=["images"], output_names=["logits"],
            dynamic_axes=axes, dynamo=False,
        )  # fmt: skip
        quant_pre_process(exported, prepared)
        methods: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
            "dqnet": lambda: ours(net, calibration),
            **{
                f"ONNX Runtime, {title}": lambda method=method: onnx_runtime(
                    prepared, folder, calibration, method
                )
                for title, method in CALIBRATIONS.items()
            },
        }
        seconds: dict[str, list[float]] = {title: [] for title in methods}
        for _ in range(repeats):
            for title, make in methods.items():
                began = time.perf_counter()
                network = make()
                seconds[title].append(time.perf_counter() - began)
                rows[title] = _row(seconds[title], predictions(network, images), exact, labels)
                print(title, rows[title], flush=True)
    return {"machine": machine(), "images": len(images), "rows": rows}


def _row(seconds: list[float], found: Tensor, exact: Tensor, labels: Tensor) -> dict[str, Any]:
    return {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "top1": 100 * (found == labels).float().mean().item(),
        "agreement": 100 * (found == exact).float().mean().item(),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.post_training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("root", help="what benchmarks.imagenet_sample wrote")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    result = measure(options.root, options.repeats)
    text = json.dumps(result, indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
