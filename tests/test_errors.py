import os
import pickle

import pytest
import torch

from nayer_pl import InputError
from nayer_pl.errors import friendly_errors, import_optional, weights_only_load

PAGE = "No such model.\n\nSee https://example.org for help.\nAnd the rest of a page."


def test_import_optional(tmp_path, monkeypatch):
    assert import_optional("torch.nn") is torch.nn
    with pytest.raises(InputError, match=r"'nowhere_x' cannot be imported .*pip install nowhere_x"):
        import_optional("nowhere_x.models")
    (tmp_path / "built_for_another.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="operator does not exist"):
        import_optional("built_for_another")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(PAGE), "It cannot be read (No such model); look elsewhere."),
        (KeyError("x"), "It cannot be read ('x'); look elsewhere."),
        (ValueError(), "It cannot be read (ValueError); look elsewhere."),
        (InputError("as it was"), "as it was"),
    ],
)
def test_friendly_errors(error, text):
    with pytest.raises(InputError) as found, friendly_errors("It cannot be read", "look elsewhere"):
        raise error
    assert str(found.value) == text
    assert found.value is error or found.value.__cause__ is error


def test_weights_only_load(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    file, ran = tmp_path / "weights.pth", tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    torch.save(Trap(), file)
    with pytest.raises(pickle.UnpicklingError), weights_only_load():
        torch.load(file)
    assert not ran.exists()
    with weights_only_load():
        torch.save(torch.ones(2), file)
        assert torch.load(file).tolist() == [1, 1]
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
