"""How fast exported networks are: against PyTorch, each other, and what other tools export.

python -m benchmarks.imagenet_sample SOURCE PATH      # 200 images to calibrate on, 800 to measure
python -m benchmarks.deploy PATH --out results/deploy_cpu.json
python -m benchmarks.deploy                           # without EfficientNet-Lite0's alternatives
python -m benchmarks.deploy --quick                   # the smallest comparison alone

One process per engine, all of them in turn; ratios are of medians. Processors with VNNI multiply
8-bit codes several times faster than those without, so the flags are part of the result.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

import dqnet
from benchmarks.deploy_engines import (
    Make,
    converted,
    exported,
    in_onnxruntime,
    in_openvino,
    in_pytorch,
    simulated,
    timed,
)
from benchmarks.measure import Report, Timing
from dqnet.standard_output import take_every_character

#: of 8 bits whatever is between layers: form=integer
WHOLE = {"first_last": 8, "residual": 8}
INT8 = {"quantizer": ("symmetric", "affine"), "widths": (8,)}
#: of 7-bit weights, which processors without VNNI multiply as fast as they can
INT7 = {"quantizer": ("symmetric", "affine"), "widths": ("w7a8",), "first_last": "w7a8"}
DYNAMIC = {"quantizer": "lsq", "widths": (3, 4, 5)}
#: name and size of networks, and how much dearer than static a dynamic one may be: batch of 1, 32
NETWORKS = {
    "ResNet-20": ("resnet20_cifar", 32, 1.30, 1.4),
    "ResNet-18": ("resnet18", 224, 1.10, 1.15),
}
FLOAT = ("PyTorch", "PyTorch, channels-last")


class Deployment:
    """Rows of one run.

    Args:
        folder: for files.
        repetitions: of each measurement.
    """

    def __init__(self, folder: Path, repetitions: int) -> None:
        self.folder = folder
        self.repetitions = repetitions
        self.report = Report()

    def dynamic(self, label: str) -> None:
        """Dynamic against static, in integers."""
        name, size, goal, goal_of_batch = NETWORKS[label]
        static = self._export("static", converted(name, size, **INT8, **WHOLE), "integer")
        dynamic = self._export("dynamic", converted(name, size, **DYNAMIC, **WHOLE), "integer")
        for count, threads, limit in ((1, 1, goal), (32, 2, goal_of_batch)):
            engines: dict[str, Make] = {
                "static": partial(exported, static, "onnxruntime", threads),
                "dynamic": partial(exported, dynamic, "onnxruntime", threads),
            }
            what = f"{label}, {count} image{'s' * (count > 1)}, {threads} thread(s), integer"
            self._compare(what, engines, torch.randn(count, 3, size, size), threads,
                          {("dynamic", "static"): limit})  # fmt: skip

    def against_simulation(self, label: str) -> None:
        """Dynamic, in OpenVINO, against the simulated network that it was."""
        name, size, *_ = NETWORKS[label]
        path = self._export("exact", converted(name, size, **DYNAMIC), "exact")
        engines: dict[str, Make] = {
            "simulated": partial(simulated, name, size, **DYNAMIC),
            "dynamic": partial(exported, path, "openvino", 1),
        }
        what = f"{label}, 1 image, 1 thread, exact in OpenVINO"
        self._compare(what, engines, torch.randn(1, 3, size, size), 1,
                      {("dynamic", "simulated"): 0.25})  # fmt: skip

    def static(self, label: str) -> None:
        """Static networks of random weights against the float one."""
        name, size, *_ = NETWORKS[label]
        engines: dict[str, Make] = {
            "PyTorch": partial(in_pytorch, name),
            "PyTorch, channels-last": partial(in_pytorch, name, True),
        }
        goals = {}
        for title, how in (("W8A8", INT8 | {"first_last": 8}), ("W7A8", INT7)):
            model = converted(name, size, **how, residual=8)
            path = self._export(f"{title}.integer", model, "integer")
            engines[f"{title} integer"] = partial(exported, path, "onnxruntime", 1)
            path = self._export(f"{title}.exact", converted(name, size, **how), "exact")
            engines[f"{title} exact in OpenVINO"] = partial(exported, path, "openvino", 1)
        for ours in list(engines)[len(FLOAT) :]:
            goals |= {(ours, reference): 0.25 for reference in FLOAT}
        what = f"{label}, 1 image, 1 thread"
        self._compare(what, engines, torch.randn(1, 3, size, size), 1, goals)

    def alternatives(self, root: str) -> None:
        """EfficientNet-Lite0: what ONNX Runtime's and OpenVINO's own tools make of it."""
        from benchmarks.deploy_alternatives import LiteZero

        lite = LiteZero(root)
        files = lite.files(self.folder)
        for title, path, form in (("integer", "lite.integer", "integer"),
                                  ("exact in OpenVINO", "lite.exact", "exact")):  # fmt: skip
            model = lite.converted(residual=8 if form == "integer" else None)
            files[title] = self._export(path, model, form)
        names = {"PyTorch": 0, "PyTorch, channels-last": 1}
        engines: dict[str, Make] = {
            **{key: partial(in_pytorch, lite.name, bool(last)) for key, last in names.items()},
            "float in ONNX Runtime": partial(in_onnxruntime, files["float"], 1),
            "float in OpenVINO": partial(in_openvino, files["float"], 1),
            "integer": partial(exported, files["integer"], "onnxruntime", 1),
            "exact in OpenVINO": partial(exported, files["exact in OpenVINO"], "openvino", 1),
            "quantize_static": partial(in_onnxruntime, files["quantize_static"], 1),
            "NNCF": partial(in_openvino, files["NNCF"], 1),
        }
        what = "EfficientNet-Lite0, 1 image, 1 thread"
        pairs = (("integer", "quantize_static"), ("exact in OpenVINO", "NNCF"))
        goals = {(ours, reference): 0.25 for ours, _ in pairs for reference in FLOAT}
        goals |= dict.fromkeys(pairs, 1.05)
        self._compare(what, engines, lite.images[:1], 1, goals)
        quantized = {name for pair in pairs for name in pair}
        other = {key: lite.disagreement(engines[key]()) for key in engines if key in quantized}
        for key, share in other.items():
            what = f"EfficientNet-Lite0, {len(lite.images)} images: predictions other than float's"
            self.report.ratio(f"{what}, {key}", share, 0.02)

    def _export(self, title: str, model: nn.Module, form: str) -> Path:
        path = self.folder / f"{title}.onnx"
        dqnet.export_onnx(model, path, form)
        return path

    def _compare(
        self, what: str, engines: dict[str, Make], images: Tensor, threads: int,
        goals: dict[tuple[str, str], float],
    ) -> dict[str, Timing]:  # fmt: skip
        """Times engines; ``goals``: what the ratio of two of them should not exceed."""
        t = timed(engines, images, threads, self.repetitions)
        self.report.timings(what, t)
        for (ours, theirs), goal in goals.items():
            ratio = t[ours].median / t[theirs].median
            self.report.ratio(f"{what}: {ours} / {theirs}", ratio, goal)
        return t


def run(root: str | None, quick: bool) -> Report:
    """Measures every row; without ``root`` those of networks with random weights."""
    with tempfile.TemporaryDirectory() as name:
        rows = Deployment(Path(name), 2 if quick else 21)
        if quick:
            rows.dynamic("ResNet-20")
            return rows.report
        rows.static("ResNet-18")
        for label in NETWORKS:
            rows.dynamic(label)
            rows.against_simulation(label)
        if root is not None:
            rows.alternatives(root)
        return rows.report


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deploy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("root", nargs="?", help="what benchmarks.imagenet_sample wrote")
    parser.add_argument("--quick", action="store_true", help="the smallest comparison alone")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    take_every_character()
    report = run(arguments.root, arguments.quick)
    report.print(Console())
    report.write(arguments.out)


if __name__ == "__main__":
    main()
