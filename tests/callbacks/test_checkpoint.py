"""A run that stopped at any moment, or was told to, is resumed bit by bit."""

import copy
import os
import signal
import time
from datetime import timedelta

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from running import KeepAll, metrics
from torch.utils._pytree import tree_leaves

from nayer_pl import NAYER, BankOptions, InputError, RandomCropFlip, Supervised
from nayer_pl.app.resume import find_corruption
from nayer_pl.callbacks import Checkpoints, PhaseTimer
from nayer_pl.callbacks import checkpoint as checkpoint_module
from nayer_pl.callbacks.checkpoint import TrainingEnded

SHAPE = (1, 8, 8)
PLAN = {"rounds_per_epoch": 2}
ITEMS = 2 + 2 * (2 + 3)


@pytest.fixture
def run(tiny_method, tiny_data, fit, tmp_path):
    """A run of the same networks in the directory `name`."""

    def start(
        name="run", method=None, saver=None, evaluation=True, capacity=None, others=(), **options
    ):
        torch.manual_seed(3)
        made = tiny_method(generator_life=1, augmentation=RandomCropFlip(1), **(method or {}))
        data = tiny_data(
            PLAN, augmentation=RandomCropFlip(1), evaluation=evaluation,
            bank=BankOptions(capacity=capacity),
        )  # fmt: skip
        folder = tmp_path / name
        timer, logger = PhaseTimer(), CSVLogger(folder, name="", version="")
        saver = saver or Checkpoints(folder / "checkpoints")
        fit(
            made, data, callbacks=[timer, *others, saver], logger=logger, default_root_dir=folder,
            enable_checkpointing=True, **options,
        )  # fmt: skip
        return made, data, timer, folder

    return start


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"evaluation": False},
        {"capacity": 30},
        {"method": {"reset_noisy_layer": False}},
        {"method": {"conditioning": "noise"}},
    ],
    ids=["plain", "holdout", "ring", "one noisy layer", "noise"],
)
def test_resume__every_moment(run, tmp_path, options):
    """Every checkpoint of a run, in a directory with all its files, leads to the same end."""
    saver = KeepAll(tmp_path / "run" / "checkpoints")
    method, data, timer, folder = run(saver=saver, **options)
    assert len(saver.kept) == ITEMS - 1  # between any two of its items
    rows = metrics(folder)
    # All of them in the plainest case, else some of every kind.
    for checkpoint in saver.kept[:: 1 if not options else 4]:
        again, bank, clock, _ = run(ckpt_path=checkpoint, **options)
        assert same(again.student.state_dict(), method.student.state_dict())
        parts = (each.synthesizer.generator.state_dict() for each in (again, method))
        assert same(*parts)
        assert torch.equal(bank.bank.images, data.bank.images)
        assert torch.equal(bank.bank.labels, data.bank.labels)
        assert again.results() == method.results()
        assert clock.images == timer.images
        assert metrics(folder) == rows  # none lost, none twice


def test_resume__model_checkpoint(run, tmp_path):
    """A script with a plain Trainer and Lightning's own callback."""
    method, *_ = run(saver=ModelCheckpoint(tmp_path / "kept", save_top_k=-1, filename="{epoch}"))
    for epoch in (0, 1):
        again, *_ = run(ckpt_path=tmp_path / "kept" / f"epoch={epoch}.ckpt")
        assert same(again.student.state_dict(), method.student.state_dict())


def test_resume__supervised(tiny_classifier, tiny_real_data, fit, tmp_path):
    def start(saver, **options):
        torch.manual_seed(3)
        method = Supervised(tiny_classifier())
        fit(method, tiny_real_data(), callbacks=[saver], enable_checkpointing=True, **options)
        return method.network.state_dict()

    saver = KeepAll(tmp_path)
    whole = start(saver)
    assert len(saver.kept) == 2 * 3 - 1
    for checkpoint in saver.kept:
        assert same(start(Checkpoints(tmp_path), ckpt_path=checkpoint), whole)


@pytest.fixture
def stopped(run):
    """A run's directory with two checkpoints."""
    *_, folder = run()
    return folder


