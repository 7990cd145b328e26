"""What a probe knows of where a second network does better, against counting by hand."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from dqnet.config import CascadeConfig, EvalConfig
from dqnet.evaluation.evaluate_cascade import evaluate_cascade
from dqnet.evaluation.headroom import SHARES, headroom_of, main, probe


def answers(count=400, seed=0):
    """Where two networks are right: A in 80 %, B in 90 % of the images, independently."""
    rng = np.random.default_rng(seed)
    return rng.random(count) < 0.8, rng.random(count) < 0.9


def test_gain_is_counted():
    a, b = answers()
    scores = np.random.default_rng(1).normal(size=400)
    found = headroom_of(scores, a, b)
    # Mann and Whitney: how often a positive is above a negative.
    positive, negative = scores[b & ~a], scores[~(b & ~a)]
    assert found["auc"] == pytest.approx((positive[:, None] > negative).mean())
    chosen = sorted(range(400), key=lambda i: -scores[i])
    for point in found["points"]:
        some = chosen[: round(point["share"] * 400)]
        top1 = sum(b[i] if i in set(some) else a[i] for i in range(400)) / 4
        assert point["gain"] == pytest.approx(top1 - 100 * a.mean())


def test_who_knows_everything_captures_everything():
    a, b = answers()
    found = headroom_of((b & ~a).astype(float) - (a & ~b), a, b)
    assert found["auc"] == 1
    assert [point["captured"] for point in found["points"]] == pytest.approx([1] * len(SHARES))


def test_a_probe_is_judged_on_images_it_has_not_seen():
    """With as many features as images it could know every one of those it was trained on."""
    a, b = answers()
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(400, 400))
    assert 0.35 < headroom_of(probe(noise, b & ~a), a, b)["auc"] < 0.65
    noise[:, 7] += 6 * (b & ~a)
    assert headroom_of(probe(noise[:, :9], b & ~a), a, b)["auc"] > 0.99


def test_from_the_command_line(run, capsys, tmp_path):
    cheap = run("quant.widths=[2]", "trainer.epochs=1", "data.val_fraction=0.5").folder
    costly = run("quant.widths=[6]", "trainer.epochs=3", "data.val_fraction=0.5").folder
    main([str(cheap), str(costly), "--out", str(tmp_path / "out")])
    shown = " ".join(capsys.readouterr().out.split())
    results = json.loads((tmp_path / "out/headroom.json").read_text())
    assert list(results["places"])[-2:] == ["logits", "confidence"]
    assert {"layer1", "layer2"} <= results["places"].keys() and "layer1" in shown
    assert results["split"] == "val" and results["b_alone_right"] > 0
    difference = results["b_alone_right"] - results["a_alone_right"]
    assert results["top1"]["b"] - results["top1"]["a"] == pytest.approx(difference)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("headroom.json", "headroom.pdf", "headroom.png"),
    ]


def test_errors_are_one_line(run, tmp_path):
    cheap = run("quant.widths=[2]", "trainer.epochs=1", "data.val_fraction=0.5").folder
    config = EvalConfig(checkpoint=str(cheap), output=str(tmp_path))
    config.cascade = CascadeConfig(view="mirror", share=0.5)
    evaluate_cascade(config, Console(file=io.StringIO()))
    for second, message in (
        (tmp_path / "cascade", "is a cascade: headroom is between two networks"),
        (cheap, "0 are right with"),
        (cheap / "none.pt", "does not exist"),
        (run("quant.widths=[6]", "data.val_fraction=0.25").folder, "different held-out images"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([str(cheap), str(second)])
