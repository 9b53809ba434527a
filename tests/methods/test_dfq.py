import copy

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.distributions import Categorical, kl_divergence

from nayer_pl import DFQ
from nayer_pl.losses import GaussianMatching

SHAPE = (1, 8, 8)


def statistics_loss(teacher, images):
    return GaussianMatching(teacher.norms)(teacher.observe(images).statistics)


@pytest.mark.parametrize("warm_up", [False, True])
def test_loss(make, warm_up):
    weights = {"bn": 0.5, "entropy": 3.0, "balance": 7.0, "divergence": -11.0}
    options = {"entropy_weight": 3.0, "balance_weight": 7.0, "adv_weight": 11.0}
    method = make(DFQ, bn_weight=0.5, **options)
    images = torch.rand(16, *SHAPE, requires_grad=True)
    logits, student = method.teacher(images), method.student.eval()
    predicted = Categorical(logits=logits)
    expected = {
        "bn": statistics_loss(method.teacher, images),
        "entropy": predicted.entropy().mean(),
        "balance": -Categorical(logits.softmax(1).mean(0)).entropy(),
        "divergence": kl_divergence(predicted, Categorical(logits=student(images))).mean(),
    }
    if warm_up:
        del expected["divergence"]
        student = None  # nobody may ask it
    expected["loss"] = sum(weights[name] * value for name, value in expected.items())
    terms = method.synthesizer.loss(images, None, method.teacher, student, warm_up)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)
    slopes = [torch.autograd.grad(each["loss"], images)[0] for each in (terms, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


def test_warm_up(make, turns, fit):
    """The generator learns the statistics, and the student waits."""
    method, found = make(DFQ, generator_lr=0.01), []
    student = copy.deepcopy(method.student.state_dict())

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, item, i):
            if trainer.current_epoch == 0:
                with torch.no_grad():
                    images = method.synthesizer.sample(64)
                    found.append(float(statistics_loss(method.teacher, images)))

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                state = method.student.state_dict()
                assert all(torch.equal(student[key], value) for key, value in state.items())

    fit(method, turns(epochs=1, warmup_epochs=1, warmup_rounds=15), callbacks=[Watch()])
    assert found[-1] < 0.7 * found[0]
    assert method.student_updates == 3
