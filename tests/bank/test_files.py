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
def test_load__every_saved_state(tmp_path_factory, capacity, batches):
    """Old states too, after newer ones: every image in the same place of the ring."""
    folder, rng = tmp_path_factory.mktemp("bank"), torch.Generator().manual_seed(0)
    bank, files, saved = MemoryBank(capacity, SHAPE), BankFiles(folder, "bank-0"), []
    for count, save in [*batches, (1, True)]:
        bank.add(*batch(count, rng))
        if save:
            saved.append(
                (files.save(bank), bank.num_added, bank.images.clone(), bank.labels.clone())
            )
    for state, added, images, labels in saved:
        again = MemoryBank(capacity, SHAPE)
        BankFiles(folder, "bank-0").load(again, state)
        assert again.num_added == added
        assert torch.equal(again.images, images)
        assert torch.equal(again.labels, labels)


def test_save__only_new_images(tmp_path):
    bank, files = MemoryBank(100, SHAPE), BankFiles(tmp_path, "bank-0")
    rng = torch.Generator().manual_seed(0)
    added = [batch(5, rng), batch(3, rng)]
    bank.add(*added[0])
    files.save(bank)
    first = next(tmp_path.iterdir())
    before = first.stat()
    bank.add(*added[1])
    assert len(files.save(bank)["files"]) == 2
    state = files.save(bank)  # nothing new
    assert [record["images"] for record in state["files"]] == [5, 3]
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    contents = [load_file(path) for path in sorted(tmp_path.iterdir())]
    for content, (images, labels) in zip(contents, added, strict=True):
        assert torch.equal(content["images"], images)
        assert torch.equal(content["labels"], labels)
    resumed, again = BankFiles(tmp_path, "bank-0"), MemoryBank(100, SHAPE)
    resumed.load(again, state)
    again.add(*batch(2, rng))
    assert [record["images"] for record in resumed.save(again)["files"]] == [5, 3, 2]


def test_save__runs_that_share_a_folder(tmp_path):
    states = []
    for seed in range(2):
        bank = MemoryBank(10, SHAPE)
        bank.add(*batch(4, torch.Generator().manual_seed(seed)))
        states.append((BankFiles(tmp_path, "bank-0").save(bank), bank))
    for state, bank in states:
        again = MemoryBank(10, SHAPE)
        BankFiles(tmp_path, "bank-0").load(again, state)
        assert torch.equal(again.images, bank.images)


def test_save__large_banks_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 3 * 12)
    bank = MemoryBank(10, SHAPE)
    bank.add(*batch(8, torch.Generator().manual_seed(0)))
    state = BankFiles(tmp_path, "bank-0").save(bank)
    assert [record["images"] for record in state["files"]] == [3, 3, 2]
    again = MemoryBank(10, SHAPE)
    BankFiles(tmp_path, "bank-0").load(again, state)
    assert torch.equal(again.images, bank.images)


def test_save__replaces_a_damaged_file(tmp_path):
    """A run that resumes before it makes the same images, and a file of the same name."""
    bank = MemoryBank(10, SHAPE)
    bank.add(*batch(8, torch.Generator().manual_seed(0)))
    state = BankFiles(tmp_path, "bank-0").save(bank)
    path = tmp_path / state["files"][0]["file"]
    path.write_bytes(b"damaged")
    assert BankFiles(tmp_path, "bank-0").save(bank) == state
    BankFiles(tmp_path, "bank-0").load(MemoryBank(10, SHAPE), state)


@pytest.mark.parametrize("bit", [0, 77, -1])
def test_load__damaged_or_missing_file(tmp_path, bit):
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
