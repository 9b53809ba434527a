"""What an installation contains: every file of the package, though ours is editable."""

from importlib.metadata import version
from pathlib import Path

import pytest

import nayer_pl

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "nayer_pl"


def test_package_data():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["nayer_pl"]
    declared = {file for pattern in patterns for file in PACKAGE.glob(pattern)}
    there = {path for path in PACKAGE.rglob("*") if path.is_file()}
    assert declared == {
        path for path in there if path.suffix != ".py" and "__pycache__" not in path.parts
    }


def test_version():
    assert nayer_pl.__version__ == version("nayer_pl")
