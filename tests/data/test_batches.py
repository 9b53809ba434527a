from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from nayer_pl import InputError
from nayer_pl.data import Batches, ImageSet, open_split

sizes = st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(1, 9))


def numbered(count):
    """Image i is filled with i modulo 256 and has the label i."""
    numbers = torch.arange(count)
    return ImageSet((numbers % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), numbers)


def labels_of(batches):
    return [labels.tolist() for _, labels in batches]


def of_all_ranks(images, batch_size, world, **options):
    return [Batches(images, batch_size, rank=r, world_size=world, **options) for r in range(world)]


@given(sizes)
def test_batches__in_order(size):
    count, batch_size, world = size
    images = numbered(count)
    if count < world:
        with pytest.raises(InputError, match=f"{count} images.*{world} processes"):
            Batches(images, batch_size, world_size=world)
        return
    ranks = [labels_of(b) for b in of_all_ranks(images, batch_size, world)]
    assert sorted(label for rank in ranks for batch in rank for label in batch) == [*range(count)]
    assert len({len(rank) for rank in ranks}) == 1
    assert [len(b) for b in of_all_ranks(images, batch_size, world)] == [len(r) for r in ranks]
    lengths = [len(batch) for rank in ranks for batch in rank]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    # Batches of one image become batches of two if there are too few for all ranks.
    assert max(lengths) <= batch_size or (batch_size == 1 and world > 1 and max(lengths) == 2)
    # No more batches than it takes.
    assert len(ranks[0]) <= -(-count // (batch_size * world))


@given(sizes, st.integers(0, 3), st.integers(0, 3))
def test_batches__shuffled(size, seed, epoch):
    count, batch_size, world = size
    images, options = numbered(count), {"shuffle": True, "seed": seed, "epoch": epoch}
    length = count // (batch_size * world)
    if not length:
        with pytest.raises(InputError, match="full batches"):
            Batches(images, batch_size, world_size=world, **options)
        return
    ranks = [labels_of(b) for b in of_all_ranks(images, batch_size, world, **options)]
    assert all(len(rank) == length for rank in ranks)
    assert all(len(batch) == batch_size for rank in ranks for batch in rank)
    seen = [label for rank in ranks for batch in rank for label in batch]
    assert len(set(seen)) == len(seen) == length * batch_size * world
    assert set(seen) <= set(range(count))
    # Together the ranks take the steps that one process with the whole batch would take.
    alone = labels_of(Batches(images, batch_size * world, **options))
    assert [[*chain(*parts)] for parts in zip(*ranks, strict=True)] == alone


def test_batches__order_of_seed_and_epoch():
    def order(seed, epoch):
        return str(labels_of(Batches(numbered(64), 8, shuffle=True, seed=seed, epoch=epoch)))

    before = torch.get_rng_state()
    orders = {(seed, epoch): order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(set(orders.values())) == 16
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert order(1, 2) == orders[1, 2]


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches__images_and_their_labels(shuffle):
    batches = Batches(numbered(57), 8, shuffle=shuffle)
    assert not isinstance(batches, DataLoader)  # a trainer would replace its sampler
    labels = []
    for batch in batches:
        assert isinstance(batch, list)
        assert (batch[0].dtype, batch[0].shape[1:]) == (torch.uint8, (1, 2, 2))
        assert torch.equal(batch[0][:, 0, 1, 1].long(), batch[1])
        labels += batch[1].tolist()
    assert (labels == list(range(57))) != shuffle


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"world_size": 0}, {"rank": -1}])
def test_batches__invalid_options(options):
    with pytest.raises(InputError, match=f"^{next(iter(options))} must be"):
        Batches(numbered(9), **{"batch_size": 3, **options})


COUNT, SIZE = 23, 5  # four full batches in a pass


def step_batches(epoch, steps, rank=0, world=1):
    return Batches(numbered(COUNT), SIZE, True, 7, epoch, rank, world, steps)


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 11])
def test_step_batches__passes_cut_into_epochs(steps):
    images = numbered(COUNT)
    passes = [batch for n in range(9) for batch in labels_of(Batches(images, SIZE, True, 7, n))]
    epochs = [batch for n in range(3) for batch in labels_of(step_batches(n, steps))]
    assert epochs == passes[: 3 * steps]
    assert len(step_batches(0, steps)) == steps


def test_step_batches__ranks():
    ranks = [labels_of(step_batches(1, 7, rank, world=2)) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [7, 7]
    for one, other in zip(*ranks, strict=True):
        assert len(set(one + other)) == 2 * SIZE


@pytest.mark.parametrize(
    "make", [lambda: step_batches(2, 9), lambda: Batches(numbered(90), 9, True, 7, 2)]
)
def test_batches__resume(make):
    whole, stopped, rest = labels_of(make()), make(), make()
    steps = iter(stopped)
    begun = [next(steps)[1].tolist() for _ in range(6)]
    rest.load_state_dict(stopped.state_dict())
    assert begun + labels_of(rest) == whole


class Labeled:
    def __init__(self, labels):
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def load(self, split):
        return ImageSet(torch.zeros(len(self.labels), 1, 2, 2, dtype=torch.uint8), self.labels)


@pytest.mark.parametrize(("labels", "classes"), [([0, 2, 1], 3), ([0], 1000), ([5], None)])
def test_open_split__fitting_labels(labels, classes):
    assert open_split(Labeled(labels), "train", classes, (1, 2, 2)).labels.tolist() == labels


@pytest.mark.parametrize(
    ("labels", "shape", "message"),
    [
        ([0, 9, 1], None, r"evaluation split is 9, .*num_classes=3 .*0 to 2"),
        ([3], None, "evaluation split is 3"),
        ([-1, 0, -1], None, r"2 of the 3 .*evaluation_split=validation"),
        ([], None, "evaluation split .* no images"),
        ([0], (1, 2, 3), r"\[1, 2, 2\], but image_shape=\[1, 2, 3\]"),
    ],
)
def test_open_split__unfitting_images(labels, shape, message):
    with pytest.raises(InputError, match=message):
        open_split(Labeled(labels), "evaluation", 3, shape)
