import itertools
import re

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from nayer_pl import InputError, LabelText
from nayer_pl.bank import SynthesisRound


def test_generator__learns_within_a_round(tiny_method, tiny_data, fit):
    method, losses = tiny_method(generator_steps=40), []
    optimize = method._optimize_images

    def watched(item):
        images, terms, names = optimize(item)
        losses.append(terms[:, names.index("loss")])
        return images, terms, names

    method._optimize_images = watched
    fit(method, tiny_data())
    assert len(losses) == 4
    assert all(loss[-10:].mean() < loss[:5].mean() for loss in losses)


@pytest.mark.parametrize("reset", [True, False])
def test_noisy_layer__drawn_every_round_or_once(tiny_method, tiny_data, fit, reset):
    starts = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, method, item, i):
            conditioning = method.synthesizer.conditioning
            if isinstance(item, SynthesisRound):
                start_round = type(conditioning).start_round

                def watched(targets, rng):
                    start_round(conditioning, targets, rng)
                    starts.append(conditioning.noisy_layer.weight.detach().clone())

                conditioning.start_round = watched

    method = tiny_method(reset_noisy_layer=reset, generator_lr=1e-6)
    fit(method, tiny_data(), callbacks=[Watch()])
    assert len(starts) == 4
    changed = [float((b - a).abs().mean()) for a, b in itertools.pairwise(starts)]
    assert all((change > 0.5) == reset for change in changed)


def test_generator__rebuilt_in_place_when_its_life_ends(tiny_method, tiny_data, fit):
    method, seen = tiny_method(generator_life=2, generator_lr=0.0), []
    generator = method.synthesizer.generator
    first = list(generator.parameters())

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(generator.layers[0].weight.detach().clone())

    fit(method, tiny_data({"epochs": 4, "warmup_epochs": 1}), callbacks=[Watch()])
    assert all(a is b for a, b in zip(first, generator.parameters(), strict=True))
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


@pytest.mark.parametrize("names", [["cat", "dog"], ["cat", "dog", "bird", "frog"]])
def test_label_text__number_of_names(tiny_method, names):
    class Never:
        def embed(self, names):
            raise AssertionError("encoded before the number of names was checked")

    answer = f"{len(names)} class names, but the teacher has 3 outputs"
    with pytest.raises(InputError, match=answer):
        tiny_method(label_text=LabelText(names, Never()))


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"label_text": torch.randn(4, 5)}, "[3, d]"),
        ({"label_text": None}, "needs label_text"),
        ({"conditioning": "onehott"}, "conditioning must be 'lte', 'onehot' or 'noise'"),
        ({"labels_per_layer": 0}, "labels_per_layer must be"),
        ({"image_shape": (1, 10, 8)}, "divisible by 4"),
    ],
)
def test_options__refused(tiny_method, options, answer):
    with pytest.raises(InputError, match=re.escape(answer)):
        tiny_method(**options)


@pytest.mark.slow
def test_compile__same_numbers(tiny_method, tiny_data, fit):
    method = tiny_method()
    fit(method, tiny_data())  # statistics of rounds, a student that has learned
    images, targets = torch.rand(12, 1, 8, 8), torch.arange(12) % 3

    def terms_and_gradients():
        method.student.eval().requires_grad_(False)
        results = [method.synthesizer.generate(targets)]
        for warm_up in (False, True):
            x = images.clone().requires_grad_()
            terms = method.synthesizer.loss(x, targets, method.teacher, method.student, warm_up)
            results += [*terms.values(), *torch.autograd.grad(terms["loss"], x)]
        method.student.requires_grad_(True).train()
        loss = method.student_objective(images, targets)
        return [*results, loss, *torch.autograd.grad(loss, list(method.student.parameters()))]

    plain = terms_and_gradients()
    method.synthesizer.compile_steps()
    method.student_objective = torch.compile(method.student_objective, dynamic=False)
    for fast, expected in zip(terms_and_gradients(), plain, strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-3, atol=1e-5)
