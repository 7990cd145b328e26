"""Several processes compute what one process computes from the whole batch."""

from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from several import connected
from timm.layers import BatchNormAct2d
from torch import nn

from dqnet.controllers import build_controller
from dqnet.controllers.shared import OneValueBatchNorm1d
from dqnet.layers import QuantConv2d
from dqnet.layers.global_batch_norm import CpuSyncBatchNorm, synchronize_batch_norms
from dqnet.layers.width_groups import WidthGroups
from dqnet.losses import cost_penalty, mutual_information
from dqnet.processes import from_main, gathered, gathered_parts, local_main_first


def averaged(grad):
    """As DDP does."""
    dist.all_reduce(grad)
    return grad / dist.get_world_size()


def part(x, rank, count=2):
    return x.chunk(count)[rank]


def test_loss_and_gradient_are_those_of_the_global_batch():
    torch.manual_seed(0)
    weight, x = torch.randn(5, 6, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)

    def scores_and_cost(weight, x):
        scores = (x @ weight).unflatten(1, (2, 3))
        return scores, (scores.softmax(-1) * torch.tensor([4.0, 9.0, 16.0])).sum((1, 2))

    cost = scores_and_cost(weight, x)[1]
    target = 0.99 * cost.mean().item()
    # One process alone is below the target: a mean of penalties would be another one.
    assert min(cost_penalty(c, target) for c in cost.chunk(2)) == 0

    def step(own):
        w = weight.clone().requires_grad_()
        scores, cost = map(gathered, scores_and_cost(w, own))
        loss = cost_penalty(cost, target) + mutual_information(scores)
        loss.backward()
        return loss.detach(), w.grad

    def process(rank):
        loss, grad = step(part(x, rank))
        return loss, averaged(grad)

    for result in connected(process):
        torch.testing.assert_close(result, step(x))


NORMS = {
    "2d": lambda: nn.BatchNorm2d(3),
    "1d": lambda: nn.BatchNorm1d(3),
    "one value per process": lambda: OneValueBatchNorm1d(3),
    "timm's, with an activation": lambda: BatchNormAct2d(3, act_layer=nn.SiLU),
    "plain mean of all batches": lambda: nn.BatchNorm2d(3, momentum=None),
    "no parameters": lambda: nn.BatchNorm2d(3, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_is_that_of_the_global_batch(name):
    torch.manual_seed(0)
    norm = NORMS[name]()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    shape = (8, 3, 4, 4)
    if "1d" in name:
        shape = (8, 3)
    elif "one value" in name:
        shape = (2, 3)
    batches = [torch.randn(shape) * 2 + 1 for _ in range(2)]
    weights = torch.randn(shape)  # of the outputs in the loss
    untouched = deepcopy(norm)

    def train(norm, own):
        results = []
        for batch in batches:
            x = own(batch).clone().requires_grad_()
            y = norm(x)
            (own(weights) * y).sum().backward()
            results += [y.detach(), x.grad]
        return results, [p.grad for p in norm.parameters()], dict(norm.named_buffers())

    def process(rank):
        holder = nn.Sequential(untouched)
        synchronize_batch_norms(holder, torch.device("cpu"))
        assert isinstance(holder[0], CpuSyncBatchNorm)
        results, grads, buffers = train(holder[0], lambda x: part(x, rank))
        # The loss is a sum over the images, so gradients are added.
        return (
            results,
            [averaged(g) * 2 for g in grads],
            buffers,
            holder.eval()(batches[0]).detach(),
        )

    results, grads, buffers = train(norm, lambda x: x)
    evaluated = norm.eval()(batches[0]).detach()
    processes = connected(process)
    for i, whole in enumerate(results):
        torch.testing.assert_close(torch.cat([p[0][i] for p in processes]), whole)
    for _, own_grads, own_buffers, own_evaluated in processes:
        torch.testing.assert_close(own_grads, grads)
        torch.testing.assert_close(own_buffers, buffers)
        torch.testing.assert_close(own_evaluated, evaluated)


def test_synchronizing_keeps_names_hooks_and_mode():
    seen = []
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4))).eval()
    model[1][0].register_forward_hook(lambda *args: seen.append(1))
    before = model.state_dict()
    parameters = list(model.parameters())
    synchronize_batch_norms(model, torch.device("cpu"))
    assert before.keys() == model.state_dict().keys()
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    model(torch.zeros(2, 3, 2, 2))
    assert seen and not model[1][0].training


def test_noise_of_an_image_does_not_depend_on_the_number_of_processes():
    controller = build_controller((4, 2, 2), 3, 2)
    scores = torch.randn(6, 3, 2)

    def draw(own):
        torch.manual_seed(1)
        routing = controller.route(own)
        chosen = WidthGroups.of_drawn_widths(routing)
        return routing, torch.stack([group.inverse for group in chosen])

    routing, _ = draw(scores)
    parts = connected(lambda rank: draw(part(scores, rank))[0].detach())
    assert torch.equal(torch.cat(parts), routing)


def test_first_step_of_lsq_is_that_of_the_global_batch():
    x, weight = torch.randn(8, 3, 4, 4), torch.randn(2, 3, 3, 3)

    def steps(own):
        layer = QuantConv2d(3, 2, 3, widths=(2, 4), quantizer="lsq", signed=True)
        layer.weight.data.copy_(weight)
        layer.prepare(own)
        return layer.input_quantizer.step.detach(), layer.weight_quantizer.step.detach()

    for result in connected(lambda rank: steps(part(x, rank))):
        torch.testing.assert_close(result, steps(x))


def test_parts_of_different_length_are_put_together_in_order():
    rows = torch.arange(10).reshape(5, 2)
    for result in connected(lambda rank: gathered_parts([rows.tensor_split(2)[rank], rows[:1]])):
        assert torch.equal(result[0], rows)
        assert torch.equal(result[1], rows[[0, 0]])


def test_what_the_main_process_reads_is_everybodys():
    results = connected(lambda rank: from_main(lambda: {"rank": rank, "x": torch.ones(2)}))
    assert [result["rank"] for result in results] == [0, 0]


def test_the_first_process_of_a_machine_goes_first(tmp_path):
    def process(rank):
        with local_main_first():
            (tmp_path / f"{rank}").write_text(str(len(list(tmp_path.iterdir()))))

    connected(process, count=3)
    assert (tmp_path / "0").read_text() == "0"
    assert "0" not in ((tmp_path / "1").read_text(), (tmp_path / "2").read_text())
