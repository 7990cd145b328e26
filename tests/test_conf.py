"""Every file in conf/ composes into a configuration of the right names and types."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dqnet.cli import to_object
from dqnet.config import ControllerConfig, EvalConfig, TrainConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
CHOICES = sorted(
    f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.glob("*/**/*.yaml")
)


def composed(name, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice):
    name, schema = ("train", TrainConfig)
    if choice.startswith(("report=", "export=")):
        name, schema = ("eval", EvalConfig)
    assert isinstance(to_object(schema, composed(name, choice)), schema)


def test_the_evaluation_composes():
    assert to_object(EvalConfig, composed("eval", "checkpoint=x")).checkpoint == "x"


def test_the_default_controller_is_that_of_the_library():
    written = OmegaConf.load(CONF / "quant" / "controller" / "default.yaml")
    assert OmegaConf.to_container(written) == vars(ControllerConfig())


def test_the_papers_plain_recipe_has_none_of_the_additions():
    config = to_object(TrainConfig, composed("train", "experiment=paper_plain"))
    controller = config.quant.controller
    assert (controller.pool, controller.batch_norm, controller.activation) == (
        "mean",
        False,
        "none",
    )
    assert not config.quant.width_affine
    assert config.loss.mutual_information == 0


def test_recipes_differ_only_where_they_should():
    """Static and dynamic are compared with the same settings but for the widths."""
    static, dynamic = (
        to_object(TrainConfig, composed("train", f"experiment=cifar10_jpeg_{kind}"))
        for kind in ("static", "dynamic")
    )
    assert (static.quant.widths, dynamic.quant.widths) == ([3], [2, 3, 4])
    dynamic.quant.widths, dynamic.loss.target_bits = [3], None
    assert static == dynamic
