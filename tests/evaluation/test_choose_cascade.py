"""Cascades that are chosen among: against the module's own answers, and counting by hand."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from dqnet.config import EvalConfig
from dqnet.errors import UserError
from dqnet.evaluation.answered import Pass, load_network, names_of
from dqnet.evaluation.choices_table import choices_table
from dqnet.evaluation.choose_cascade import SHARES, compare_choices, fitted, main, rivals

STATIC = ("trainer.epochs=2", "data.val_fraction=0.25", "data.flip=true")


@pytest.fixture(scope="module")
def folders(run):
    of_widths = {width: run(*STATIC, f"quant.widths=[{width}]").folder for width in (2, 4)}
    twin = run(*STATIC, "quant.widths=[4]", "seed=1").folder
    dynamic = run(*STATIC, "quant.widths=[2,4]", "quant.static_width=4").folder
    return {"two": of_widths[2], "four": of_widths[4], "twin": twin, "dynamic": dynamic}


@pytest.fixture(scope="module")
def networks(folders):
    found = []
    for name, path in folders.items():
        like = found[0] if found else None
        quiet = Console(file=io.StringIO())
        found.append(load_network(str(path), name, EvalConfig(), quiet, like))
    return dict(zip(folders, found, strict=True))


def passes_of(networks, *names):
    return tuple(
        Pass(networks[name.rstrip("*")], "mirror" if name.endswith("*") else None) for name in names
    )


@pytest.mark.parametrize(
    "names", [("two", "two*"), ("two", "four"), ("two", "two*", "four*"), ("dynamic", "four*")]
)
def test_answers_are_those_of_the_module(networks, names):
    shares = (0.4, 0.3)[: len(names) - 1]
    paths, cascades = fitted(passes_of(networks, *names), shares, measure=True)
    trained = networks["two"].trained
    logits, passes, cost = [], [], []
    with torch.no_grad():
        for images, _ in trained.held_out:
            own = cascades[-1].eval()(images)
            logits.append(own.logits)
            passes.append(own.passes)
            cost.append(own.bit_flops)
    torch.testing.assert_close(paths.answer, torch.cat(logits), rtol=1e-4, atol=1e-4)
    assert 0 < paths.more_passes == pytest.approx(torch.cat(passes).double().mean().item() - 1)
    assert paths.cost == pytest.approx(torch.cat(cost).mean().item(), rel=1e-12)
    assert paths.worst_cost == pytest.approx(
        sum(networks[name.rstrip("*")].cost for name in names), rel=1e-12
    )


def test_as_many_held_out_images_run_again_as_were_asked_for(networks):
    for share in SHARES:
        paths, _ = fitted(passes_of(networks, "two", "four*"), (share,))
        count = len(paths.labels)
        assert int(paths.taken.sum()) == round(share * count)


def test_other_images_take_the_same_ways(networks):
    paths, _ = fitted(passes_of(networks, "two", "two*", "four"), (0.5, 0.3))
    right = (paths.logits.argmax(2) == paths.labels).double().numpy()  # on every way
    hits = paths.shuffled_correct().numpy()
    assert ((right.min(0) <= hits) & (hits <= right.max(0))).all()
    # Of very many orders the mean is the product of both frequencies.
    frequency = np.bincount(paths.taken.numpy(), minlength=4) / len(paths.labels)
    assert hits.mean() == pytest.approx(float(frequency @ right.mean(1)), abs=0.03)


def test_rivals_have_no_larger_first_pass(networks):
    two, four, twin, dynamic = networks.values()
    found = rivals(two, list(networks.values()))
    assert "another seed" not in found and found["second look"] == [
        (Pass(two), Pass(two, "mirror"))
    ]
    assert found["more bits"] == [(Pass(two), Pass(four))]  # not the other seed of the same
    found = rivals(twin, list(networks.values()))
    assert found["another seed"] == [(Pass(twin), Pass(four))]
    assert found["another network"] == [(Pass(two),)]
    assert found["dynamic"] == [(Pass(dynamic),)]
    assert found["three passes"] == [
        (Pass(two), Pass(two, "mirror"), Pass(twin, "mirror")),
        (Pass(two), Pass(twin), Pass(twin, "mirror")),
    ]


def test_choices_are_made_by_held_out_images(networks):
    results = compare_choices(list(networks.values()), Console(file=io.StringIO()))
    assert [own["network"] for own in results["baselines"]] == [*("two", "four", "twin")]
    configurations = [own["configuration"] for own in results["baselines"]]
    assert configurations == ["two", "four", "four"]
    own = results["baselines"][1]
    four = networks["four"]
    by_hand = [
        fitted(passes, (share,))[0]
        for passes in rivals(four, list(networks.values()))["second look"]
        for share in SHARES
    ]
    cost = four.held_out[None].costs.mean().item()
    best = max(paths.top1 for paths in by_hand if paths.cost <= cost)
    choice = own["kinds"]["second look"]["at_cost"]
    assert choice["held_out"]["top1"] == best
    assert choice["held_out"]["relative_cost"] <= 1
    assert choice["difference"]["points"] == pytest.approx(choice["top1"] - own["top1"])
    enough = [paths.cost / cost for paths in by_hand if paths.top1 >= own["held_out_top1"]]
    cheapest = own["kinds"]["second look"]["at_accuracy"]
    if enough:
        assert cheapest["held_out"]["relative_cost"] == pytest.approx(min(enough))
    else:
        assert cheapest is None
    alone = own["kinds"]["another network"]["at_cost"]
    assert alone["instance_gain"] is None and alone["cascades"] == []
    best = own["kinds"].pop("best of these")
    several = [choice for kind, choice in own["kinds"].items() if kind != "another seed"]
    known = [choice["at_cost"]["held_out"]["top1"] for choice in several if choice["at_cost"]]
    assert best["at_cost"]["held_out"]["top1"] == max(known)
    everywhere = own["all_images_twice"]
    assert everywhere["relative_cost"] == pytest.approx(2)
    assert everywhere["instance_gain"]["points"] == 0
    sizes = own["kinds"]["more bits"]["at_cost"]
    assert sizes is None or sizes["weight_bytes"] > own["weight_bytes"]


def test_other_configurations_of_the_same_widths_are_no_seeds(networks):
    results = compare_choices([networks["two"], networks["four"]], Console(file=io.StringIO()))
    results["baselines"][0]["widths"] = [4]
    table = choices_table(results)
    assert set(table["baseline"]) == {"dorefa 4 (two)", "dorefa 4 (four)"}
    assert set(table["seeds"]) == {1}


def test_from_the_command_line(folders, capsys, tmp_path):
    main([*map(str, folders.values()), "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines() if "/" not in line)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"choices.{kind}" for kind in ("json", "csv", "md", "png", "pdf")}
    results = json.loads((tmp_path / "out/choices.json").read_text())
    with (tmp_path / "out/choices.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    twins = [own["top1"] for own in results["baselines"] if own["widths"] == [4]]
    (row,) = (r for r in rows if (r["baseline"], r["kind"]) == ("dorefa 4", "second look"))
    assert int(row["seeds"]) == 2
    assert float(row["static_top1"]) == pytest.approx(sum(twins) / 2)
    assert f"{sum(twins) / 2:.2f} % at cost 1" in shown
    spread = abs(twins[0] - twins[1]) / 2**0.5  # the standard deviation of two
    markdown = (tmp_path / "out/choices.md").read_text()
    assert f"| dorefa 4 | {sum(twins) / 2:.2f} ± {spread:.2f} | second look | 2 |" in markdown


def test_names_have_as_much_of_the_path_as_tells_them_apart(tmp_path):
    for name in ("a/run", "b/run", "b/other"):
        (tmp_path / name).mkdir(parents=True)
    paths = [f"{tmp_path}/{name}" for name in ("a/run", "b/run/best.pt", "b/other")]
    assert names_of(paths) == ["a/run", "b/run", "other"]


def test_errors_are_one_line(folders, run, networks, tmp_path):
    nothing_held_out = run("trainer.epochs=0", "quant.widths=[2]", "data.val_fraction=0").folder
    full = run("trainer.epochs=0", "quant=none", "data.val_fraction=0.25").folder
    others = run("trainer.epochs=0", "quant.widths=[2]", "data.val_fraction=0.5").folder
    wrong = {
        (nothing_held_out,): "kept no images to choose by",
        (full,): "no quantized network",
        (folders["two"], others): "have different images",
        (folders["two"], folders["two"]): "is given twice",
        (folders["dynamic"],): "no static network among them",
    }
    for paths, message in wrong.items():
        with pytest.raises(SystemExit, match=message):
            main([*map(str, paths), "--out", str(tmp_path)])
    with pytest.raises(UserError, match="no static network"):
        compare_choices([networks["dynamic"]], Console(file=io.StringIO()))
