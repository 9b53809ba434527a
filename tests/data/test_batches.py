from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from nayer_pl import InputError
from nayer_pl.data import Batches, ImageSet

sizes = st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(1, 9))


def numbered(count):
    """Image i is filled with i modulo 256 and has the label i."""
    numbers = torch.arange(count)
    return ImageSet((numbers % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), numbers)


def of_all_ranks(images, batch_size, world, **options):
    return [Batches(images, batch_size, rank=r, world=world, **options) for r in range(world)]


@given(sizes)
def test_in_order_every_image_is_counted_once_over_the_ranks(size):
    count, batch_size, world = size
    images = numbered(count)
    if count < world:
        with pytest.raises(InputError, match=f"{count} images.*{world} processes"):
            Batches(images, batch_size, world=world)
        return
    ranks = [[labels.tolist() for _, labels in b] for b in of_all_ranks(images, batch_size, world)]
    assert sorted(label for rank in ranks for batch in rank for label in batch) == [*range(count)]
    assert len({len(rank) for rank in ranks}) == 1
    assert [len(b) for b in of_all_ranks(images, batch_size, world)] == [len(r) for r in ranks]
    lengths = [len(batch) for rank in ranks for batch in rank]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    # Batches of one image that do not go round become batches of two.
    assert max(lengths) <= batch_size or (batch_size == 1 and world > 1 and max(lengths) == 2)
    # No more batches than it takes.
    assert len(ranks[0]) <= -(-count // (batch_size * world))


@given(sizes, st.integers(0, 3), st.integers(0, 3))
def test_shuffled_ranks_share_out_one_order_in_full_batches(size, seed, epoch):
    count, batch_size, world = size
    images, options = numbered(count), {"shuffle": True, "seed": seed, "epoch": epoch}
    length = count // (batch_size * world)
    if not length:
        with pytest.raises(InputError, match="full batches"):
            Batches(images, batch_size, world=world, **options)
        return
    ranks = [
        [labels.tolist() for _, labels in b]
        for b in of_all_ranks(images, batch_size, world, **options)
    ]
    assert all(len(rank) == length for rank in ranks)
    assert all(len(batch) == batch_size for rank in ranks for batch in rank)
    seen = [label for rank in ranks for batch in rank for label in batch]
    assert len(set(seen)) == len(seen) == length * batch_size * world
    assert set(seen) <= set(range(count))
    # Together the ranks take the steps that one process with the whole batch would take.
    alone = [labels.tolist() for _, labels in Batches(images, batch_size * world, **options)]
    assert [[*chain(*parts)] for parts in zip(*ranks, strict=True)] == alone


def test_one_rank_in_order_is_in_order():
    labels = torch.cat([labels for _, labels in Batches(numbered(31), 10)])
    assert torch.equal(labels, torch.arange(31))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    def order(seed, epoch):
        torch.manual_seed(seed + 7 * epoch)
        batches = Batches(numbered(64), 8, shuffle=True, seed=seed, epoch=epoch)
        return tuple(torch.cat([labels for _, labels in batches]).tolist())

    pairs = [(seed, epoch) for seed in range(4) for epoch in range(4)]
    orders = {pair: order(*pair) for pair in pairs}
    assert len(set(orders.values())) == len(pairs)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    batches = Batches(numbered(64), 8, shuffle=True, seed=1, epoch=2)
    again = [tuple(torch.cat([labels for _, labels in batches]).tolist()) for _ in range(2)]
    assert again == [orders[1, 2]] * 2
    assert torch.equal(before, torch.get_rng_state())


def test_images_stay_with_their_labels():
    for shuffle in (False, True):
        for images, labels in Batches(numbered(57), 8, shuffle=shuffle):
            assert (images.dtype, images.shape[1:]) == (torch.uint8, (1, 2, 2))
            assert torch.equal(images[:, 0, 1, 1].long(), labels)


def test_a_trainer_has_no_sampler_to_replace():
    batches = Batches(numbered(4), 2)
    assert not isinstance(batches, DataLoader)
    assert not hasattr(batches, "sampler")
    assert isinstance(next(iter(batches)), list)
