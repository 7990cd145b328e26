"""What a dynamic layer costs: against the textbook form, a static network and full precision.

python -m benchmarks.dynamic                     # every row, about 10 minutes on 2 cores
python -m benchmarks.dynamic --quick             # a few repetitions of the small network
python -m benchmarks.dynamic --device cuda --out results/speed_gpu.json

The textbook form (benchmarks/textbook.py) computes every width for the whole batch in PyTorch, in
PyTorch's default memory format, as someone would write it down; it is also measured in the format
that train.py and dqnet.quantize choose on a CPU, channels-last, as all others are. All networks of
a row are the same network with the same weights, on the same batch.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import dqnet
from benchmarks.measure import Report, Timing, interleaved, resident_bytes, saved_bytes
from benchmarks.textbook import TextbookConv2d, textbook_network
from dqnet.layers import QuantConv2d
from dqnet.network import QuantizedModel
from dqnet.runtime.devices import keep_freed_memory
from dqnet.standard_output import take_every_character

SMALL, LARGE = ("resnet20_cifar", 32, 128), ("resnet18", 224, 8)
WIDTHS = {3: (2, 3, 4), 5: (2, 3, 4, 5, 6), 8: (2, 3, 4, 5, 6, 7, 8, 9)}
FORMS = ("float", "static", "textbook", "textbook, channels-last", "dynamic")


def networks(
    name: str, size: int, k: int, device: torch.device, forms: tuple[str, ...] = FORMS
) -> dict[str, nn.Module]:
    """The same network in several forms, with the same initial weights."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10).to(device)
    sample = torch.zeros(1, 3, size, size, device=device)
    made: dict[str, nn.Module] = {}
    made["static"] = dqnet.quantize(copy.deepcopy(net), sample, widths=(3,))
    made["dynamic"] = dqnet.quantize(copy.deepcopy(net), sample, widths=WIDTHS[k])
    made["sampled"] = dqnet.quantize(
        copy.deepcopy(net), sample, widths=WIDTHS[k], choice_gradient="sampled"
    )
    made["frozen"] = copy.deepcopy(made["dynamic"])
    made["frozen"].controller.requires_grad_(False)
    made["textbook"] = textbook_network(made["dynamic"])
    made["textbook, channels-last"] = copy.deepcopy(made["textbook"])
    made["float"] = net
    if device.type == "cpu":
        for form in ("float", "textbook, channels-last"):
            made[form].to(memory_format=torch.channels_last)
    return {form: made[form] for form in forms}


def batch(size: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, size, size, generator=generator)
    return images.to(device), torch.randint(10, (count,), generator=generator).to(device)


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The training loss: cross-entropy and, where there are widths to choose from, the penalty."""
    if not isinstance(model, QuantizedModel):
        return F.cross_entropy(model(images), labels)
    logits, routing = model(images)
    loss = F.cross_entropy(logits, labels)
    if routing.shape[1]:
        loss = loss + dqnet.bit_flops(model, routing).mean() / dqnet.static_bit_flops(model, 3.0)
    return loss


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Forward, backward and an SGD update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        loss_of(model, images, labels).backward()
        optimizer.step()

    return step


def evaluation_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """A forward pass in evaluation mode, its routing spread over the widths."""
    routing = None
    if isinstance(model, QuantizedModel) and model.controller is not None:
        # An untrained controller's arg-max may choose one width for all; a trained one does not.
        shape = (len(images), len(model.routed_layers), len(model.widths))
        generator = torch.Generator().manual_seed(2)
        chosen = torch.randint(shape[-1], shape[:2], generator=generator)
        routing = F.one_hot(chosen, shape[-1]).float().to(images.device)

    @torch.no_grad()
    def step() -> None:
        model.eval()
        if routing is None:
            model(images)
        else:
            model(images, routing=routing)

    return step


def kept_bytes(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Bytes that one training step keeps for its backward pass, parameters apart."""
    model.train()
    return saved_bytes(lambda: loss_of(model, images, labels), list(model.parameters()))


def gradient_error(dtype: torch.dtype) -> float:
    """Largest relative error of any parameter's gradient against the textbook network's."""
    name, size, _ = SMALL
    nets = networks(name, size, 3, torch.device("cpu"), ("textbook", "dynamic"))
    images, labels = batch(size, 16, torch.device("cpu"))
    gradients = {}
    for form, net in nets.items():
        net.to(dtype).train()
        torch.manual_seed(3)  # the same Gumbel noise
        loss_of(net, images.to(dtype), labels).backward()
        gradients[form] = dict(net.named_parameters())
    return max(
        ((p.grad - gradients["textbook"][key].grad).norm() / p.grad.norm()).item()
        for key, p in gradients["dynamic"].items()
        if p.grad is not None and p.grad.norm() > 0
    )


