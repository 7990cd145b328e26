"""EfficientNet-Lite0 with its ImageNet weights, as three tools quantize it for a processor."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import torch
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

import dqnet
from benchmarks.deploy_engines import Step
from benchmarks.measure import configuration
from benchmarks.post_training import BATCH, everything, onnx_runtime, predictions
from dqnet.data import load_data, loaders
from dqnet.network import Output, QuantizedModel
from dqnet.training.build import build_model


class LiteZero:
    """The float network and its images.

    Args:
        root: what benchmarks.imagenet_sample wrote.

    Attributes:
        name: of the network in timm.
        calibration, images: ``[N, 3, 224, 224]``, of the training and of the test part.
    """

    def __init__(self, root: str) -> None:
        config = configuration(
            "model=efficientnet_lite0", "data=shards", f"data.root={root}", "quant=none"
        )
        splits = load_data(config.data)
        data = loaders(splits, config.data, 0, observed_images=200)
        self.name = config.model.name
        self.calibration, _ = everything(data.observed)
        self.images, _ = everything(data.test)
        shape = (3, config.data.size, config.data.size)
        self.net = build_model(config.model, config.quant, splits.num_classes, shape).eval()
        self.exact = predictions(self.net, self.images)

    def converted(self, residual: int | None) -> QuantizedModel:
        """dqnet's W8A8, calibrated: the recipe ``deploy_w8a8``, or that with float residuals."""
        net, sample = copy.deepcopy(self.net), self.calibration[:1]
        dqnet.fold_batch_norms(net, sample)
        how = ("symmetric", "affine")
        model = dqnet.quantize(net, sample, [8], how, first_last=8, residual=residual)
        dqnet.calibrate(model, self.calibration.split(BATCH))
        return model.eval()

    def files(self, folder: Path) -> dict[str, Path]:
        """Writes the float network, and what ``quantize_static`` and NNCF make of it."""
        import nncf
        import openvino

        logging.getLogger().setLevel(logging.ERROR)
        exported, prepared = folder / "float.onnx", folder / "prepared.onnx"
        axes = {"images": {0: "n"}, "logits": {0: "n"}}
        torch.onnx.export(
            self.net, (self.calibration[:2],), exported, input_names=["images"],
            output_names=["logits"], dynamic_axes=axes, dynamo=False,
        )  # fmt: skip
        quant_pre_process(exported, prepared)
        onnx_runtime(prepared, folder, self.calibration, CalibrationMethod.MinMax)
        images = [{"images": image.numpy()} for image in self.calibration.split(1)]
        model = nncf.quantize(
            openvino.Core().read_model(exported), nncf.Dataset(images), subset_size=len(images)
        )
        openvino.save_model(model, folder / "nncf.xml", compress_to_fp16=False)
        return {
            "float": exported,
            "quantize_static": folder / "quantized.onnx",
            "NNCF": folder / "nncf.xml",
        }

    def disagreement(self, step: Step) -> float:
        """The share of images that are not given the float network's class."""

        def logits(images: Tensor) -> Tensor:
            found = step(images)
            return torch.as_tensor(found.logits if isinstance(found, Output) else found)

        return (predictions(logits, self.images) != self.exact).float().mean().item()
