"""Fair timings on a noisy machine: alternatives take turns, and ratios are of medians."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dqnet.cli import to_object
from dqnet.config import TrainConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
#: packages that some benchmarks use
ENGINES = ("onnxruntime", "openvino", "nncf")


def configuration(*overrides: str) -> TrainConfig:
    """What ``python train.py`` with these overrides would run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_object(TrainConfig, compose("train", list(overrides)))


@dataclass(frozen=True)
class Timing:
    """Seconds of one step, over the repetitions."""

    minimum: float
    median: float
    maximum: float


def interleaved(
    steps: dict[str, Callable[[], Any]],
    repetitions: int,
    warm_up: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times each step once per repetition, all of them in turn.

    Args:
        steps: what to time, by name.
        repetitions: how often each is timed.
        warm_up: rounds before that.
        device: whose work a step waits for.
        clock: in seconds; ``time.process_time`` leaves out other processes on the same core.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(warm_up + repetitions):
        for name, step in steps.items():
            _wait(device)
            began = clock()
            step()
            _wait(device)
            if i >= warm_up:
                seconds[name].append(clock() - began)
    return {
        name: Timing(min(values), statistics.median(values), max(values))
        for name, values in seconds.items()
    }


def saved_bytes(step: Callable[[], Any], parameters: list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of ``step``, each storage counted once.

    Parameters are not counted: they exist in any case.
    """
    own = {p.untyped_storage().data_ptr() for p in parameters}
    storages: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # Kept alive, so that no address is used twice.
            storages[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = step()
    del result
    return sum(size for size, _ in storages.values())


def resident_bytes(field: str, process: int | str = "self") -> int:
    """A process's resident memory: ``VmRSS`` now, ``VmHWM`` at its peak (Linux).

    Args:
        field: which of the two.
        process: its number; this one by default.
    """
    path = Path(f"/proc/{process}/status")
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{path} has no {field}")


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return {
        "cpu": models[0] if models else platform.processor(),
        "flags": sorted(f for f in flags if f.startswith(("avx", "amx")) or "vnni" in f),
        "cores": len(models),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        **{name: version(name) for name in ENGINES if find_spec(name) is not None},
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Report:
    """Rows of figures, printed as a table and written as JSON."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def timings(self, what: str, timings: dict[str, Timing]) -> None:
        """Adds the alternatives of one comparison."""
        for form, timing in timings.items():
            self.rows.append({"what": what, "form": form, **asdict(timing)})

    def ratio(self, what: str, value: float, goal: float) -> None:
        """Adds a ratio that has a goal."""
        self.rows.append({"what": what, "ratio": value, "goal": goal})

    def write(self, path: Path | None) -> None:
        """Writes the rows, and what they were measured on, as JSON; ``None``: nowhere."""
        if path is not None:
            content = {"machine": machine(), "command": " ".join(sys.argv[1:]), "rows": self.rows}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def print(self, console: Console) -> None:
        """Prints times in milliseconds, then ratios against their goals."""
        times = Table("what", "form", "min ms", "median ms", "max ms")
        ratios = Table("what", "value", "goal", "reached")
        for row in self.rows:
            if "form" in row:
                values = [f"{1e3 * row[key]:.1f}" for key in ("minimum", "median", "maximum")]
                times.add_row(row["what"], row["form"], *values)
            else:
                reached = "yes" if row["ratio"] <= row["goal"] else "no"
                ratios.add_row(row["what"], f"{row['ratio']:.3g}", f"≤ {row['goal']:g}", reached)
        console.print(times, ratios)
