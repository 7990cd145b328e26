"""Batches: every image, once, in an order that depends on (seed, epoch) alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dqnet.data.order import BatchOrder

SIZES = {
    "num_images": st.integers(4, 60),
    "share": st.integers(1, 9),
    "world_size": st.integers(1, 4),
    "epoch": st.integers(0, 3),
}


def orders(num_images, share, world_size, epoch, seed):
    indices = torch.arange(100, 100 + num_images)
    made = [
        BatchOrder(indices, share * world_size, seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for order in made:
        order.epoch = epoch
    return made


@given(**SIZES)
def test_evaluation_shares_are_the_whole_set_once(num_images, share, world_size, epoch):
    ranks = orders(num_images, share, world_size, epoch, seed=None)
    yielded = [i for order in ranks for batch in order.batches() for i in batch.tolist()]
    assert yielded == list(range(100, 100 + num_images))
    for order in ranks:
        assert order.num_samples == num_images
        assert len(order) == len(order.batches())
        assert all(1 <= len(batch) <= max(share, 2) for batch in order.batches())
    assert len({len(order) for order in ranks}) == 1


@given(**SIZES)
def test_training_shares_make_the_batches_of_one_process(num_images, share, world_size, epoch):
    (alone,) = orders(num_images, share * world_size, 1, epoch, seed=5)
    ranks = orders(num_images, share, world_size, epoch, seed=5)
    for whole, *shares in zip(alone.batches(), *(o.batches() for o in ranks), strict=True):
        assert whole.tolist() == torch.cat(shares).tolist()
    batch_size = share * world_size
    expected = num_images - num_images % batch_size if num_images > batch_size else num_images
    assert alone.num_samples == sum(map(len, alone.batches())) == expected
    assert len(torch.cat(alone.batches()).unique()) == expected


def test_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        (made,) = orders(50, 10, 1, epoch, seed)
        return torch.cat(made.batches()).tolist()

    first = order(1, 0)
    torch.manual_seed(99)
    assert order(1, 0) == first
    others = [order(1, 1), order(0, 0), order(0, 1), order(2, 0)]
    assert len({tuple(o) for o in [first, *others]}) == 5
