"""The greedy search step by step, plans that are tried, and a table that is read."""

import itertools

import pytest
import torch
from searched import Small, answers, problem, searchable

import dqnet
from dqnet.controllers import TableController
from dqnet.formats import Format, Precision
from dqnet.search import Journal, all_pairs
from dqnet.search.black_box import BlackBox, affordable

BITS = (2, 3, 5, 8)


def with_pairs(**options):
    """All pairs of four widths for weights and inputs, and labels that the network gives itself."""
    plan = all_pairs(searchable(BITS)[0].plan)
    torch.manual_seed(0)
    model = dqnet.quantize(
        Small(), torch.zeros(1, 2, 9, 9), quantizer="affine", plan=plan, width_affine=False,
        controller=dqnet.ControllerConfig(kind="table"), shared_until=None,
    ).eval()  # fmt: skip
    images = torch.randn(60, 2, 9, 9)
    dqnet.calibrate(model, [images])
    batches = [(x, torch.zeros(len(x), dtype=torch.long)) for x in images.split(25)]
    labels = answers(model, batches, [None] * 4).argmax(1)
    return model, list(zip(images.split(25), labels.split(25), strict=True))


def test_all_pairs_of_formats():
    plan = all_pairs(searchable((2, 8))[0].plan)
    assert [layer.widths for layer in plan.routed] == [(2, "w2a8", "w8a2", 8)] * 4 or [
        layer.widths for layer in plan.routed
    ] == [(2, "w8a2", "w2a8", 8)] * 4
    assert [layer.role for layer in plan.layers].count("full") == 1


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("accuracy", [0.95, 0.8])
def test_each_tensor_has_the_fewest_bits_that_keep_the_accuracy(accuracy, backward):
    model, batches = with_pairs()
    plan = dqnet.find_plan(model, batches, by="greedy", accuracy=accuracy, backward=backward)
    labels = torch.cat([own for _, own in batches])
    found = [layer.precisions[0] for layer in plan.layers[:4]]

    def right(precisions):
        chosen = [None if own is None else model.precisions.index(own) for own in precisions]
        return (answers(model, batches, chosen).argmax(1) == labels).double().mean().item()

    done = [None] * 4
    for layer in range(4)[:: -1 if backward else 1]:
        weight, own_input = found[layer].weight.bits, found[layer].input.bits

        def at(w, a, layer=layer):
            tried = [*done]
            tried[layer] = Precision(Format(w), Format(a))
            return right(tried) >= accuracy

        assert own_input == 8 or at(8, own_input)
        assert own_input == 2 or not at(8, BITS[BITS.index(own_input) - 1])
        assert weight == 8 or at(weight, own_input)
        assert weight == 2 or not at(BITS[BITS.index(weight) - 1], own_input)
        done[layer] = found[layer]
    assert any(own.weight.bits < 8 or own.input.bits < 8 for own in found)


def test_greedy_goes_on_with_the_next_layer():
    model, batches = with_pairs()

    class Cut(Journal):
        state, left = {}, 2

        def read(self):
            return self.state

        def write(self, state):
            self.state = {"chosen": [*state["chosen"]], "least": state["least"]}
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    plan, journal = dqnet.find_plan(model, batches, by="greedy"), Cut()
    with pytest.raises(KeyboardInterrupt):
        dqnet.find_plan(model, batches, by="greedy", journal=journal)
    assert [own is None for own in journal.state["chosen"]] == [False, False, True, True]
    assert dqnet.find_plan(model, batches, by="greedy", journal=journal) == plan


@pytest.mark.parametrize("places", [[2, 2, 2, 2], [2, 0, 0, 1], [0, 0, 0, 0]])
@pytest.mark.parametrize("bits", [2.1, 4, 8])
def test_what_is_proposed_is_made_cheaper_until_it_can_be_paid(places, bits):
    own = problem(*searchable(), bits)
    chosen = affordable(own, places)
    assert own.price(chosen) <= own.to_spend * (1 + 1e-9)
    assert all(now <= before for now, before in zip(chosen, places, strict=True))
    if own.price(places) <= own.to_spend:
        assert chosen == places


def test_the_best_of_the_plans_that_were_tried():
    model, batches = searchable()
    own = problem(model, batches)
    labels = torch.cat([at for _, at in batches])
    every = {
        chosen: torch.nn.functional.cross_entropy(answers(model, batches, chosen), labels).item()
        for chosen in itertools.product(range(3), repeat=4)
        if own.price(chosen) <= own.to_spend * (1 + 1e-9)
    }
    plan = dqnet.find_plan(model, batches, by="optuna", target_bits=4, trials=40)
    found = tuple(model.precisions.index(layer.precisions[0]) for layer in plan.layers[:4])
    assert every[found] <= sorted(every.values())[len(every) // 10]  # among the best tenth


def test_a_black_box_search_goes_on_where_it_was(tmp_path):
    model, batches = searchable()

    class Folder(Journal):
        def __init__(self, name):
            self.folder = tmp_path / name
            self.folder.mkdir(exist_ok=True)

    whole = BlackBox(trials=12)(problem(model, batches, journal=Folder("whole")))
    BlackBox(trials=5)(problem(model, batches, journal=Folder("cut")))
    assert BlackBox(trials=12)(problem(model, batches, journal=Folder("cut"))) == whole
    assert len((tmp_path / "cut" / "study.log").read_text().splitlines()) > 0


def test_a_table_is_read_where_a_layer_has_a_width():
    model, _ = searchable(layers={"first": [2, 8]})
    assert isinstance(model.controller, TableController)
    with torch.no_grad():
        model.controller.scores.copy_(torch.tensor([[0.0, 1, 2], [0, 9, 1], [3, 2, 1], [0, 1, 0]]))
    plan = dqnet.find_plan(model, [], by="table")
    assert [layer.widths for layer in plan.layers[:4]] == [(8,), (8,), (2,), (4,)]
    other = dqnet.quantize(
        Small(), torch.zeros(1, 2, 9, 9), controller=dqnet.ControllerConfig(kind="separate")
    )
    with pytest.raises(dqnet.UserError, match="reads the scores of a network"):
        dqnet.find_plan(other, [], by="table")
