import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nayer_pl import InputError, MemoryBank
from nayer_pl.bank import files
from nayer_pl.bank.files import BankFiles

SHAPE = (3, 2, 2)


def batch(count):
    images = torch.randint(256, (count, *SHAPE), dtype=torch.uint8)
    return images, torch.randint(9, (count,))


def filled(count):
    bank = MemoryBank(10, SHAPE)
    bank.add(*batch(count))
    return bank


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 12),
    at_most=st.integers(1, 9),
    batches=st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=8),
)
def test_load__every_saved_state(tmp_path_factory, capacity, at_most, batches):
    """Old states too, after newer ones: every image in the same place of the ring."""
    folder = tmp_path_factory.mktemp("bank")
    bank, written, saved = MemoryBank(capacity, SHAPE), BankFiles(folder, "bank-0"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "MAX_FILE_BYTES", at_most * 12)
        patch.setattr("os.fsync", lambda _: None)  # it waits for the disk
        for count, save in [*batches, (1, True)]:
            bank.add(*batch(count))
            if save:
                held = bank.num_added, bank.images.clone(), bank.labels.clone()
                saved.append((written.save(bank), *held))
    for state, added, images, labels in saved:
        again = MemoryBank(capacity, SHAPE)
        BankFiles(folder, "bank-0").load(again, state)
        assert again.num_added == added
        assert torch.equal(again.images, images)
        assert torch.equal(again.labels, labels)
        assert all(record["images"] <= at_most for record in state["files"])


def test_save__only_new_images(tmp_path):
    bank, files = MemoryBank(100, SHAPE), BankFiles(tmp_path, "bank-0")
    added = [batch(5), batch(3)]
    bank.add(*added[0])
    files.save(bank)
    first = next(tmp_path.iterdir())
    before = first.stat()
    bank.add(*added[1])
    files.save(bank)
    state = files.save(bank)  # nothing new
    assert [record["images"] for record in state["files"]] == [5, 3]
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    contents = [load_file(path) for path in sorted(tmp_path.iterdir())]
    for content, (images, labels) in zip(contents, added, strict=True):
        assert torch.equal(content["images"], images)
        assert torch.equal(content["labels"], labels)
    resumed, again = BankFiles(tmp_path, "bank-0"), MemoryBank(100, SHAPE)
    resumed.load(again, state)
    again.add(*batch(2))
    assert [record["images"] for record in resumed.save(again)["files"]] == [5, 3, 2]


def test_save__runs_that_share_a_folder(tmp_path):
    banks = [filled(4), filled(4)]
    states = [BankFiles(tmp_path, "bank-0").save(bank) for bank in banks]
    for bank, state in zip(banks, states, strict=True):
        again = MemoryBank(10, SHAPE)
        BankFiles(tmp_path, "bank-0").load(again, state)
        assert torch.equal(again.images, bank.images)


@pytest.mark.parametrize("bit", [0, 77, -1])
def test_load__damaged_or_missing_file(tmp_path, bit):
    bank, again = filled(8), MemoryBank(10, SHAPE)
    state = BankFiles(tmp_path, "bank-0").save(bank)
    path = tmp_path / state["files"][0]["file"]
    content = bytearray(path.read_bytes())
    content[bit] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"'{path}' is damaged"):
        BankFiles(tmp_path, "bank-0").load(again, state)
    path.unlink()
    with pytest.raises(InputError, match=f"'{path}' cannot be read"):
        BankFiles(tmp_path, "bank-0").load(again, state)
    path.write_bytes(content)
    # A run that resumes before it makes the same images, and a file of the same name.
    assert BankFiles(tmp_path, "bank-0").save(bank) == state
    BankFiles(tmp_path, "bank-0").load(again, state)
    assert torch.equal(again.images, bank.images)
