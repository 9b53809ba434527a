from collections import Counter, deque

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from nayer_pl import InputError, MemoryBank, RandomCropFlip
from nayer_pl.bank.bank import read_bank
from nayer_pl.bank.files import BankFiles

SHAPE = (1, 2, 2)


def numbered(first, count):
    """Images that carry their own number, and the number as a label."""
    numbers = torch.arange(first, first + count)
    pixels = torch.stack([numbers % 256, numbers // 256 % 256], 1).repeat(1, 2)
    return pixels.to(torch.uint8).view(-1, *SHAPE), numbers


def number_of(image):
    pixels = image.flatten().tolist()
    assert pixels[:2] == pixels[2:]
    return pixels[0] + 256 * pixels[1]


def filled(capacity, count):
    bank = MemoryBank(capacity, SHAPE)
    bank.add(*numbered(0, count))
    return bank


@given(
    capacity=st.integers(1, 12),
    sizes=st.lists(st.integers(0, 30), max_size=12),
    as_floats=st.booleans(),
)
def test_bank_holds_what_a_bounded_queue_holds(capacity, sizes, as_floats):
    bank, model, total = MemoryBank(capacity, SHAPE), deque(maxlen=capacity), 0
    for size in sizes:
        images, labels = numbered(total, size)
        bank.add(images / 255 if as_floats else images, labels)
        model.extend(labels.tolist())
        total += size
        assert bank.added == total
        assert len(bank) == len(model)
        assert sorted(bank.labels.tolist()) == sorted(model)
        assert [number_of(image) for image in bank.images] == bank.labels.tolist()
        if total <= capacity:
            assert bank.labels.tolist() == list(model)


def test_views_have_the_types_of_the_bank():
    bank = filled(5, 3)
    assert bank.images.dtype == torch.uint8
    assert bank.images.shape == (3, *SHAPE)
    assert bank.labels.dtype == torch.int64
    assert bank.image_shape == SHAPE
    assert bank.device == torch.device("cpu")


def test_memory_that_is_given_holds_the_images():
    memory = torch.zeros(5, *SHAPE, dtype=torch.uint8)
    bank = MemoryBank(5, SHAPE, memory=memory)
    images, labels = numbered(7, 5)
    bank.add(images, labels)
    assert sorted(memory.flatten().tolist()) == sorted(images.flatten().tolist())
    assert torch.equal(bank.images, images)
    assert bank.nbytes == 5 * (4 + 8)  # bytes of four pixels and of a label


@pytest.mark.parametrize("augmentation", [None, RandomCropFlip()])
def test_drawn_images_have_their_channels_last_in_memory(augmentation):
    bank = MemoryBank(8, (3, 4, 5))
    bank.add(torch.rand(8, 3, 4, 5), torch.arange(8))
    images, _ = bank.sample(6, augmentation=augmentation)
    assert images.stride() == (60, 1, 15, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_byte_survives_the_way_through_floats(dtype):
    bank = MemoryBank(256, (1, 1, 1))
    values = torch.arange(256, dtype=dtype).view(-1, 1, 1, 1)
    bank.add(values / 255, torch.zeros(256, dtype=torch.long))
    assert bank.images.flatten().tolist() == list(range(256))


def test_floats_are_rounded_to_the_nearest_byte_and_cut_at_the_ends():
    values = [0.0, 0.4 / 255, 0.6 / 255, 99.4 / 255, 99.6 / 255, 254.6 / 255, 1.0, -0.2, 1.3]
    bank = MemoryBank(len(values), (1, 1, 1))
    bank.add(torch.tensor(values).view(-1, 1, 1, 1), torch.zeros(len(values), dtype=torch.long))
    expected = np.clip(np.round(np.array(values) * 255), 0, 255).astype(int).tolist()
    assert bank.images.flatten().tolist() == expected == [0, 0, 1, 99, 100, 255, 255, 0, 255]


def test_added_images_are_copied_and_left_alone():
    bank, images = MemoryBank(4, SHAPE), torch.rand(3, *SHAPE, requires_grad=True)
    before = images.detach().clone()
    bank.add(images, torch.arange(3))
    kept = bank.images.clone()
    assert torch.equal(images, before)
    images.data.zero_()
    assert torch.equal(bank.images, kept)


@pytest.mark.parametrize(("capacity", "count"), [(10, 10), (10, 6), (6, 16)])
def test_sampling_is_uniform(capacity, count):
    bank = filled(capacity, count)
    draws = 20_000
    images, labels = bank.sample(draws, torch.Generator().manual_seed(0))
    assert [number_of(image) for image in images[:200]] == labels[:200].tolist()
    counts = Counter(labels.tolist())
    assert set(counts) == set(bank.labels.tolist())
    expected = draws / len(bank)
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 40  # p < 1e-5


def test_sampling_gives_the_wanted_number_whatever_is_held():
    images, labels = filled(4, 2).sample(50)
    assert images.shape == (50, *SHAPE)
    assert images.dtype == torch.uint8
    assert labels.shape == (50,)


def test_generator_decides_what_is_drawn():
    bank = filled(50, 50)
    one, same, other = (
        bank.sample(30, torch.Generator().manual_seed(seed))[1].tolist() for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_drawn_images_are_augmented_and_banked_ones_are_not():
    bank = filled(20, 20)
    before = bank.images.clone()
    images, labels = bank.sample(
        200, torch.Generator().manual_seed(0), RandomCropFlip(padding=0, flip=True)
    )
    plain = before[labels]
    same = (images == plain).flatten(1).all(1)
    assert (same | (images == plain.flip(3)).flatten(1).all(1)).all()
    assert 60 < same.sum() < 140
    assert images.dtype == torch.uint8
    assert torch.equal(bank.images, before)


def test_empty_bank_cannot_be_sampled():
    with pytest.raises(InputError, match="empty"):
        MemoryBank(3, SHAPE).sample(1)


@pytest.mark.parametrize("capacity", [0, -1])
def test_bank_without_room_is_refused(capacity):
    with pytest.raises(InputError, match=str(capacity)):
        MemoryBank(capacity, SHAPE)


@pytest.mark.parametrize(
    ("images", "labels"), [((2, 1, 2, 3), 2), ((2, 3, 2, 2), 2), ((1, 2, 2), 1), ((2, 1, 2, 2), 3)]
)
def test_other_shapes_are_refused_and_nothing_is_added(images, labels):
    bank = MemoryBank(5, SHAPE)
    with pytest.raises(InputError, match="shape"):
        bank.add(torch.rand(images), torch.zeros(labels, dtype=torch.long))
    assert bank.added == 0


@pytest.mark.parametrize("count", [0, 3, 5])
def test_saved_bank_comes_back_in_order(tmp_path, count):
    bank, copy = filled(5, count), MemoryBank(9, SHAPE)
    bank.save(tmp_path / "bank.safetensors")
    copy.add(*read_bank(str(tmp_path / "bank.safetensors")))
    assert torch.equal(copy.images, bank.images)
    assert torch.equal(copy.labels, bank.labels)
    assert copy.added == count


def test_full_bank_comes_back_whole(tmp_path):
    bank, copy = filled(5, 13), MemoryBank(5, SHAPE)
    bank.save(tmp_path / "bank.safetensors")
    copy.add(*read_bank(tmp_path / "bank.safetensors"))
    assert sorted(copy.labels.tolist()) == [8, 9, 10, 11, 12]
    assert [number_of(image) for image in copy.images] == copy.labels.tolist()


def test_saved_images_join_those_that_are_there(tmp_path):
    filled(5, 3).save(tmp_path / "bank.safetensors")
    bank = MemoryBank(9, SHAPE)
    bank.add(*numbered(100, 2))
    bank.add(*read_bank(tmp_path / "bank.safetensors"))
    assert bank.labels.tolist() == [100, 101, 0, 1, 2]


def test_a_runs_folder_is_all_that_its_bank_has_saved(tmp_path):
    """Files of several ranks, and of several checkpoints; not those of the held-back images."""
    banks = [MemoryBank(4, SHAPE), MemoryBank(20, SHAPE)]
    segments = [BankFiles(tmp_path, f"bank-{rank}") for rank in range(2)]
    for turn in range(3):
        for rank, bank in enumerate(banks):
            bank.add(*numbered(20 * rank + 3 * turn, 3))
            segments[rank].save(bank)
    BankFiles(tmp_path, "holdout-0").save(banks[0])
    images, labels = read_bank(tmp_path)
    assert labels.tolist() == [*range(9), *range(20, 29)]
    assert [number_of(image) for image in images] == labels.tolist()


@pytest.mark.parametrize("damage", [b"", b"not a bank", None])
def test_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "bank.safetensors"
    filled(5, 3).save(path)
    path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    bank = MemoryBank(5, SHAPE)
    with pytest.raises(InputError, match=r"bank\.safetensors"):
        bank.add(*read_bank(path))
    assert len(bank) == 0


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.safetensors"):
        MemoryBank(5, SHAPE).add(*read_bank(tmp_path / "nowhere.safetensors"))


def test_file_of_something_else_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="not a saved memory bank"):
        MemoryBank(5, SHAPE).add(*read_bank(tmp_path / "net.safetensors"))


def test_saved_images_of_another_shape_are_refused(tmp_path):
    filled(5, 3).save(tmp_path / "bank.safetensors")
    with pytest.raises(InputError, match="shape"):
        MemoryBank(5, (3, 2, 2)).add(*read_bank(tmp_path / "bank.safetensors"))
