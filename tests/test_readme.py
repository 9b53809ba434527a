import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from nayer_pl import Digits, class_names, load_classifier

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN_TEACHER, LIBRARY = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_length():
    assert len(README.split()) <= 1300


@pytest.mark.parametrize("steps", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_library_example(tmp_path, monkeypatch, capsys, steps):
    """With fewer steps; and word by word, with the agreement that it says."""
    monkeypatch.chdir(tmp_path)
    shorter = rf"\1={steps}" if steps else r"\g<0>"
    code, changed = re.subn(r"(max_epochs|generator_steps|kd_steps)=\d+", shorter, LIBRARY)
    assert changed == 3
    exec(code, {"__name__": "__main__"})
    agreement, banked = capsys.readouterr().out.split()[-2:]
    assert (0 if steps else 0.75) < float(agreement) <= 1
    assert int(banked) == 7 * 100
    assert (tmp_path / "student.safetensors").is_file()


# Commands may go on in the next line, after a backslash.
TEXTS = "\n".join([README, *(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))])
FOUND = re.findall(r"python train\.py [^`\n#]*(?=`|\n|#)", re.sub(r"\\\n\s*", "", TEXTS))
# What a page adds itself is tested with that page (test_extending.py).
COMMANDS = sorted({command.strip() for command in FOUND if "--config-dir" not in command})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands__compose(command):
    words = [
        word for word in shlex.split(command)[2:] if word not in ("-m", "--cfg", "job", "--help")
    ]
    if " -m " in command:  # the first job of the sweep
        words = [re.sub(r"=([^,]*),.*", r"=\1", word) for word in words]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        compose("train", overrides=words)


def test_own_data_and_teacher(type_command, tmp_path, monkeypatch, request):
    """The section of that name, followed word by word (and a shorter plan)."""
    (command,) = [command for command in COMMANDS if "teacher=custom" in command]
    write_pictures(tmp_path / "pictures")
    (tmp_path / "my_nets.py").write_text(MY_NETS)
    monkeypatch.syspath_prepend(tmp_path)  # as PYTHONPATH does
    request.addfinalizer(lambda: sys.modules.pop("my_nets", None))
    write_weights(tmp_path / "my_teacher.pth")
    words = shlex.split(command)[2:]
    short = [
        "plan.epochs=1", "plan.warmup_epochs=1", "plan.warmup_rounds=1", "plan.round_size=20",
        "plan.kd_steps=2", "plan.batch_size=16", "model.generator_steps=2", "logger=csv",
        "trainer.accelerator=cpu",
    ]  # fmt: skip

    def run(name, *more):
        status, printed = type_command(None, *words, *short, f"run_dir={name}", *more)
        assert status == 0, printed
        return json.loads((tmp_path / name / "summary.json").read_text())

    summary = run("run")
    assert summary["teacher_accuracy"] > 0.8
    _, facts = load_classifier(tmp_path / "run" / "student.safetensors")
    assert facts["class_names"] == sorted(DIGITS)
    # The same in Python.
    names: dict = {}
    exec(OWN_TEACHER, names)
    assert names["text"].names == sorted(DIGITS)
    assert names["student"].num_classes((3, 32, 32)) == 10
    images, labels = names["pictures"].load("evaluation")
    accuracy = (names["teacher"](images / 255).argmax(1) == labels).float().mean()
    assert accuracy == pytest.approx(summary["teacher_accuracy"], abs=0.01)
    # No pictures at all.
    (tmp_path / "names.txt").write_text("\n".join(sorted(DIGITS)))
    words = [word for word in words if not word.startswith("data.path")]
    summary = run("blind", "data.evaluation=false", "data.class_names=names.txt")
    assert summary["student_accuracy"] is None
    assert 0 <= summary["agreement"] <= 1


DIGITS = class_names("digits")
MY_NETS = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 5, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
        )
"""


def real_digits(split):
    """Digits as their owner sees them: RGB, 32x32, labels in the order of the sorted names."""
    images, labels = Digits(image_size=32).load(split)
    order = torch.tensor([sorted(DIGITS).index(name) for name in DIGITS])
    return images.expand(-1, 3, -1, -1), order[labels]


def write_pictures(folder):
    for i, (image, label) in enumerate(zip(*real_digits("evaluation"), strict=True)):
        path = folder / sorted(DIGITS)[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def write_weights(path):
    """A teacher trained by plain torch, in a normalization of its owner's."""
    scope: dict = {}
    exec(MY_NETS, scope)
    net = scope["Net"]()
    images, labels = real_digits("train")
    inputs = (images / 255 - 0.5) / 0.25
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(3):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    torch.save(net.state_dict(), path)


def test_make_targets():
    def told(*words):
        return subprocess.run(["make", *words], cwd=ROOT, check=True, capture_output=True).stdout

    for target in ("demo", "test", "test-slow", "check", "benchmark-digits"):
        assert f"make {target} ".encode() in told("help")
    assert b"train.py experiment=digits" in told("-n", "demo")
    assert "make test" in (ROOT / ".ci" / "run").read_text()


PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES += [f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("name", PAGES)
def test_links(name):
    page = ROOT / name
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", line).lower().replace(" ", "-") for line in headings]
            assert anchor in anchors, link


@pytest.mark.slow
def test_fresh_clone(tmp_path):
    """`make demo` and `make test` as typed; needs the package index."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    for target in ("demo", "test"):
        subprocess.run(["make", target], cwd=tmp_path / "clone", check=True, timeout=3600)
    assert list((tmp_path / "clone" / "runs").glob("nayer_digits/*/student.safetensors"))
