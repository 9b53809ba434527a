import pytest
import torch
from hydra.utils import instantiate

from nayer_pl.runtime.numerics import fastest_precision


@pytest.fixture
def machine(monkeypatch):
    def pretend(cpu=(), gpu=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
        name = "AMD EPYC" if "amd" in cpu else "Intel(R) Xeon(R)"
        capabilities = {"avx2": True, "cpu_name": name} | dict.fromkeys(cpu, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    return pretend


@pytest.mark.parametrize(
    ("accelerator", "cpu", "gpu", "expected"),
    [
        ("auto", [], None, "32-true"),
        ("auto", ["amx_bf16"], None, "bf16-mixed"),
        ("cpu", ["avx512_bf16"], None, "32-true"),  # Intel's: slower than float32
        ("cpu", ["amd", "avx512_bf16"], None, "bf16-mixed"),
        ("cpu", ["amd"], None, "32-true"),
        ("auto", [], True, "bf16-mixed"),
        ("gpu", [], True, "bf16-mixed"),
        ("auto", ["amx_bf16"], False, "32-true"),  # it is the GPU that computes
        ("cpu", [], True, "32-true"),
        ("mps", ["amx_bf16"], None, "32-true"),
    ],
)
def test_fastest_precision(machine, accelerator, cpu, gpu, expected):
    machine(cpu, gpu)
    assert fastest_precision(accelerator) == expected


def test_fastest_precision__older_torch(machine, monkeypatch):
    machine()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert fastest_precision("cpu") == "32-true"


@pytest.mark.parametrize(("typed", "expected"), [([], "bf16-mixed"), (["64-true"], "64-true")])
def test_fastest_precision__trainer(machine, config, typed, expected):
    machine(["amx_bf16"])
    overrides = [f"trainer.precision={precision}" for precision in typed]
    cfg = config("trainer.accelerator=cpu", *overrides)
    assert instantiate(cfg.trainer).precision == expected
