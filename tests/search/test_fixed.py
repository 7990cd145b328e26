"""The best fixed routing against every routing there is."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from searched import Data, Small, answers, problem, searchable

import dqnet
from dqnet.search.fixed import best_fixed


def losses_of_all(model, batches):
    labels = torch.cat([own for _, own in batches])
    return {
        chosen: F.cross_entropy(answers(model, batches, chosen), labels).item()
        for chosen in itertools.product(range(3), repeat=4)
    }


@pytest.mark.parametrize("cls", [Small, Data])
@pytest.mark.parametrize("seed", range(4))
def test_it_finds_the_best_routing_or_the_one_after_it(seed, cls):
    model, batches = searchable(seed=seed, cls=cls, images=40)
    given = problem(model, batches, 4)
    losses = losses_of_all(model, batches)
    with torch.no_grad():
        found = best_fixed(given, [[1, 1, 1, 1]], rounds=20)
    affordable = {own: losses[own] for own in losses if given.price(own) <= given.to_spend * 1.001}
    assert 3 < len(affordable) < 81
    ranks = sorted(affordable, key=affordable.get)
    # It starts at ranks 1 to 20 of 22; with one seed no step leads from the second to the best.
    assert ranks.index(tuple(found)) <= (seed == 0)


def test_it_begins_with_the_best_start_within_the_target():
    model, batches = searchable()
    losses = losses_of_all(model, batches)
    starts = [[2, 2, 2, 2], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    with torch.no_grad():
        found = best_fixed(problem(model, batches, 4), starts, rounds=0)
    assert found == min(starts[1:], key=lambda own: losses[tuple(own)])


def test_a_layer_keeps_to_its_own_widths():
    model, batches = searchable(layers={"first": [2, 4], "second": 8})
    given = problem(model, batches, 4)
    with torch.no_grad():
        found = best_fixed(given, [])
    assert all(k in own for k, own in zip(found, given.candidates, strict=True))


def test_a_target_below_all_is_refused():
    model, batches = searchable()
    given = dqnet.search.base.Problem(model, batches, problem(model, batches).cost, target=1.0)
    with pytest.raises(dqnet.UserError, match="no choice of widths costs as little"):
        best_fixed(given, [])
