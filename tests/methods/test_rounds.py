"""What NAYER, FastDFKD, CMI and DeepInversion have in common: rounds that fill a bank."""

import copy
import itertools
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from nayer_pl import (
    CMI,
    NAYER,
    DeepInversion,
    DivergenceError,
    FastDFKD,
    InputError,
    RandomCropFlip,
)
from nayer_pl.bank import SynthesisRound
from nayer_pl.callbacks.checkpoint import Checkpoints

SHAPE = (1, 8, 8)
WEIGHTS = {"bn": 3.0, "ce": 0.7, "adv": 2.0}
OTHER_WEIGHTS = {CMI: {"cr": 1.5}, DeepInversion: {"tv": 0.02, "l2": 0.03}}
every_method = pytest.mark.parametrize("method", [NAYER, FastDFKD, CMI, DeepInversion])


@every_method
def test_round(make, tiny_data, fit, watch_rounds, method):
    """The loss is the sum of its terms; images of the step with the lowest are kept."""
    weights = WEIGHTS | OTHER_WEIGHTS.get(method, {})
    lr = {"image_lr": 20.0} if method is DeepInversion else {"generator_lr": 0.5}
    made = make(method, **lr, **{f"{name}_weight": weight for name, weight in weights.items()})
    for net in (made.teacher.classifier, made.student):  # no class is everybody's favorite
        net.network.head.bias.data -= net.eval()(torch.rand(99, *SHAPE)).detach().mean(0)
    student, rounds, chosen = copy.deepcopy(made.student).eval(), watch_rounds(made), set()
    fit(made, tiny_data())
    assert [each.warm_up for each in rounds] == [True, True, False, False]
    for each in rounds:
        terms = {name: values for name, values in each.terms.items() if name != "gradient"}
        loss, best = terms.pop("loss"), int(each.terms["loss"].argmin())
        assert terms.keys() == weights.keys() - ({"adv"} if each.warm_up else set())
        total = sum(weights[name] * values for name, values in terms.items())
        torch.testing.assert_close(loss, total)
        assert torch.equal(each.kept, each.made[best].clamp(0, 1))
        chosen.add(best)
    assert chosen != {3}, "the last step is always the best: this test shows nothing"

    images, first = torch.cat(rounds[2].made), rounds[2]  # the student has learned nothing yet
    teacher_logits = made.teacher.classifier(images)
    ce = F.cross_entropy(teacher_logits, first.targets.repeat(4), reduction="none")
    torch.testing.assert_close(first.terms["ce"], ce.view(4, 12).mean(1))
    if method is not DeepInversion:  # which has another adversary
        p, q = teacher_logits.softmax(1), student(images).softmax(1)
        agree = p.argmax(1) == q.argmax(1)
        assert 0 < agree.sum() < len(images)
        divergence = (p * (p / q).log()).sum(1) * agree
        torch.testing.assert_close(first.terms["adv"], -divergence.view(4, 12).mean(1))


@every_method
def test_adam__starts_afresh(make, tiny_data, fit, method):
    """In every round, but for CMI's head."""
    made, ages, ages_of_head = make(method), [], []
    head = set(made.synthesizer.head.parameters()) if method is CMI else set()

    def look(adam, *_):
        steps = [(p in head, int(state["step"])) for p, state in adam.state.items()]
        ages.append({step for of_head, step in steps if not of_head})
        ages_of_head.append({step for of_head, step in steps if of_head})

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.optimizers[1].register_step_post_hook(look)

        def on_train_batch_end(self, trainer, pl_module, outputs, item, i):
            if isinstance(item, SynthesisRound):
                assert trainer.optimizers[1].state.keys() == head

    fit(made, tiny_data(), callbacks=[Watch()])
    assert ages == 4 * [{1}, {2}, {3}, {4}]
    assert ages_of_head == [{step + 1} if head else set() for step in range(16)]


@every_method
def test_nonfinite_term(make, tiny_data, fit, method):
    """It is named, and its round reaches neither the bank nor the student, as no round does."""
    made, data, calls = make(method), tiny_data(), itertools.count(1)
    before, loss = copy.deepcopy(made.student.state_dict()), made.synthesizer.loss

    def broken(*arguments):
        terms = loss(*arguments)
        nan = {"bn": terms["bn"] * math.nan, "loss": terms["loss"] * math.nan}
        return terms | (nan if next(calls) == 7 else {})

    made.synthesizer.loss = broken
    with pytest.raises(DivergenceError, match=r"'bn' became nan at step 3 of round 2"):
        fit(made, data)
    assert data.bank.num_added == 12
    assert all(torch.equal(before[k], v) for k, v in made.student.state_dict().items())
    assert all(p.grad is None for p in [*made.student.parameters(), *made.teacher.parameters()])


@every_method
def test_teacher__without_batchnorm(make, tiny_classifier, tiny_data, fit, method):
    """Without the term it will do, but for CMI's features."""
    options = {"teacher": tiny_classifier(norm=False), "bn_weight": 0}
    if method is CMI:
        with pytest.raises(InputError, match="no BatchNorm2d"):
            make(method, **options)
    else:
        made = make(method, **options)
        fit(made, tiny_data())
        assert made.student_updates == 6


@every_method
def test_round_size__too_small(make, tiny_data, fit, method):
    with pytest.raises(InputError, match=r"round_size must be at least the plan's.* 12, not 8"):
        fit(make(method, round_size=8), tiny_data({"round_size": 12}))


class KeepAll(Checkpoints):
    kept = 0

    def save(self, trainer):
        super().save(trainer)
        self.kept += 1
        shutil.copy(self.folder / "last.ckpt", self.folder.parent / f"{self.kept}.ckpt")


@pytest.mark.parametrize(
    ("method", "options", "saved"),
    [
        (NAYER, {}, {"conditioning.embedding_norm", "criterion.batchnorm", "generator.layers"}),
        (FastDFKD, {"first_layer_reset": 2}, {"criterion.batchnorm", "generator.layers"}),
        (CMI, {"negatives": 20}, {"criterion.batchnorm", "head.0", "head.2"}),
        (DeepInversion, {}, {"criterion.inversion"}),
    ],
)
def test_resume(make, tiny_data, fit, tmp_path, method, options, saved):
    """From warm-up, between two steps, and near the end; without what a round draws again."""

    def run(folder, **trainer_options):
        torch.manual_seed(3)
        made = make(method, bn_momentum=0.9, augmentation=RandomCropFlip(1), **options)
        saver, data = KeepAll(tmp_path / folder / "checkpoints", minutes=0), tiny_data()
        fit(made, data, callbacks=[saver], enable_checkpointing=True, **trainer_options)
        return {**made.state_dict(), "bank": data.bank.images}, saver.kept

    whole, kept = run("whole")
    content = torch.load(tmp_path / "whole" / "4.ckpt", weights_only=True)["nayer_pl"]["ranks"][0]
    names = [name.removeprefix("synthesizer.") for name in content["parts"]]
    assert {".".join(name.split(".")[:2]) for name in names} == saved
    common = [name for name in whole if name in content["parts"] or name.startswith("student.")]
    for number in (1, 4, kept):
        again, _ = run(f"from {number}", ckpt_path=tmp_path / "whole" / f"{number}.ckpt")
        assert all(torch.equal(again[name], whole[name]) for name in [*common, "bank"])
