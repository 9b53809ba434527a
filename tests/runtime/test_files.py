import os

import pytest

from nayer_pl.runtime import files


def test_write_durably__full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "new" / "file"
    files.write_durably(path, b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        files.write_durably(path, b"content")
    assert (
        files.cannot_write(error.value) == f"'{path}' cannot be written (No space left on device)"
    )
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [("file", b"before")]


def test_check_folder(tmp_path):
    files.check_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "below"
    for act in (files.check_folder, lambda path: files.write_durably(path, b"")):
        with pytest.raises(OSError, match=r"directory|exists") as error:
            act(below)
        assert str(below) in files.cannot_write(error.value)


def test_remove_unfinished(tmp_path):
    for name in ("last.ckpt", "last.ckpt.part", "student.safetensors.77.part", "student"):
        (tmp_path / name).touch()
    files.remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "student"}
