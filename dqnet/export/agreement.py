"""Exports a run's network, and measures how the file agrees with the simulated network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqnet.config import DataConfig, ExportConfig
from dqnet.errors import UserError, unknown_name
from dqnet.evaluation.trained import Trained
from dqnet.export.biases import round_biases
from dqnet.export.runtime import RUNTIMES, load_exported
from dqnet.export.write import FORMS, Preprocessing, check_exportable, export_onnx
from dqnet.runtime.files import write_json

NAMES = ("none", "onnx")
#: logits that differ by less count as the same
CLOSE = 1e-3
#: logits, and routing or passes, of a batch
Answers = tuple[Tensor, Tensor]


def check_export(config: ExportConfig) -> None:
    """Raises UserError for a setting that does not exist, before anything is loaded."""
    for key, valid in (("name", NAMES), ("form", FORMS), ("runtime", RUNTIMES)):
        if getattr(config, key) not in valid:
            raise unknown_name(f"export.{key}", getattr(config, key), valid)


def check_form(trained: Trained, config: ExportConfig) -> None:
    """Raises UserError for a network that has no such form, before minutes of evaluation."""
    if config.name == "none":
        return
    check_exportable(trained.model, config.form)


@torch.no_grad()
def export_trained(trained: Trained, config: ExportConfig, folder: Path) -> dict[str, Any]:
    """Writes ``model.onnx`` and ``export.json``.

    Args:
        trained: the network, at its budget if it has one, and the images to compare on.
        config: which form, and which runtime it is compared in.
        folder: where the files go.

    Returns:
        The content of ``export.json``. Of an integer network there is a second comparison, with the
        simulated one after its biases were rounded, which it is left with.
    """
    path = folder / "model.onnx"
    export_onnx(
        trained.model, path, config.form, packed=config.packed,
        class_names=trained.splits.class_names, preprocessing=_preprocessing(trained.config.data),
    )  # fmt: skip
    net = load_exported(path, config.runtime)
    # Of a network logits and routing, of a cascade logits and passes.
    exported = [net(trained.device.images(batch))[:2] for batch, _ in trained.held_out]
    content = {
        "form": config.form,
        "packed": config.packed,
        "runtime": net.runtime,
        "file_bytes": path.stat().st_size,
        "checkpoint_sha256": trained.sha256,
        **_agreement(trained, exported, net.is_cascade),
    }
    if config.form == "integer":
        round_biases(trained.model)
        content["rounded_biases"] = _agreement(trained, exported, net.is_cascade)
    write_json(folder / "export.json", content)
    return content


def _preprocessing(data: DataConfig) -> Preprocessing:
    return Preprocessing(data.size, tuple(data.mean), tuple(data.std))


def _agreement(trained: Trained, exported: list[Answers], is_cascade: bool) -> dict[str, float]:
    """With what the file answered to all images of the part that is evaluated."""
    model = trained.model.eval()
    images = same = close = same_way = simulated_right = right = 0
    for (batch, labels), (found, found_way) in zip(trained.held_out, exported, strict=True):
        batch, labels = trained.device.images(batch), labels.cpu()
        logits, way = model(batch)[:2]
        logits, way = logits.float().cpu(), way.cpu()
        answer, simulated = found.argmax(1), logits.argmax(1)
        images += len(labels)
        same += (answer == simulated).sum().item()
        close += ((found - logits).abs().amax(1) < CLOSE).sum().item()
        same_way += (found_way == way).reshape(len(labels), -1).all(1).sum().item()
        right += (answer == labels).sum().item()
        simulated_right += (simulated == labels).sum().item()
    if not images:
        raise UserError("there are no images to compare the export on")
    return {
        "images": images,
        "same_predictions": same / images,
        "close_logits": close / images,
        "same_passes" if is_cascade else "same_routing": same_way / images,
        "top1": 100 * right / images,
        "simulated_top1": 100 * simulated_right / images,
    }


def agreement_line(content: dict[str, Any]) -> str:
    """What the table of an evaluation says of an export."""
    rounded = content.get("rounded_biases")
    end = f"; {rounded['same_predictions']:.2%} if its biases are rounded too" if rounded else ""
    return (
        f"exported, form {content['form']}, {content['file_bytes'] / 1000:.1f} kB: "
        f"{content['same_predictions']:.2%} of {content['images']} predictions are the simulated "
        f"network's in {content['runtime']}, top-1 {content['top1']:.2f} % "
        f"(simulated {content['simulated_top1']:.2f} %){end}"
    )
