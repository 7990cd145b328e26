"""Cascades in a comparison: read from run folders, set against static networks."""

import csv
import json

import matplotlib.image
import numpy as np
import pytest
from comparisons import groups_of
from run_folders import UNIT, write_run

from dqnet.report.compare.__main__ import main
from dqnet.report.compare.evaluations import read_cascade
from dqnet.report.compare.pairs import against_static

#: Bit-FLOPs of the full-precision layers
FULL = 5 * UNIT
#: share of images that run twice, and top-1
POINTS = [(0.0, 74.0), (0.1, 79.0), (0.3, 80.5), (1.0, 80.0)]


def write_cascade(folder, first=4.0, second=9.0, points=POINTS, **changes):
    """``cascade.json`` of passes that cost so much, in ``UNIT``."""
    network = {"quantizer": "lsq", "budget": None}
    content = {
        "first": network | {"checkpoint": f"{folder}/best.pt", "widths": [2], "target_bits": 2.0},
        "second": network
        | {
            "checkpoint": "/machine/runs/dear/best.pt",
            "widths": [2, 3, 4],
            "target_bits": 3.0,
            "bit_flops": second * UNIT,
            "bit_flops_total": second * UNIT + FULL,
        },
        "split": "test",
        "points": [
            {
                "threshold": share,
                "share": share,
                "bit_flops": (first + share * second) * UNIT,
                "bit_flops_total": (first + share * second) * UNIT + (1 + share) * FULL,
                "top1": top1,
                "instance_gain": {"points": 2 * share, "low": share, "high": 3 * share},
            }
            for share, top1 in points
        ],
    }
    for key, value in changes.items():
        target, _, name = key.partition("__")
        if name:
            content[target][name] = value
        else:
            content[target] = value
    (folder / "cascade.json").write_text(json.dumps(content))


@pytest.fixture
def study(tmp_path):
    """Static networks at 2, 3 and 4 bits, of which the first begins a cascade, and others."""
    runs = tmp_path / "runs"
    write_run(runs / "poor", method="lsq", widths=(5,), top1=73.0)
    for bits, top1 in ((2, 74.0), (3, 80.0), (4, 82.0)):
        write_run(runs / f"static{bits}", method="lsq", widths=(bits,), top1=top1)
    write_run(runs / "other", method="dorefa", widths=(4,), top1=75.0)
    write_cascade(runs / "static2")
    return runs


def test_cheapest_point_that_is_as_accurate(study):
    three, four = against_static(groups_of(study)).itertuples()
    assert (three.method, three.first, three.second) == ("lsq", "2", "2/3/4 at 3")
    assert (three.static_bits, four.static_bits) == (3, 4)
    assert three.share == 0.3
    assert three.cost_ratio == pytest.approx((4 + 0.3 * 9) / 9)
    assert three.total_ratio == pytest.approx((4 + 0.3 * 9 + 1.3 * 5) / (9 + 5))
    assert all(map(np.isnan, (four.share, four.cost_ratio, four.total_ratio)))


def test_second_looks_and_committees_say_so(study):
    for how, shown in (
        ({"view": "mirror", "combine": "committee"}, "2/3/4 at 3 mirror committee"),
        ({"view": None, "combine": "committee"}, "2/3/4 at 3 committee"),
        ({"view": None, "combine": "replace"}, "2/3/4 at 3"),
    ):
        write_cascade(study / "static2", **how)
        assert set(read_cascade(study / "static2")["second"]) == {shown}


def test_tables_and_figure(study, tmp_path, capsys):
    main([str(study), "--out", str(tmp_path / "with")])
    assert "cascades.csv" in capsys.readouterr().out
    with (tmp_path / "with/cascades.csv").open(newline="") as file:
        three, four = csv.DictReader(file)
    assert float(three["cost_ratio"]) == pytest.approx(6.7 / 9)
    assert (three["share"], three["gain"], three["top1"]) == ("0.3", "0.6", "80.5")
    assert four["cost_ratio"] == ""
    text = (tmp_path / "with/compare.md").read_text()
    row = "| lsq | 2 | 2/3/4 at 3 | 3 | 80.00 | 0.744 | 0.943 | 80.50 | 30.0 % | +0.60 |"
    assert "## Cascades against static" in text and row in text
    assert "| lsq | 2 | 2/3/4 at 3 | 4 | 82.00 | not reached |" in text

    (study / "static2/cascade.json").unlink()
    main([str(study), "--out", str(tmp_path / "with")])
    assert not (tmp_path / "with/cascades.csv").exists()
    main([str(study), "--out", str(tmp_path / "without")])
    assert "Cascades" not in (tmp_path / "without/compare.md").read_text()
    write_cascade(study / "static2")
    main([str(study), "--out", str(tmp_path / "with")])
    pictures = [
        matplotlib.image.imread(tmp_path / name / "compare.png") for name in ("with", "without")
    ]
    height = min(picture.shape[0] for picture in pictures)
    width = min(picture.shape[1] for picture in pictures)
    assert np.abs(pictures[0][:height, :width] - pictures[1][:height, :width]).sum() > 100


@pytest.mark.usefixtures("without_figure")
def test_narrow_screen_cuts_no_number(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    main([str(study), "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines() if "written" not in line)
    for row in (
        "lsq 2 2/3/4 at 3 3 80.00 0.744 80.50 +0.60",
        "lsq 2 2/3/4 at 3 4 82.00 not reached",
    ):
        assert row in " ".join(shown.split())


def test_kept_copies_give_the_same_tables(study, tmp_path):
    main([str(study), "--out", str(tmp_path / "before"), "--keep", str(tmp_path / "kept")])
    main([str(tmp_path / "kept"), "--out", str(tmp_path / "after")])
    for name in ("cascades.csv", "compare.md", "compare.png"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    assert "/machine" not in (tmp_path / "kept/static2/cascade.json").read_text()


@pytest.mark.parametrize("changes", [{"split": "val"}, {"first__checkpoint": "last.pt"}])
def test_of_other_images_or_weights_than_the_summary(study, changes):
    write_cascade(study / "static2", **changes)
    assert read_cascade(study / "static2") is None


def test_points_come_in_any_order(study):
    write_cascade(study / "static2", points=POINTS[::-1])
    assert read_cascade(study / "static2")["share"].tolist() == [0, 0.1, 0.3, 1]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"first": 1, "second": 2}'])
def test_broken_file_is_named(study, tmp_path, text):
    (study / "static2/cascade.json").write_text(text)
    with pytest.raises(SystemExit, match=r"static2/cascade\.json cannot be read"):
        main([str(study), "--out", str(tmp_path / "out")])
