"""Static networks against dynamic ones, in numbers."""

import math

import pandas as pd
from comparisons import pairs_of
from run_folders import UNIT, write_run


def test_a_line_is_compared_with_the_static_network_of_its_settings(tmp_path):
    write_run(tmp_path / "static", top1=80.0)
    write_run(tmp_path / "static-long", top1=83.0, epochs=9)
    dynamic = {"widths": (2, 3, 4), "top1": 84.0}
    write_run(tmp_path / "plain", **dynamic)
    separate = "quant.controller.kind=separate"
    write_run(tmp_path / "separate", **dynamic, overrides=[separate])
    write_run(tmp_path / "long", **dynamic, epochs=9, overrides=[separate])
    write_run(tmp_path / "longest", **dynamic, epochs=30)
    write_run(tmp_path / "lsq", method="lsq", **dynamic)
    found = {pair.settings: pair.difference for pair in pairs_of(tmp_path)}
    assert found == {
        ("trainer.epochs=6",): 4.0,
        (separate, "trainer.epochs=6"): 4.0,
        (separate, "trainer.epochs=9"): 1.0,
    }


def test_each_kind_has_a_recipe_of_its_own(tmp_path):
    recipe = {"overrides": ["experiment=one"], "config": {"loss": {"alpha": 3.0}}}
    write_run(tmp_path / "static", **recipe)
    recipe = {"overrides": ["experiment=another"], "config": {"loss": {"alpha": 2.0}}}
    write_run(tmp_path / "dynamic", widths=(2, 3, 4), **recipe)
    (found,) = pairs_of(tmp_path)
    assert (found.label, found.dynamic_runs) == ("", 1)


def test_a_setting_that_only_dynamic_runs_were_given_is_in_the_label(tmp_path):
    write_run(tmp_path / "static")
    write_run(tmp_path / "dynamic", widths=(2, 3, 4), overrides=["optim.lr=0.1"])
    (found,) = pairs_of(tmp_path)
    assert (found.static_label, found.label) == ("", "optim.lr=0.1")


def test_another_target_counts_where_it_is_as_accurate_and_cheaper(tmp_path):
    write_run(tmp_path / "static", widths=(4,), top1=80.0)
    write_run(tmp_path / "dynamic", widths=(2, 3, 4), top1=80.0)
    (found,) = pairs_of(tmp_path)
    assert all(map(math.isnan, (found.dynamic_top1, found.difference, found.cost_ratio)))
    assert found.same_accuracy_cost_ratio == 9 / 16
    assert found.same_accuracy_at == "target 3"


def test_an_accuracy_that_is_never_reached_has_no_ratio(tmp_path):
    write_run(tmp_path / "static", top1=80.0)
    write_run(tmp_path / "dynamic", widths=(2, 3, 4), top1=79.0, curve=[(20 * UNIT, 79.9)])
    (found,) = pairs_of(tmp_path)
    assert math.isnan(found.same_accuracy_cost_ratio)
    assert pd.isna(found.same_accuracy_at)
