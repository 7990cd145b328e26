"""Evaluation folders with made-up answers, as eval.py writes them."""

import csv
import json
from dataclasses import dataclass

import numpy as np

#: the last two would be trouble on a page that does not escape, or in a mathematical formula
CLASSES = ("cat", "dog", "<script>alert(1)</script>", 'a "$" & b')
LAYERS = ("layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "<b>fc</b>")
#: multiply-accumulates of each layer
MACS = (3000.0, 5000.0, 2000.0, 1000.5)


@dataclass
class Evaluation:
    """The folder, what is in ``eval.json``, and the arrays behind the other files."""

    folder: object
    metrics: dict
    rows: list[dict]
    images: np.ndarray
    scores: np.ndarray
    top_classes: np.ndarray
    top_probs: np.ndarray


def write_evaluation(
    folder, *, images=120, side=8, channels=3, layers=LAYERS, widths=(2, 3, 4), quantized=True,
    classes=CLASSES, named=True, seed=0, curve=False, **metrics,
):  # fmt: skip
    """No layers are a static model, and not quantized a float one; ``side``: a multiple of 8."""
    rng = np.random.default_rng(seed)
    count, candidates = len(layers), widths if layers else ()
    logits = rng.normal(size=(images, len(classes))) * 2
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    top = np.argsort(-probs, axis=1)[:, :5]
    labels = np.where(rng.random(images) < 0.7, top[:, 0], rng.integers(len(classes), size=images))
    scores = rng.normal(size=(images, count, len(candidates))).astype(np.float16)
    chosen = scores.argmax(-1) if count else np.zeros((images, 0), int)
    used = np.array(candidates or [0])[chosen]
    macs = np.resize(MACS, count)
    cost = (used**2 * macs).sum(1) if count else np.full(images, 9e4)
    rows = [
        {
            "index": i,
            "label": int(labels[i]),
            "prediction": int(top[i, 0]),
            "correct": int(labels[i] == top[i, 0]),
            "confidence": float(probs[i].max()),
            "bit_flops": float(cost[i]) if quantized else "",
            **dict(zip(layers, used[i].tolist(), strict=True)),
        }
        for i in range(images)
    ]
    pixels = rng.integers(0, 256, (images, 8, 8, channels), dtype=np.uint8)
    pixels = pixels.repeat(side // 8, 1).repeat(side // 8, 2)

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "per_sample.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    top_probs = np.take_along_axis(probs, top, 1).astype(np.float32)
    np.savez(
        folder / "samples.npz",
        images=pixels,
        labels=labels,
        predictions=top[:, 0],
        top5_classes=top,
        top5_probs=top_probs,
        scores=scores,
        chosen=chosen.astype(np.uint8),
        layers=np.array(layers, dtype=np.str_),
        widths=np.array(candidates, dtype=np.uint8),
        class_names=np.array(classes if named else (), dtype=np.str_),
    )
    content = {
        "top1": 100 * sum(row["correct"] for row in rows) / images,
        "top5": 99.123456,
        "loss": 0.54321,
        "bit_flops": float(cost.mean()) if quantized else None,
        "bit_flops_std": float(cost.std()) if quantized else None,
        "target_bit_flops": 99_000.0 if quantized else None,
        "mean_width": float(used.mean()) if count else (3.0 if quantized else 32),
        "distinct_routings": len({tuple(row) for row in used.tolist()}),
        "images": images,
        "params": 12345,
        "macs": 11000,
        "split": "test",
        "seed": 7,
        "epoch": 3,
        "checkpoint": str(folder / "best.pt"),
        "budget": None,
        "budget_lambda": 0.0,
        "controls": None,
        **metrics,
    }
    (folder / "eval.json").write_text(json.dumps(content))
    if curve:
        points = curve_rows(float(cost.mean()))
        with (folder / "curve.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(points[0]))
            writer.writeheader()
            writer.writerows(points)
    return Evaluation(folder, content, rows, pixels, scores, top, top_probs)


def controls(top1=70.0, cost=9e4):
    """Controls as ``eval.json`` holds them."""

    def measured(difference, ratio=1.0):
        return {"top1": top1 + difference, "loss": 0.5, "bit_flops": cost * ratio}

    gain = {"points": 0.42, "low": 0.11, "high": 0.73, "confidence": 0.95, "resamples": 1000}
    return {
        "own": measured(0),
        "shuffled": [{"seed": i, **measured(-0.1 * i)} for i in range(3)],
        "random": [{"seed": i, **measured(-0.2 * i)} for i in range(3)],
        "fixed": measured(-1),
        "best_fixed": measured(-0.5) | {"widths": ["2", "4"]},
        "single": {"2": measured(-5, 0.5), "4": measured(1, 2)},
        "instance_gain": gain,
        "loss_gain": gain | {"points": -0.01, "low": -0.02, "high": 0.003},
        "benefit": gain | {"points": -0.5, "low": -0.9, "high": -0.1},
        "loss_benefit": gain | {"points": -0.02, "low": -0.04, "high": -0.01},
        "shuffled_bit_flops_at_own_top1": 1.1 * cost,
    }


def curve_rows(cost=9e4):
    """``curve.csv`` of a model that costs this as trained, the most expensive first."""
    return [
        {
            "budget_lambda": 0.5 * i, "bit_flops": cost - 1e4 * i, "bit_flops_std": 10.0,
            "mean_width": 3.0, "top1": 70.0 - i, "loss": 0.5, "distinct_routings": 5,
            "shuffled_top1": 69.0 - i,
        }
        for i in range(4)
    ]  # fmt: skip
