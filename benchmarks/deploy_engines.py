"""Engines that run a network each in a process of its own, one call at a time, in turn.

Idle threads of one engine would slow another one in the same process.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import dqnet
from benchmarks.measure import Timing
from dqnet.network import QuantizedModel

#: images to logits
Step = Callable[[Tensor], Any]
#: starts an engine, in its process; to be pickled
Make = Callable[[], Step]
#: a measurement repeats a call for so long, since a network may take less than a millisecond
LEAST_SECONDS = 0.02


def converted(name: str, size: int, **how: Any) -> QuantizedModel:
    """A calibrated network of random weights: what it answers does not matter for its speed."""
    torch.manual_seed(0)
    sample = torch.randn(8, 3, size, size)
    model = dqnet.quantize(timm.create_model(name), sample[:1], **how)
    dqnet.calibrate(model, [sample])
    return model.eval()


def in_pytorch(name: str, channels_last: bool = False) -> Step:
    """The float network, eager."""
    net = timm.create_model(name).eval()
    return _without_gradients(net.to(memory_format=torch.channels_last) if channels_last else net)


def simulated(name: str, size: int, **how: Any) -> Step:
    """The converted network, before export."""
    return _without_gradients(converted(name, size, **how))


def exported(path: Path, runtime: str, threads: int) -> Step:
    """A file of :func:`dqnet.export_onnx`."""
    return dqnet.load_exported(path, runtime, threads)


def in_onnxruntime(path: Path, threads: int) -> Step:
    """Another ONNX file, with ONNX Runtime's own settings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def in_openvino(path: Path, threads: int) -> Step:
    """Another file that OpenVINO reads."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})
    request = model.create_infer_request()
    return lambda images: request.infer({"images": images.numpy()})[0]


def timed(
    makes: dict[str, Make], images: Tensor, threads: int, repetitions: int, warm_up: int = 3
) -> dict[str, Timing]:
    """Seconds of a call of each engine, all of which take turns.

    Args:
        makes: engines by name.
        images: what each call is given.
        threads: of PyTorch in each process; other engines are told by ``makes``.
        repetitions: how often each is measured.
        warm_up: rounds before that.
    """
    seconds: dict[str, list[float]] = {name: [] for name in makes}
    with _running(makes, images, threads) as engines:
        for i in range(warm_up + repetitions):
            for name, engine in engines.items():
                engine.send(True)
                took = engine.recv()
                if i >= warm_up:
                    seconds[name].append(took)
    return {
        name: Timing(min(own), statistics.median(own), max(own)) for name, own in seconds.items()
    }


@contextmanager
def _running(
    makes: dict[str, Make], images: Tensor, threads: int
) -> Iterator[dict[str, Connection]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.deploy_engines"])  # imported once, not by each
    engines: dict[str, Connection] = {}
    processes = []
    try:
        for name, make in makes.items():
            engines[name], theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, make, images.numpy(), threads), daemon=True
            )
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            processes.append(process)
            engines[name].recv()  # until it stands
        yield engines
    finally:
        for engine in engines.values():
            engine.close()
        for process in processes:
            process.join()


def _serve(pipe: Connection, make: Make, images: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    step, images = make(), torch.from_numpy(images)
    pipe.send(True)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(_seconds_of_a_call(step, images))


def _seconds_of_a_call(step: Step, images: Tensor) -> float:
    began, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < LEAST_SECONDS:
        step(images)
        calls += 1
    return passed / calls


def _without_gradients(net: nn.Module) -> Step:
    @torch.inference_mode()
    def step(images: Tensor) -> Any:
        return net(images)

    return step
