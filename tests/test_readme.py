import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 30
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    agreement, banked = done.stdout.split()[-2:]
    assert 0 <= float(agreement) <= 1
    assert int(banked) == 4 * 50
    assert (tmp_path / "student.safetensors").is_file()


@pytest.mark.parametrize(
    "command", re.findall(r"python train\.py [^`\n#]*(?=`|\n|#)", README), ids=str.strip
)
def test_every_command_composes(command):
    words = [word for word in shlex.split(command)[2:] if word not in ("-m", "--cfg", "job")]
    words = [re.sub(r"=([^,]*),.*", r"=\1", word) for word in words]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose("train", overrides=words)


def test_make_targets_are_there_and_described():
    told = subprocess.run(["make", "help"], cwd=ROOT, text=True, capture_output=True, check=True)
    for target in ("demo", "test", "test-slow", "check", "benchmark-digits"):
        assert re.search(rf"make {target} .*\w", told.stdout)
    plan = subprocess.run(
        ["make", "-n", "demo"], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert "train.py experiment=digits" in plan.stdout
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_pictures_and_links_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.slow
def test_the_two_commands_in_a_fresh_clone(tmp_path):
    """`make demo` and `make test` as typed; needs the package index."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    for target in ("demo", "test"):
        subprocess.run(["make", target], cwd=tmp_path / "clone", check=True, timeout=3600)
    assert list((tmp_path / "clone" / "runs").glob("nayer_digits/*/student.safetensors"))
