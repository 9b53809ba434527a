import itertools

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from nayer_pl import InputError, LabelText


def test_synthesis__lowers_the_loss(tiny_method, tiny_data, fit, watch_rounds):
    method = tiny_method(generator_steps=40)
    rounds = watch_rounds(method)
    fit(method, tiny_data())
    assert len(rounds) == 4
    for each in rounds:
        assert each.terms["loss"][-10:].mean() < each.terms["loss"][:5].mean()


@pytest.mark.parametrize("reset_noisy_layer", [True, False])
def test_noisy_layer(tiny_method, tiny_data, fit, reset_noisy_layer):
    """Drawn for every round, or only once."""
    method, starts = tiny_method(reset_noisy_layer=reset_noisy_layer, generator_lr=1e-6), []
    synthesizer, start_round = method.synthesizer, method.synthesizer.start_round

    def watched(*arguments):
        start_round(*arguments)
        starts.append(synthesizer.conditioning.noisy_layer.weight.detach().clone())

    synthesizer.start_round = watched
    fit(method, tiny_data())
    assert len(starts) == 4
    changed = [float((b - a).abs().mean()) for a, b in itertools.pairwise(starts)]
    assert all((change > 0.5) == reset_noisy_layer for change in changed)


def test_generator_life(tiny_method, tiny_data, fit):
    method, seen = tiny_method(generator_life=2, generator_lr=0.0), []
    first = list(method.synthesizer.generator.parameters())

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(method.synthesizer.generator.layers[0].weight.detach().clone())

    fit(method, tiny_data({"epochs": 4, "warmup_epochs": 1}), callbacks=[Watch()])
    now = method.synthesizer.generator.parameters()
    assert all(a is b for a, b in zip(first, now, strict=True))
    rebuilt = [e for e in range(1, 5) if not torch.equal(seen[e], seen[e - 1])]
    assert rebuilt == [1, 2, 4]  # when distillation begins, then every second epoch


@pytest.mark.parametrize("conditioning", ["lte", "onehot", "noise"])
def test_conditioning(tiny_method, tiny_data, fit, conditioning):
    """Of labels, the same one twice gives one image, and another one another; not so of noise."""
    label_text = torch.randn(3, 5) if conditioning == "lte" else None
    method = tiny_method(conditioning=conditioning, label_text=label_text, labels_per_layer=4)
    fit(method, tiny_data())
    assert method.rounds == 4
    targets, synthesizer = torch.tensor([0, 1, 0, 2]), method.eval().synthesizer
    synthesizer.start_round(targets, method.teacher, None)
    images = synthesizer.generate(targets)
    assert torch.equal(images[0], images[2]) == (conditioning != "noise")
    assert not torch.equal(images[0], images[1])


class Never:
    def embed(self, names):
        raise AssertionError("encoded before the number of names was checked")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_text": LabelText(["cat", "dog"], Never())}, "2 class names, .* 3 outputs"),
        ({"label_text": LabelText(list("abcd"), Never())}, "4 class names, .* 3 outputs"),
        ({"label_text": torch.randn(4, 5)}, r"\[3, d\]"),
        ({"label_text": None}, "needs label_text"),
        ({"conditioning": "onehott"}, "conditioning must be"),
        ({"labels_per_layer": 0}, "labels_per_layer must be at least 1"),
        ({"image_shape": (1, 10, 8)}, "divisible by 4"),
    ],
)
def test_init__bad_options(tiny_method, options, message):
    with pytest.raises(InputError, match=message):
        tiny_method(**options)


@pytest.mark.slow
def test_compile(tiny_method, tiny_data, fit):
    """Compiled steps compute the same."""
    method = tiny_method()
    fit(method, tiny_data())  # statistics of rounds, a student that has learned
    method.student.eval().requires_grad_(False)
    images, targets, synthesizer = torch.rand(12, 1, 8, 8), torch.arange(12) % 3, method.synthesizer

    def terms_and_gradients():
        results = [synthesizer.generate(targets)]
        for warm_up in (False, True):
            x = images.clone().requires_grad_()
            terms = synthesizer.loss(x, targets, method.teacher, method.student, warm_up)
            results += [*terms.values(), *torch.autograd.grad(terms["loss"], x)]
        method.student.requires_grad_(True).train()
        loss = method.student_objective(images, targets)
        results += [loss, *torch.autograd.grad(loss, list(method.student.parameters()))]
        method.student.eval().requires_grad_(False)
        return results

    plain = terms_and_gradients()
    method.student_objective = torch.compile(method.student_objective, dynamic=False)
    synthesizer.compile_steps()
    for fast, expected in zip(terms_and_gradients(), plain, strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-3, atol=1e-5)
