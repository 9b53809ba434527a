"""What an installation holds: everything that lies in the package, though ours is editable."""

from importlib.metadata import version
from pathlib import Path

import pytest

import nayer_pl

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "nayer_pl"


def test_every_file_that_is_no_code_is_declared():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = {
        file
        for pattern in project["tool"]["setuptools"]["package-data"]["nayer_pl"]
        for file in PACKAGE.glob(pattern)
    }
    there = {path for path in PACKAGE.rglob("*") if path.is_file()}
    others = {p for p in there if p.suffix != ".py" and "__pycache__" not in p.parts}
    assert others == declared


def test_the_package_knows_its_version():
    assert nayer_pl.__version__ == version("nayer_pl")
