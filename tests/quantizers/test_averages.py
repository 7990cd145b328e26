"""Averages of a converted network that are made before its first batch."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dqnet


class Net(nn.Module):
    """Without batch norms, so that a batch changes nothing but quantizers."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.b(self.a(self.stem(x).relu()).relu()).relu().mean((2, 3)))


def swa(use_buffers):
    return lambda model: AveragedModel(model, use_buffers=use_buffers)


def ema(use_buffers):
    average = get_ema_multi_avg_fn(0.7)
    return lambda model: AveragedModel(model, multi_avg_fn=average, use_buffers=use_buffers)


AVERAGES = {
    "ModelEmaV2": lambda model: ModelEmaV2(model, decay=0.7),
    "ModelEmaV3": lambda model: ModelEmaV3(model, decay=0.7),
    "ModelEmaV3 one by one": lambda model: ModelEmaV3(model, decay=0.7, foreach=False),
    "mean of parameters": swa(False),
    "mean of parameters and buffers": swa(True),
    "moving average of parameters": ema(False),
    "moving average of parameters and buffers": ema(True),
}
IMAGES = torch.randn(5, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def first_batch(model):
    torch.manual_seed(1)
    with torch.no_grad():
        model(IMAGES[0])


def converted(quantizer):
    torch.manual_seed(0)
    return dqnet.quantize(Net(), IMAGES[0], (2, 4), quantizer, shared_until="a").train()


def trained(model, average):
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    torch.manual_seed(1)
    for batch in IMAGES:
        loss = model(batch).logits.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        (getattr(average, "update_parameters", None) or average.update)(model)
    return average.module.eval()


@pytest.mark.parametrize(
    "quantizer", ["dorefa", "pact", "lsq", "lsq_plus", "affine", "fixed_point"]
)
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_made_before_the_first_batch_is_the_one_made_after_it(kind, quantizer):
    model = converted(quantizer)
    start = copy.deepcopy(model.state_dict())
    early = trained(model, AVERAGES[kind](model))
    other = converted(quantizer)
    first_batch(other)
    late = trained(other, AVERAGES[kind](other))
    for name, value in late.named_parameters():
        torch.testing.assert_close(early.get_parameter(name), value)
    # The first batch has also moved the statistics of the controller's norm, and so its routing.
    logits, routing = late(IMAGES[0])
    torch.testing.assert_close(early(IMAGES[0], routing).logits, logits)
    name = "backbone.b.weight"
    assert not torch.equal(early.get_parameter(name), start[name])  # it has learned
    assert not torch.equal(early.get_parameter(name), model.get_parameter(name))


@pytest.mark.parametrize(
    "quantizer", ["dorefa", "pact", "lsq", "lsq_plus", "affine", "fixed_point"]
)
def test_every_buffer_can_be_averaged(quantizer):
    for name, buffer in converted(quantizer).named_buffers():
        assert buffer.is_floating_point() or name.endswith("num_batches_tracked")


@pytest.mark.parametrize("kind", ["ModelEmaV3", "mean of parameters and buffers"])
def test_averaged_flags_still_say_that_steps_are_set(kind):
    model = converted("lsq")
    average = trained(model, AVERAGES[kind](model))
    steps = {n: p.clone() for n, p in average.named_parameters() if n.endswith("step")}
    average(100 * IMAGES[0])
    assert steps
    assert all(torch.equal(average.get_parameter(n), step) for n, step in steps.items())
