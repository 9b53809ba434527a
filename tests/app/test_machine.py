import platform

import lightning
import pytest
import torch

import nayer_pl.app.machine
from nayer_pl.app.machine import environment_info


def test_versions_are_those_of_the_modules():
    said = environment_info()["versions"].split(", ")
    assert f"torch {torch.__version__}" in said
    assert f"lightning {lightning.__version__}" in said
    assert f"Python {platform.python_version()}" in said


@pytest.mark.parametrize(
    ("cores", "threads", "text"), [(8, 2, "8 cores, 2 threads"), (1, 1, "1 core, 1 thread")]
)
def test_machine_has_its_cores_and_threads(monkeypatch, cores, threads, text):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    machine = environment_info()["machine"]
    assert machine.endswith(f", {text}")
    assert environment_info(devices=4)["machine"] == f"4 x {machine}"


def test_a_gpu_is_called_by_its_name(monkeypatch):
    monkeypatch.setattr(
        nayer_pl.app.machine.torch.cuda, "get_device_name", lambda device: f"GPU {device}"
    )
    assert environment_info("cuda:1")["machine"].startswith("GPU cuda:1, ")
