"""``train.py --cfg plan``, from the command line."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch

import dqnet
from dqnet.training.show_plan import plan_is_wanted


def test_what_is_printed_for_a_program_is_a_plan_that_can_be_read(command, tmp_path):
    result = command("train.py", "--cfg", "plan", "quant.first_last=8", "data.size=8")
    assert (result.status, result.err) == (0, [])
    (tmp_path / "plan.json").write_text(result.out)
    net = timm.create_model("resnet20_cifar", num_classes=10, in_chans=1)
    expected = dqnet.quantize(net, torch.zeros(1, 1, 8, 8), first_last=8).plan
    assert dqnet.Plan.load(tmp_path / "plan.json") == expected
    assert not (tmp_path / "runs").exists()

    again = command("train.py", "--cfg=plan", f"quant.plan={tmp_path / 'plan.json'}")
    assert again.out == result.out


def test_a_plan_is_printed_for_images_of_another_size(command, tmp_path):
    (tmp_path / "plan.json").write_text(command("train.py", "--cfg", "plan", "data.size=8").out)
    with pytest.warns(UserWarning, match="of 8 x 8 and these are of 16 x 16") as warned:
        result = command("train.py", "--cfg", "plan", "quant.plan=plan.json", "data.size=16")
    assert result.status == 0
    assert result.out == command("train.py", "--cfg", "plan", "data.size=16").out
    shown = warnings.formatwarning(warned[0].message, UserWarning, "convert.py", 1)
    assert shown == f"warning: {warned[0].message}\n"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["quant=none"], "quant=none: every layer is in full precision"),
        (["quant.layers={layer3.*:half}"], "error: rule 'layer3.*': 'half' is not a precision"),
        (["quant.plan=nowhere.json"], "error: plan nowhere.json cannot be read: No such file"),
    ],
)
def test_other_answers_are_one_line(command, settings, line):
    result = command("train.py", "--cfg", "plan", *settings)
    (printed,) = [*result.out.splitlines(), *result.err]
    assert line in printed


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["train.py", "--cfg", "plan", "seed=1"], ["train.py", "seed=1"]),
        (["train.py", "-c", "plan"], ["train.py"]),
        (["train.py", "seed=1", "--cfg=plan"], ["train.py", "seed=1"]),
        (["train.py", "--cfg", "job"], None),
        (["train.py", "quant.plan=plan"], None),
        (["train.py", "--cfg"], None),
    ],
)
def test_only_that_option_is_taken(arguments, left):
    given = list(arguments)
    assert plan_is_wanted(given) == (left is not None)
    assert given == (arguments if left is None else [*left, "hydra.run.dir=."])
