"""A run is resumed only from intact checkpoints, and only as the run that it was."""

import copy
import re
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nayer_pl import InputError
from nayer_pl.app.resume import (
    check_config_unchanged,
    find_checkpoint,
    find_corruption,
    load_summary,
)
from nayer_pl.callbacks import Checkpoints


@pytest.fixture
def stopped(tiny_method, tiny_data, fit, tmp_path):
    """A run's directory with two checkpoints."""
    saver = Checkpoints(tmp_path / "checkpoints")
    fit(tiny_method(), tiny_data(), callbacks=[saver], enable_checkpointing=True)
    return tmp_path


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_weight(path):
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    flip(path, largest.header_offset + 2000)


def flip_newest_images(path):
    flip(max((path.parents[1] / "bank").iterdir()), -3)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, "zip"),
        (lambda path: path.write_bytes(b""), "zip"),
        (flip_weight, "CRC|checksum|damaged|Bad"),
        (flip_newest_images, "bank.* is damaged"),
    ],
    ids=["truncated", "empty", "wrong bit", "wrong bit in the bank"],
)
def test_find_checkpoint__damaged(stopped, caplog, harm, reason):
    last, previous = (stopped / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    assert find_corruption(last) is None
    harm(last)
    with pytest.raises(InputError, match=rf"last.ckpt' .*({reason}).*previous.ckpt' is the newest"):
        find_checkpoint(stopped, None, str(last))
    damaged = last.read_bytes()
    assert find_checkpoint(stopped, "auto", None) == previous
    assert "last.ckpt' is damaged" in caplog.text
    assert [path.read_bytes() for path in last.parent.glob("last.ckpt.damaged*")] == [damaged]

    truncate(previous)
    with pytest.raises(InputError, match=r"No checkpoint in .* is intact"):
        find_checkpoint(stopped, "auto", None)
    assert previous.exists()


def test_find_checkpoint__new_run(tmp_path):
    assert find_checkpoint(tmp_path, "auto", None) is None
    assert find_checkpoint(tmp_path, None, None) is None
    assert load_summary(tmp_path) is None
    with pytest.raises(InputError, match="There is no checkpoint"):
        find_checkpoint(tmp_path, None, str(tmp_path / "last.ckpt"))


def test_check_config_unchanged(config):
    started = config("experiment=digits", "class_names=null")
    Path("run").mkdir()
    Path("run/config.yaml").write_text(OmegaConf.to_yaml(started, resolve=True))

    def check_with(name, value):
        changed = copy.deepcopy(started)
        OmegaConf.update(changed, name, value, force_add=True)
        check_config_unchanged(changed)

    check_with("seed", 0)
    files_and_devices = {
        "teacher.weights": "elsewhere.safetensors", "data.path": "elsewhere",
        "paths.cache": "elsewhere", "trainer.devices": 2, "checkpoint.minutes": 1,
        "bank.device": "cpu",
    }  # fmt: skip
    for name, value in files_and_devices.items():
        check_with(name, value)
    others = {
        "plan.kd_steps": 7, "seed": 1, "student.architecture._target_": "my.Net",
        "trainer.max_epochs": 3, "datamodule.holdout": 0.4, "text_encoder.path": "b.npy",
    }  # fmt: skip
    for name, value in others.items():
        before = OmegaConf.select(started, name)
        with pytest.raises(InputError, match=re.escape(f"{name}={value} (was {before})")):
            check_with(name, value)
