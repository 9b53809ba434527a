import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from nayer_pl import InputError, MemoryBank
from nayer_pl.bank import files
from nayer_pl.bank.files import BankFiles

SHAPE = (3, 2, 2)


def batch(count, rng):
    images = torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=rng)
    return images, torch.randint(9, (count,), generator=rng)


@given(
    capacity=st.integers(1, 12),
    batches=st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=8),
)
def test_every_checkpoint_brings_back_the_bank_of_its_moment(tmp_path_factory, capacity, batches):
    """Old ones too, after newer ones: image for image in the same place of the ring."""
    folder, rng = tmp_path_factory.mktemp("bank"), torch.Generator().manual_seed(0)
    bank, files, saved = MemoryBank(capacity, SHAPE), BankFiles(folder, "bank-0"), []
    for count, save in [*batches, (1, True)]:
        bank.add(*batch(count, rng))
        if save:
            saved.append((files.save(bank), bank.added, bank.images.clone(), bank.labels.clone()))
    for state, added, images, labels in saved:
        again = MemoryBank(capacity, SHAPE)
        BankFiles(folder, "bank-0").load(again, state)
        assert again.added == added
        assert torch.equal(again.images, images)
        assert torch.equal(again.labels, labels)


def test_each_file_holds_only_what_was_added_and_is_never_written_again(tmp_path):
    bank, files = MemoryBank(100, SHAPE), BankFiles(tmp_path, "bank-0")
    rng = torch.Generator().manual_seed(0)
    added = [batch(5, rng), batch(3, rng)]
    bank.add(*added[0])
    files.save(bank)
    first = next(tmp_path.iterdir())
    before = first.stat()
    bank.add(*added[1])
    assert len(files.save(bank)["files"]) == 2
    assert len(files.save(bank)["files"]) == 2  # nothing new
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    contents = [load_file(path) for path in sorted(tmp_path.iterdir())]
    for content, (images, labels) in zip(contents, added, strict=True):
        assert torch.equal(content["images"], images)
        assert torch.equal(content["labels"], labels)


def test_a_run_that_goes_on_adds_to_its_files(tmp_path):
    rng = torch.Generator().manual_seed(0)
    bank, files = MemoryBank(100, SHAPE), BankFiles(tmp_path, "bank-0")
    bank.add(*batch(5, rng))
    state = files.save(bank)
    again, rest = MemoryBank(100, SHAPE), BankFiles(tmp_path, "bank-0")
    rest.load(again, state)
    again.add(*batch(2, rng))
    assert [record["images"] for record in rest.save(again)["files"]] == [5, 2]


def test_runs_that_share_a_folder_never_replace_each_others_files(tmp_path):
    states = []
    for seed in range(2):
        bank = MemoryBank(10, SHAPE)
        bank.add(*batch(4, torch.Generator().manual_seed(seed)))
        states.append((BankFiles(tmp_path, "bank-0").save(bank), bank))
    for state, bank in states:
        again = MemoryBank(10, SHAPE)
        BankFiles(tmp_path, "bank-0").load(again, state)
        assert torch.equal(again.images, bank.images)


def test_large_banks_are_cut_into_files_that_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 3 * 12)
    bank = MemoryBank(10, SHAPE)
    bank.add(*batch(8, torch.Generator().manual_seed(0)))
    state = BankFiles(tmp_path, "bank-0").save(bank)
    assert [record["images"] for record in state["files"]] == [3, 3, 2]
    again = MemoryBank(10, SHAPE)
    BankFiles(tmp_path, "bank-0").load(again, state)
    assert torch.equal(again.images, bank.images)


def test_a_file_that_was_damaged_since_is_written_again(tmp_path):
    """A run that goes on from before it makes the same images, and a file of the same name."""
    bank = MemoryBank(10, SHAPE)
    bank.add(*batch(8, torch.Generator().manual_seed(0)))
    state = BankFiles(tmp_path, "bank-0").save(bank)
    path = tmp_path / state["files"][0]["file"]
    path.write_bytes(b"damaged")
    assert BankFiles(tmp_path, "bank-0").save(bank) == state
    BankFiles(tmp_path, "bank-0").load(MemoryBank(10, SHAPE), state)


@pytest.mark.parametrize("bit", [0, 77, -1])
def test_every_flipped_bit_is_found_and_the_file_named(tmp_path, bit):
    bank = MemoryBank(10, SHAPE)
    bank.add(*batch(8, torch.Generator().manual_seed(0)))
    state = BankFiles(tmp_path, "bank-0").save(bank)
    path = tmp_path / state["files"][0]["file"]
    content = bytearray(path.read_bytes())
    content[bit] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"'{path}' is damaged"):
        BankFiles(tmp_path, "bank-0").load(MemoryBank(10, SHAPE), state)
    path.unlink()
    with pytest.raises(InputError, match=f"'{path}' cannot be read"):
        BankFiles(tmp_path, "bank-0").load(MemoryBank(10, SHAPE), state)
