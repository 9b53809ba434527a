import pytest
import torch

from nayer_pl import InputError
from nayer_pl.errors import friendly_errors, import_optional

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
