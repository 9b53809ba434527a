"""The benchmarks' scripts still fit the package; what they measure is not looked at here."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", SCRIPTS)
def test_import(script, name):
    script(name)


def test_plain_forms(script, tiny_method, tiny_data, fit):
    def student():
        torch.manual_seed(0)
        method = tiny_method()
        fit(method, tiny_data())
        return method.student.state_dict()

    fast = student()
    with script("parity").plain_forms():
        plain = student()
    for name, tensor in plain.items():
        torch.testing.assert_close(fast[name], tensor, rtol=0.02, atol=0.02)
