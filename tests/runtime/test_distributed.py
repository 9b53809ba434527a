"""In a single process; tests/test_distributed.py has two."""

import copy
from types import SimpleNamespace

import lightning.pytorch.strategies as strategies
import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nayer_pl import InputError
from nayer_pl.runtime import distributed


class MyDDP(strategies.DDPStrategy):
    """A user's own."""


def trainer(strategy_class, **attributes):
    """As far as the checks look; most strategies cannot be built without their accelerator."""
    strategy = object.__new__(strategy_class)
    vars(strategy).update(attributes)
    return SimpleNamespace(strategy=strategy)


def test_check_strategy():
    for name in ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAStrategy"):
        with pytest.raises(InputError, match=rf'{name}.*choose Trainer\(strategy="ddp"\)'):
            distributed.check_strategy(trainer(getattr(strategies, name)))
    for allowed in (strategies.SingleDeviceStrategy, strategies.DDPStrategy, MyDDP):
        distributed.check_strategy(trainer(allowed))


def test_check_strategy__at_setup(tiny_method, tiny_data, monkeypatch):
    method, one = tiny_method(), Trainer(accelerator="cpu", logger=False, barebones=True)
    monkeypatch.setattr(one.strategy, "__class__", strategies.FSDPStrategy)
    method.trainer = one
    with pytest.raises(InputError, match="FSDPStrategy"):
        method.setup("fit")


def test_refuse_sync_batchnorm():
    asked = Trainer(accelerator="cpu", devices=2, sync_batchnorm=True, logger=False)
    plain = trainer(strategies.DDPStrategy, _layer_sync=None)
    ordinary, waiting = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.SyncBatchNorm(3))
    distributed.refuse_sync_batchnorm(plain, ordinary)
    distributed.refuse_sync_batchnorm(trainer(strategies.SingleDeviceStrategy), ordinary)
    for who, module in ((asked, ordinary), (plain, waiting)):
        with pytest.raises(InputError, match=r"Trainer\(sync_batchnorm=True\)"):
            distributed.refuse_sync_batchnorm(who, module)


def test_limit_ddp_to(tiny_method, tmp_path):
    method = tiny_method()
    method.latents = nn.Parameter(torch.zeros(3))  # of the method itself, in no module of it
    distributed.limit_ddp_to(method, "student")
    shared = {*method.state_dict()} - {*method._ddp_params_and_buffers_to_ignore}
    assert shared == {f"student.{name}" for name in method.student.state_dict()}
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        waited_for, _ = DistributedDataParallel(method)._build_params_for_reducer()
    finally:
        torch.distributed.destroy_process_group()
    assert {*map(id, waited_for)} == {*map(id, method.student.parameters())}


def test_single_process__no_communication(tiny_classifier, monkeypatch):
    def never(*_, **__):
        raise AssertionError("talked to other ranks")

    for name in ("all_reduce", "all_gather_object"):
        monkeypatch.setattr(torch.distributed, name, never)
    net = tiny_classifier()
    before = copy.deepcopy(net.state_dict())
    distributed.all_reduce_batchnorm(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert distributed.all_reduce_sum(2.5, torch.device("cpu")) == 2.5
    assert distributed.first_error("broken") == "broken"
    assert distributed.first_error(None) is None
    distributed.sync_step_and_scaler(Trainer(accelerator="cpu", barebones=True))


def test_all_reduce_batchnorm__no_statistics(monkeypatch):
    monkeypatch.setattr(distributed, "_several", lambda: True)
    distributed.all_reduce_batchnorm(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(3, track_running_stats=False))
    )
