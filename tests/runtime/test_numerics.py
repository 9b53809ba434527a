import pytest
import torch
from hydra.utils import instantiate

from nayer_pl.runtime.numerics import Stream, fastest_precision, restore_generator, stream_seed


def numbers(rng):
    return torch.rand(5, generator=rng).tolist()


def test_stream_seed__distinct():
    questions = [(s, r, p) for s in range(20) for r in range(64) for p in Stream]
    assert len({stream_seed(*question) for question in questions}) == len(questions)


def test_restore_generator():
    rng = torch.Generator().manual_seed(3)
    numbers(rng)
    state = rng.get_state()
    expected, other = numbers(rng), torch.Generator()
    restore_generator(other, state)
    assert numbers(other) == expected


def test_restore_generator__other_device():
    def restored(state):
        rng = torch.Generator().manual_seed(3)
        restore_generator(rng, state)
        return numbers(rng)

    of_cuda = torch.arange(16, dtype=torch.uint8)  # the size of a CUDA generator's state
    one, other = restored(of_cuda), restored(of_cuda + 1)
    assert one == restored(of_cuda)
    assert one != other
    assert numbers(torch.Generator().manual_seed(3)) not in (one, other)


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