def layer_gradient_error(dtype: torch.dtype) -> float:
    """The same for each routed layer on its own, on the inputs that it has in the network.

    In float32 two networks are not comparable as a whole: a value next to a rounding threshold may
    fall on either side of it by the last digit of a batch norm, and an untrained network at two to
    four bits amplifies that (two textbook networks of different memory format differ as much).
    """
    name, size, _ = SMALL
    net = networks(name, size, 3, torch.device("cpu"), ("dynamic",))["dynamic"].to(dtype)
    images, _ = batch(size, 16, torch.device("cpu"))
    inputs: dict[QuantConv2d, Tensor] = {}
    for layer in net.routed_layers:
        module = net.backbone.get_submodule(layer.name)
        module.register_forward_hook(lambda m, args, y: inputs.__setitem__(m, args[0].detach()))
    net.train()(images.to(dtype))
    errors = []
    for layer, x in inputs.items():
        found = []
        for form in (layer, TextbookConv2d(layer)):
            # Behind its ReLU, as in the network: at exactly 0 clips differ in their convention.
            leaf = torch.where(x > 0, x, -1).requires_grad_()
            torch.manual_seed(4)
            choice = F.one_hot(torch.randint(3, (len(x),)), 3).to(dtype).requires_grad_()
            y = form(leaf.relu(), choice)
            wanted = [leaf, choice, *layer.parameters()]
            found.append(torch.autograd.grad(y, wanted, torch.randn(y.shape, dtype=dtype)))
        errors += [((a - b).norm() / b.norm()).item() for a, b in zip(*found, strict=True)]
    return max(errors)


def peak_memory(name: str, size: int, count: int, form: str, device: torch.device) -> int:
    """Bytes that training steps add to this process's peak (or take on the GPU)."""
    net = networks(name, size, 3, device, (form,))[form]
    step = training_step(net, *batch(size, count, device))
    if device.type == "cuda":
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    before = resident_bytes("VmRSS")
    for _ in range(2):
        step()
    return resident_bytes("VmHWM") - before


def _peak_in_a_new_process(network: tuple[str, int, int], form: str, device: str) -> int:
    code = (
        "import torch; from benchmarks.dynamic import peak_memory; "
        f"print(peak_memory(*{network!r}, {form!r}, torch.device({device!r})))"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def run(quick: bool, device: torch.device) -> Report:
    """Measures every row."""
    report = Report()
    gpu = device.type == "cuda"
    cases = {"ResNet-20": (SMALL[0], 32, 256 if gpu else 128)}
    if not quick:
        cases["ResNet-18"] = (LARGE[0], 224, 256 if gpu else 8)
    # oneDNN compiles a kernel for every new group size, so early steps are not like later ones.
    repetitions, warm_up = (3, 2) if quick else (15, 15)
    for label, (name, size, count) in cases.items():
        goal = 0.58 if name == SMALL[0] else 0.60
        images, labels = batch(size, count, device)
        nets = networks(name, size, 3, device, (*FORMS, "sampled", "frozen"))
        steps = {form: training_step(net, images, labels) for form, net in nets.items()}
        t = interleaved(steps, repetitions, warm_up, device)
        what = f"{label} training step, {count} images"
        report.timings(what, t)
        _against_textbook(report, what, t, goal)
        report.ratio(f"{what}: static / float", t["static"].median / t["float"].median, 1.25)

        steps = {form: evaluation_step(nets[form], images) for form in FORMS}
        t = interleaved(steps, 2 * repetitions, 2, device)
        what = f"{label} evaluation, {count} images"
        report.timings(what, t)
        _against_textbook(report, what, t, 0.5)
        report.ratio(f"{what}: dynamic / static", t["dynamic"].median / t["static"].median, 1.15)

        saved = {form: kept_bytes(nets[form], images, labels) for form in ("textbook", "dynamic")}
        ratio = saved["dynamic"] / saved["textbook"]
        report.ratio(f"{label} bytes kept for backward: dynamic / textbook", ratio, 0.45)
        peak = {
            form: _peak_in_a_new_process((name, size, count), form, str(device))
            for form in ("textbook", "dynamic")
        }
        ratio = peak["dynamic"] / peak["textbook"]
        report.ratio(f"{label} peak memory: dynamic / textbook", ratio, 0.45)

    _growth(report, quick, device)
    error = gradient_error(torch.float64)
    report.ratio("gradients of the network, float64: relative error", error, 1e-10)
    error = layer_gradient_error(torch.float32)
    report.ratio("gradients of every layer, float32: relative error", error, 1e-5)
    return report


def _against_textbook(report: Report, what: str, timings: dict[str, Timing], goal: float) -> None:
    for form in ("textbook", "textbook, channels-last"):
        ratio = timings["dynamic"].median / timings[form].median
        report.ratio(f"{what}: dynamic / {form}", ratio, goal)


def _growth(report: Report, quick: bool, device: torch.device) -> None:
    name, size, count = SMALL
    images, labels = batch(size, count, device)
    # oneDNN compiles a kernel for every new group size, so early steps are not like later ones.
    repetitions, warm_up = (3, 2) if quick else (15, 15)
    nets = {k: networks(name, size, k, device, ("textbook", "dynamic")) for k in WIDTHS}
    steps = {f"K = {k}": evaluation_step(nets[k]["dynamic"], images) for k in nets}
    t = interleaved(steps, 2 * repetitions, 2, device)
    report.timings("growth: ResNet-20 evaluation", t)
    for k in (5, 8):
        ratio = t[f"K = {k}"].median / t["K = 3"].median
        report.ratio(f"growth: evaluation, K = {k} / K = 3", ratio, 1.10)
    steps = {form: training_step(net, images, labels) for form, net in nets[8].items()}
    t = interleaved(steps, repetitions, warm_up, device)
    report.timings("growth: ResNet-20 training step, K = 8", t)
    ratio = t["dynamic"].median / t["textbook"].median
    report.ratio("growth: training step, K = 8: dynamic / textbook", ratio, 0.5)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few repetitions, one network")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    take_every_character()
    keep_freed_memory()  # as training does, for every form alike
    report = run(arguments.quick, torch.device(arguments.device))
    report.print(Console())
    report.write(arguments.out)


if __name__ == "__main__":
    main()
