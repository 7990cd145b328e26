"""Finding run folders and reading them."""

import json

import pytest
from run_folders import UNIT, write_run

from dqnet.errors import UserError
from dqnet.report.runs import read_run


def test_a_run_is_what_its_files_say(tmp_path):
    folder = write_run(
        tmp_path / "run",
        method="lsq",
        widths=(2, 3, 4),
        seed=7,
        top1=81.5,
        cost=10 * UNIT,
        std=2 * UNIT,
        overrides=["loss.alpha=2"],
    )
    run = read_run(folder)
    assert (run.method, run.kind, run.widths) == ("lsq", "dynamic", (2, 3, 4))
    assert run.summary == json.loads((folder / "summary.json").read_text())
    assert (run.summary["seed"], run.summary["bit_flops"]) == (7, 10 * UNIT)
    assert run.config["loss.alpha"] == 2
    assert "loss.alpha=2" in run.overrides


def test_one_width_is_static_and_no_quantizer_is_float(tmp_path):
    static = read_run(write_run(tmp_path / "static", widths=(4,)))
    unconverted = read_run(write_run(tmp_path / "float", method=None))
    assert (static.kind, static.method) == ("static", "dorefa")
    assert (unconverted.kind, unconverted.method, unconverted.widths) == ("float", "float", ())


def _without(folder, key):
    summary = json.loads((folder / "summary.json").read_text())
    del summary[key]
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "summary.json").write_text('{"top1": 8'), "summary.json cannot be"),
        (lambda run: (run / "summary.json").write_text("[]"), "summary.json has no 'seed'"),
        (lambda run: _without(run, "top1"), "summary.json has no 'top1'"),
        (lambda run: (run / ".hydra/config.yaml").unlink(), "config.yaml cannot be"),
        (lambda run: (run / ".hydra/config.yaml").write_text("a: [1"), "config.yaml cannot be"),
        (lambda run: (run / ".hydra/config.yaml").write_text("a: 1"), "is not the record"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path, spoil, said):
    folder = write_run(tmp_path / "run")
    spoil(folder)
    with pytest.raises(UserError) as error:
        read_run(folder)
    assert said in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
