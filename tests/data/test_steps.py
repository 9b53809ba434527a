import pytest
import torch

from nayer_pl.data import Batches, ImageSet
from nayer_pl.data.steps import StepBatches, SteppedDataModule

COUNT, SIZE = 23, 5  # four full batches in a pass


class Numbered:
    """Image i is filled with i, and has the label i."""

    def load(self, split):
        numbers = torch.arange(COUNT)
        return ImageSet(numbers.to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2), numbers)


def epoch(number, steps, rank=0, world=1):
    first = Batches(Numbered().load("train"), SIZE, True, 7, number, rank, world)
    return StepBatches(first, steps)


def labels(batches):
    return [batch.tolist() for _, batch in batches]


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 11])
def test_epochs_of_steps_are_passes_cut_otherwise(steps):
    images = Numbered().load("train")
    passes = [batch for n in range(9) for batch in labels(Batches(images, SIZE, True, 7, n))]
    epochs = [batch for n in range(3) for batch in labels(epoch(n, steps))]
    assert epochs == passes[: 3 * steps]
    assert len(epoch(0, steps)) == steps


def test_ranks_share_out_every_step():
    ranks = [labels(epoch(1, 7, rank, world=2)) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [7, 7]
    for one, other in zip(*ranks, strict=True):
        assert len(set(one + other)) == 2 * SIZE


def test_an_epoch_goes_on_where_it_was_left():
    whole = labels(epoch(2, 9))
    walked = epoch(2, 9)
    steps = iter(walked)
    begun = [next(steps)[1].tolist() for _ in range(6)]
    rest = epoch(2, 9)
    rest.load_state_dict(walked.state_dict())
    assert begun + labels(rest) == whole


def test_data_module_gives_as_many_updates_as_were_asked_for():
    data = SteppedDataModule(Numbered(), steps=9, batch_size=SIZE, epochs=2)
    data.setup("fit")
    assert len(labels(data.train_dataloader())) == len(data.train_dataloader()) == 9
    seen = [label for batch in labels(data.val_dataloader()) for label in batch]
    assert seen == list(range(COUNT))