def test_checkpoint__no_images(stopped):
    """Nor the state of an optimizer that a round makes again."""
    content = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["optimizer_states"][1]["state"] == {}
    sizes = [leaf.shape for leaf in tree_leaves(content) if isinstance(leaf, torch.Tensor)]
    assert sizes
    assert not [size for size in sizes if size[1:] == SHAPE]


# Checkpoints of other runs


@pytest.mark.parametrize(
    ("method", "plan", "named"),
    [
        (lambda net: {"teacher": net()}, {}, "its teacher is"),
        (lambda net: {"student": net(norm=False)}, {}, "its student is"),
        (lambda net: {}, {"kd_steps": 4}, "its plan is"),
    ],
    ids=["teacher", "student", "plan"],
)
def test_resume__other_run(
    stopped, tiny_method, tiny_data, tiny_classifier, fit, method, plan, named
):
    torch.manual_seed(3)
    teacher, student = tiny_classifier(), tiny_classifier()
    made = tiny_method(**{"teacher": teacher, "student": student, **method(tiny_classifier)})
    before = copy.deepcopy(made.student.state_dict())
    with pytest.raises(InputError, match=named):
        fit(
            made, tiny_data({**PLAN, **plan}), default_root_dir=stopped,
            ckpt_path=stopped / "checkpoints" / "last.ckpt",
        )  # fmt: skip
    assert same(made.student.state_dict(), before)


def test_resume__other_program(stopped, run):
    last = stopped / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    content["nayer_pl"] |= {"format": 99, "version": "9.9"}
    torch.save(content, last)
    with pytest.raises(InputError, match=r"written by nayer_pl 9\.9"):
        run(ckpt_path=last)
    del content["nayer_pl"]
    torch.save(content, last)
    assert find_corruption(last) == "it was not written by this program"
    with pytest.raises(InputError, match="not written by a run of this version"):
        run(ckpt_path=last)


# Runs that are told to end


def test_max_time(run, tmp_path):
    """Lightning's `fit` returns as if the run were complete; ours can be resumed."""

    class Hurry(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                timer._duration = 1e-6

    folder, timer = tmp_path / "run" / "checkpoints", Timer(timedelta(hours=1))
    with pytest.raises(TrainingEnded) as ended:
        run(saver=Checkpoints(folder, minutes=60), others=[timer, Hurry()])
    assert ended.value.reason == "max_time"
    run(others=[Timer(timedelta(hours=1))], ckpt_path=folder / "last.ckpt")


@pytest.mark.parametrize("item", [0, 1, 3, 5])
def test_sigterm__saves_after_the_item(run, tmp_path, item):
    """In warm-up, at the end of it, between two rounds, between two steps."""

    class Ask(Callback):
        count = -1

        def on_train_batch_start(self, *_):
            self.count += 1
            if self.count == item:
                os.kill(os.getpid(), signal.SIGTERM)

    before, ask = signal.getsignal(signal.SIGTERM), Ask()
    saver = Checkpoints(tmp_path / "run" / "checkpoints", minutes=60)
    with pytest.raises(TrainingEnded) as ended:
        run(saver=saver, others=[ask])
    assert ended.value.reason == "SIGTERM"
    assert ask.count == item
    assert signal.getsignal(signal.SIGTERM) == before
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    progress = torch.load(last, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["total"]["processed"] == item + 1
    assert find_corruption(last) is None


def test_sigterm__long_item_is_cut_short(run, tmp_path, monkeypatch):
    """Rounds of 0.7 s with a grace of 0.5 s; SIGTERM comes twice, as from a launcher."""
    monkeypatch.setattr(checkpoint_module, "SIGTERM_GRACE_S", 0.5)
    done, make = [], NAYER._optimize_images

    def slowly(self, *args):
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.7)
        done.append(self.rounds)
        return make(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(NAYER, "_optimize_images", slowly)
        with pytest.raises(TrainingEnded):
            run(saver=Checkpoints(tmp_path / "run" / "checkpoints", minutes=60))
    assert done == [0, 1]  # the third did not come to its end, and is all that is lost
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["progress"]["rounds"] == 2
    again, *_ = run(ckpt_path=last)
    whole, *_ = run("whole")
    assert same(again.student.state_dict(), whole.student.state_dict())
