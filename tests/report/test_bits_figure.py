"""The figure of a plan: two bars for every layer, of their heights."""

import pytest

from dqnet.errors import UserError
from dqnet.formats import Precision
from dqnet.plan import LayerPlan, Plan
from dqnet.report.bits import bits_figure, bits_of, write_bits

LAYERS = [
    LayerPlan("stem", "full"),
    LayerPlan("a", "static", (Precision.parse("w4a8"),)),
    LayerPlan("b", "routed", (Precision.parse(2), Precision.parse(4))),
]


def test_bars_are_the_bits_of_weights_and_inputs():
    (axes,) = bits_figure(Plan(tuple(LAYERS))).axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[4, 3], [8, 3]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert bits_of(LAYERS[0]) == (32, 32)


def test_files_are_written_beside_the_plan(tmp_path):
    Plan(tuple(LAYERS)).save(tmp_path / "plan.json")
    for path in write_bits(tmp_path):
        assert path.parent == tmp_path and path.stat().st_size > 1000
    with pytest.raises(UserError, match=r"plan\.json cannot be read"):
        write_bits(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no bits to draw"):
        bits_figure(Plan(tuple(LAYERS[:1])))
