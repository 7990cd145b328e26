"""Measured prices from a file, and targets in any cost model."""

import pytest
import torch
from torch import nn

import dqnet
from dqnet.costs import find_cost
from dqnet.costs.base import read_options
from dqnet.costs.network import check_target, reachable_bits
from dqnet.costs.size import Size, peak_activation_bytes
from dqnet.costs.static import StaticCosts
from dqnet.costs.table import Table
from dqnet.formats import Precision
from dqnet.plan import LayerPlan

ENTRIES = [
    *(("1", 2, 1.0), ("1", 4, 3.0), ("2", 2, 10.0), ("2", 4, 14.0)),
    *(("0", "full", 5.0), ("3", "full", 7.0), ("1", 8, 4.0)),
]


def network(widths=(2, 4), **rules):
    net = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(4)), nn.Flatten())
    return dqnet.quantize(
        net, torch.zeros(1, 2, 3, 3), widths, shared_until=None,
        controller=dqnet.ControllerConfig(kind="separate"), **rules,
    )  # fmt: skip


def test_a_network_costs_the_sum_of_its_rows():
    model = network()
    routing = torch.eye(2)[torch.tensor([[0, 0], [1, 0], [1, 1]])]
    table = Table(ENTRIES)
    assert dqnet.cost(model, routing, by=table).tolist() == [11, 13, 17]
    assert dqnet.cost(model, routing, by=table, full_precision=True).tolist() == [23, 25, 29]


def test_a_target_in_a_table_is_what_its_static_network_costs():
    model, table = network(), Table(ENTRIES)
    assert [str(own) for own in table.precisions] == ["2", "4"]
    assert check_target(model, 2, by=table) == 11 and check_target(model, 4, by=table) == 17
    assert check_target(model, 3, by=table) == pytest.approx(11 + 6 * (9 - 4) / (16 - 4))
    assert reachable_bits(model, table) == (2, 4)
    with pytest.raises(dqnet.UserError, match=r"target_bits=5 .* from 2.000 to 4.000 bits"):
        check_target(model, 5, by=table)


@pytest.mark.parametrize("by", ["bit_flops", "energy", "size"])
def test_the_width_of_a_cost_is_the_inverse_of_the_cost_of_a_width(by):
    costs = StaticCosts(network(layers={"2": 8}), by)
    for bits in (1, 1.5, 2, 3.7, 8, 15.9, 16):
        assert costs.width(costs.cost(bits)) == pytest.approx(bits)


@pytest.mark.parametrize("by", ["energy", "size"])
def test_the_static_network_costs_its_own_target(by):
    model = network((3,))
    price = dqnet.cost(model, torch.zeros(1, 0, 1), by=by).item()
    assert check_target(model, 3, by=by) == pytest.approx(price)


def test_size_counts_weights_at_their_bits():
    layer = LayerPlan("a", "static", (Precision.parse("w3a8"),), weights=100, inputs=10, outputs=30)
    assert Size().layer(layer, layer.precisions[0]) == 100 * 3 / 8
    assert Size().layer(layer, None) == 400
    other = LayerPlan("b", "full", weights=1, inputs=3, outputs=4)
    assert peak_activation_bytes([layer, other]) == 40
    assert peak_activation_bytes([other]) == 28


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("1", 2, -1)], "cost of 1, 2 is -1; it must not be negative"),
        ([("1", 2, float("nan"))], "must not be negative"),
        ([("1", 2, "fast")], "cost of 1, 2 is 'fast'; it is a number"),
        ([("1", 2, 1), ("1", 2, 1)], "two rows for 1, 2"),
        ([("1", 2)], "has 2 fields"),
        ([("1", "two", 1)], "'two' is not a precision"),
    ],
)
def test_a_wrong_table_is_refused(entries, message):
    with pytest.raises(dqnet.UserError, match=message):
        Table(entries)


def test_what_a_table_lacks_is_named():
    routing = torch.eye(2)[torch.tensor([[0, 0]])]
    with pytest.raises(dqnet.UserError, match="lacks layer '2'"):
        dqnet.cost(network(), routing, by=Table(ENTRIES[:2]))
    with pytest.raises(dqnet.UserError, match="lacks layer '2' at 4; it has 2"):
        dqnet.cost(network(), routing, by=Table(ENTRIES[:3]))
    with pytest.raises(dqnet.UserError, match="no precision for every layer"):
        StaticCosts(network(), Table([("1", 2, 1), ("2", 4, 1)]))


def test_options_come_from_a_file_and_are_checked(tmp_path):
    path = tmp_path / "latency.csv"
    path.write_text("layer,precision,cost\n" + "\n".join(",".join(map(str, e)) for e in ENTRIES))
    options = read_options("table", {"entries": str(path)})
    assert find_cost("table", options) == Table(ENTRIES)
    for content, message in (("layer,precision,cost\n", "no rows"), ("a\n1,2,x\n", "line 2: 'x'")):
        path.write_text(content)
        with pytest.raises(dqnet.UserError, match=message):
            read_options("table", {"entries": str(path)})
    with pytest.raises(dqnet.UserError, match=r"nowhere\.csv cannot be read: No such file"):
        read_options("table", {"entries": "nowhere.csv"})
    for by, given, message in (
        ("table", {}, "cost 'table' needs entries"),
        ("energy", {"mak": 1}, "unknown option of cost 'energy' 'mak'; did you mean 'mac'"),
        ("energi", {}, "unknown cost 'energi'; did you mean 'energy'"),
    ):
        with pytest.raises(dqnet.UserError, match=message):
            find_cost(by, given)
