"""What the package consists of, which module imports which, and what its import imports."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nayer_pl

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("hydra", "omegaconf", "wandb", "datasets", "transformers", "matplotlib", "sklearn")
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(nayer_pl.__path__, "nayer_pl.")
    if not module.name.endswith("__main__")
)


def in_fresh_process(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_contracts():
    """The contracts of pyproject.toml: layers, rooms without Hydra, no circles."""
    command = importlib.import_module("importlinter.cli").lint_imports_command
    result = importlib.import_module("click.testing").CliRunner().invoke(command, ["--no-cache"])
    assert result.exit_code == 0, result.output


def test_import__light():
    code = f"import sys, nayer_pl; print(*sys.modules.keys() & {{*{HEAVY}, 'lightning', 'torch'}})"
    assert in_fresh_process(code) == []


def test_import__library_without_application():
    """All public names and callbacks; torchmetrics imports plotting and text models itself."""
    heavy = set(HEAVY) - {"matplotlib", "transformers", "sklearn"}  # the last on Python 3.10
    code = (
        "import sys, nayer_pl, nayer_pl.callbacks.loggers;"
        "[getattr(nayer_pl, name) for name in nayer_pl.__all__];"
        f"print(*sys.modules.keys() & {heavy})"
    )
    assert in_fresh_process(code) == []


def test_public_names():
    """`__all__` and the imports for editors are the same names."""
    tree = ast.parse(Path(nayer_pl.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: f"{line.module}" for line in block.body for alias in line.names}
    assert sorted(typed) == nayer_pl.__all__
    for name, module in typed.items():
        assert getattr(nayer_pl, name) is getattr(importlib.import_module(module), name)
    assert set(nayer_pl.__all__) <= set(dir(nayer_pl))
    with pytest.raises(AttributeError, match="no attribute 'Nayer'"):
        nayer_pl.Nayer  # noqa: B018


def test_package_data():
    """An installation has every file of the package, though ours is editable."""
    package = ROOT / "src" / "nayer_pl"
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["nayer_pl"]
    declared = {file for pattern in patterns for file in package.glob(pattern)}
    there = {path for path in package.rglob("*") if path.is_file()}
    assert declared == {
        path for path in there if path.suffix != ".py" and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0
