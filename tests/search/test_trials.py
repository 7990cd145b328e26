"""What is kept of a run changes no answer."""

import itertools

import pytest
import torch
from searched import Data, Small, answers, searchable

from dqnet.search.trials import Operations, Trials

CHOICES = [(None,) * 4, (0, 1, 2, 0), (0, 1, None, 2), (None, None, None, 1), (2, 2, 2, 2)]


@pytest.fixture(params=[Small, Data], ids=["traced", "whole"])
def trials(request):
    model, batches = searchable(cls=request.param)
    operations = Operations(model, batches[0][0][:2])
    assert (operations.starts == [0] * 4) == (request.param is Data)
    return Trials(operations, batches)


@pytest.mark.parametrize("kept", [*itertools.product(CHOICES, range(4))], ids=str)
def test_answers_are_those_of_a_whole_run(trials, kept):
    model = trials.operations.model
    trials.keep(*kept)
    for chosen in [*CHOICES, CHOICES[1]]:
        expected = answers(model, trials.batches, chosen)
        torch.testing.assert_close(trials.logits(chosen), expected, rtol=1e-5, atol=1e-5)


def test_what_is_kept_grows_and_starts_again(trials):
    chosen = [0, 1, 2, 1]
    for layer in (0, 1, 3, 2):
        trials.keep(chosen, layer)
        expected = answers(trials.operations.model, trials.batches, chosen)
        torch.testing.assert_close(trials.logits(chosen), expected, rtol=1e-5, atol=1e-5)
    labels = torch.cat([labels for _, labels in trials.batches])
    assert trials.hits(chosen) == int((expected.argmax(1) == labels).sum())


def test_a_run_starts_at_the_layer_it_was_kept_for(monkeypatch):
    monkeypatch.setattr("dqnet.search.trials.MOST_IMAGES", 10)  # 24 in three batches
    model, batches = searchable()
    trials = Trials(Operations(model, batches[0][0][:2]), batches)
    calls = []
    for name in ("stem", "first", "second", "shortcut"):
        model.backbone.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: calls.append(name)
        )
    trials.keep(trials.full, 2)
    assert calls == ["stem", "first"] * 3
    calls.clear()
    trials.logits([None, None, 0, 0])
    assert calls == ["second", "shortcut"] * 3
    calls.clear()
    trials.logits([0, None, 0, 0])  # an earlier layer is another one
    assert calls == ["stem", "first", "second", "shortcut"] * 3


@pytest.mark.parametrize("images", [1, 3, 100])
def test_answers_do_not_depend_on_how_many_images_run_at_once(monkeypatch, images):
    model, batches = searchable()
    largest = 4 * 9 * 9  # numbers that the stem returns for an image
    monkeypatch.setattr("dqnet.search.trials.LARGEST_BYTES", 4 * largest * images)
    trials = Trials(Operations(model, batches[0][0][:2]), batches)
    assert max(len(x) for x, _ in trials.batches) == min(images, 24)
    expected = answers(model, batches, [0, 1, 2, 0])
    torch.testing.assert_close(trials.logits([0, 1, 2, 0]), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(trials.labels, torch.cat([labels for _, labels in batches]))


def test_candidates_that_differ_from_layer_to_layer():
    model, batches = searchable(layers={"first": [2, 8], "shortcut": ["w2a4", 4]})
    trials = Trials(Operations(model, batches[0][0][:2]), batches)
    at = {str(own): k for k, own in enumerate(model.precisions)}
    chosen = [at["4"], at["8"], None, at["w2a4"]]
    trials.keep(chosen, 3)
    whole = [at["4"], at["8"], at["2"], at["w2a4"]]
    torch.testing.assert_close(
        trials.logits(whole), answers(model, batches, whole), rtol=1e-5, atol=1e-5
    )
    assert trials.logits(chosen).isfinite().all()
