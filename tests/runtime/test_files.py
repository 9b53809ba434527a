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


def test_cannot_write__names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    for act in (
        lambda path: files.write_durably(path, b""),
        lambda path: files.check_folder(path),
    ):
        with pytest.raises(OSError, match=r"directory|exists") as error:
            act(tmp_path / "file" / "below")
        assert str(tmp_path / "file" / "below") in files.cannot_write(error.value)


def test_check_folder__leaves_nothing(tmp_path):
    files.check_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_remove_unfinished(tmp_path):
    for name in ("last.ckpt", "last.ckpt.part", "student.safetensors.77.part", "student"):
        (tmp_path / name).touch()
    files.remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "student"}
