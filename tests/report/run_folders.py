"""Run folders with given figures, as training and evaluation write them."""

import csv
import json

from omegaconf import OmegaConf

#: what a run's record holds where nothing else is said
DEFAULTS = {
    "quant": {"shared_until": "auto", "static": [], "controller": {"kind": "shared"}},
    "loss": {"alpha": 1.0},
    "optim": {"lr": 0.05},
}
#: Bit-FLOPs per squared bit of the network that the runs pretend to have
UNIT = 1e6


def write_run(
    folder, *, method="dorefa", widths=(3,), target=None, seed=0, top1=80.0, cost=None, std=0.0,
    overrides=(), gain=None, split="test", budget=None, curve=(), epochs=6, config=None,
):  # fmt: skip
    """A finished run. ``cost`` defaults to the target's; ``curve``: pairs of cost and top-1.

    ``overrides`` are typed, and so recorded; ``config`` is recorded alone, as a recipe's settings.
    """
    converted = method is not None
    target = target or widths[len(widths) // 2]
    target_cost = UNIT * target**2 if converted else None
    summary = {
        "top1": top1,
        "top5": 99.0,
        "loss": 0.5,
        "bit_flops": cost or target_cost,
        "bit_flops_std": std if converted else None,
        "mean_width": float(target) if converted else 32,
        "distinct_routings": 1,
        "target_bit_flops": target_cost,
        "target_bits": float(target) if converted else None,
        "params": 10,
        "epochs": epochs,
        "seconds": 60.0,
        "seed": seed,
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text('{"epoch": 0}\n')
    (folder / "best.pt").write_bytes(b"weights")
    quant = {"quantizer": method, "widths": list(widths)}
    own = {"seed": seed, "quant": quant, "trainer": {"epochs": epochs}}
    named = [o.lstrip("+") for o in overrides if not o.startswith(("quant=", "experiment="))]
    record = OmegaConf.merge(DEFAULTS, own, OmegaConf.from_dotlist(named), config or {})
    OmegaConf.save(record, folder / ".hydra" / "config.yaml")
    typed = [f"quant={method or 'none'}", f"quant.widths={list(widths)}", f"seed={seed}"]
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([*typed, *overrides]))
    if gain is not None:
        points, low, high = gain
        measured = {"points": points, "low": low, "high": high}
        controls = {"instance_gain": measured, "benefit": {k: v - 3 for k, v in measured.items()}}
        content = {"split": split, "budget": budget, "controls": controls}
        (folder / "eval.json").write_text(json.dumps(content))
    if curve:
        with (folder / "curve.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["budget_lambda", "bit_flops", "bit_flops_std", "top1"])
            rows.writerows((i / 10, cost, 1.0, top1) for i, (cost, top1) in enumerate(curve))
    return folder
