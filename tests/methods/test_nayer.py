import copy
import itertools

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from nayer_pl import CMI, NAYER, DivergenceError, InputError, LabelText, RandomCropFlip
from nayer_pl.bank import SynthesisRound


class Spy(Callback):
    """Keeps what every generator step made and how it was judged."""

    def __init__(self):
        self.rounds, self.steps = [], []

    def on_fit_start(self, trainer, method):
        make, judge, synthesize = method._make, method.invert, method.synthesize

        def spy_make(targets):
            self.made = make(targets)
            return self.made

        def spy_judge(images, targets, warm_up):
            terms = judge(images, targets, warm_up)
            self.steps.append((self.made.detach(), {k: v.detach() for k, v in terms.items()}))
            return terms

        def spy_synthesise(targets, warm_up):
            self.steps = []
            images, history = synthesize(targets, warm_up)
            self.rounds.append((images, history, self.steps, warm_up, targets))
            return images, history

        method._make, method.invert = spy_make, spy_judge
        method.synthesize = spy_synthesise


def test_images_of_the_lowest_loss_are_kept(tiny_method, tiny_data, fit):
    spy = Spy()
    fit(tiny_method(generator_steps=6, generator_lr=0.5), tiny_data(), callbacks=[spy])
    chosen = set()
    for images, _, steps, _, _ in spy.rounds:
        losses = [float(terms["loss"]) for _, terms in steps]
        best = losses.index(min(losses))
        chosen.add(best)
        assert torch.equal(images, steps[best][0])
    assert len(spy.rounds) == 4
    assert chosen != {5}, "the last step is always the best: this test shows nothing"


def test_loss_is_the_weighted_sum_and_warm_up_has_no_adversary(tiny_method, tiny_data, fit):
    spy = Spy()
    fit(tiny_method(bn_weight=3.0, ce_weight=0.7, adv_weight=2.0), tiny_data(), callbacks=[spy])
    assert [warm_up for *_, warm_up, _ in spy.rounds] == [True, True, False, False]
    for _, history, _, warm_up, _ in spy.rounds:
        total = 3.0 * history["bn"] + 0.7 * history["ce"]
        assert ("adv" in history) != warm_up
        if not warm_up:
            total = total + 2.0 * history["adv"]
        torch.testing.assert_close(history["loss"], total)


def test_gradient_is_that_of_the_label_and_the_adversarial_term(tiny_method, terms_written_out):
    method = tiny_method(bn_weight=0, ce_weight=0.7, adv_weight=2.0)
    terms_written_out(method, lambda x, y: method.invert(x, y, warm_up=False)["loss"])


def test_a_round_leaves_the_student_alone(tiny_method, tiny_data, fit):
    method = tiny_method()
    before = copy.deepcopy(method.student.state_dict())
    fit(method, tiny_data(), limit_train_batches=1, max_epochs=2)
    assert method.rounds == 2
    assert all(torch.equal(before[k], v) for k, v in method.student.state_dict().items())
    assert all(p.grad is None for p in [*method.student.parameters(), *method.teacher.parameters()])


def test_generator_learns_within_a_round(tiny_method, tiny_data, fit):
    spy = Spy()
    fit(tiny_method(generator_steps=40), tiny_data(), callbacks=[spy])
    for _, history, _, _, _ in spy.rounds:
        assert history["loss"][-10:].mean() < history["loss"][:5].mean()


@pytest.mark.parametrize("reset_noisy_layer", [True, False])
def test_noisy_layer_starts_every_round_anew_or_never(
    tiny_method, tiny_data, fit, reset_noisy_layer
):
    starts = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, method, item, i):
            if isinstance(item, SynthesisRound):
                self.parameter = method.conditioning.noisy_layer.weight
                start_round = type(method.conditioning).start_round

                def watched(targets, rng):
                    start_round(method.conditioning, targets, rng)
                    starts.append(self.parameter.detach().clone())

                method.conditioning.start_round = watched

    method = tiny_method(reset_noisy_layer=reset_noisy_layer, generator_lr=1e-6)
    fit(method, tiny_data(), callbacks=[Watch()])
    assert len(starts) == 4
    changed = [float((b - a).abs().mean()) for a, b in itertools.pairwise(starts)]
    assert all((change > 0.5) == reset_noisy_layer for change in changed)


def test_generator_is_rebuilt_in_place_when_its_life_ends(tiny_method, tiny_data, fit):
    method = tiny_method(generator_life=2, generator_lr=0.0)
    first = list(method.generator.parameters())
    seen = []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(method.generator.layers[0].weight.detach().clone())

    fit(method, tiny_data({"epochs": 4, "warmup_epochs": 1}), callbacks=[Watch()])
    assert all(a is b for a, b in zip(first, method.generator.parameters(), strict=True))
    rebuilt = [e for e in range(1, 5) if not torch.equal(seen[e], seen[e - 1])]
    assert rebuilt == [1, 2, 4]  # when distillation begins, then every second epoch


def test_adam_starts_afresh_in_every_round(tiny_method, tiny_data, fit):
    ages = []

    def look(adam, *_):
        ages.append({int(state["step"]) for state in adam.state.values()})

    class Watch(Callback):
        def on_train_start(self, trainer, method):
            trainer.optimizers[1].register_step_post_hook(look)

    fit(tiny_method(generator_steps=4), tiny_data(), callbacks=[Watch()])
    assert ages == 4 * [{1}, {2}, {3}, {4}]


@pytest.mark.parametrize("conditioning", ["lte", "onehot", "noise"])
def test_every_conditioning_runs(tiny_method, tiny_data, fit, conditioning):
    """Of labels, the same one twice gives one image, and another one another; not so of noise."""
    spy = Spy()
    label_text = torch.randn(3, 5) if conditioning == "lte" else None
    method = tiny_method(conditioning=conditioning, label_text=label_text, labels_per_layer=4)
    fit(method, tiny_data(), callbacks=[spy])
    assert len(spy.rounds) == 4
    targets = torch.tensor([0, 1, 0, 2])
    method.eval().conditioning.start_round(targets)
    images = method.generator(method.conditioning(targets))
    assert torch.equal(images[0], images[2]) == (conditioning != "noise")
    assert not torch.equal(images[0], images[1])


def plain_generator(features, image_shape):
    """Modules of torch alone, a transposed convolution among them."""
    wide = nn.Sequential(nn.Linear(features, 4 * 16), nn.Unflatten(1, (4, 4, 4)))
    return nn.Sequential(wide, nn.ConvTranspose2d(4, image_shape[0], 2, stride=2), nn.Sigmoid())


@pytest.mark.parametrize("make", [NAYER, CMI])
def test_any_module_can_be_the_generator(make, tiny_classifier, tiny_data, fit):
    """It starts from scratch in the first distillation epoch (NAYER), or in every round (CMI)."""
    method = make(
        tiny_classifier(), tiny_classifier(), (1, 8, 8), generator=plain_generator, round_size=12,
        generator_steps=2, generator_lr=0.0, check_teacher=False,
        **({"label_text": torch.randn(3, 5)} if make is NAYER else {}),
    )  # fmt: skip
    layers = method.generator[0][0], method.generator[1]
    before = [layer.weight.clone() for layer in layers]
    fit(method, tiny_data())
    assert not any(torch.equal(old, new.weight) for old, new in zip(before, layers, strict=True))


def test_augmentation_is_seen_by_the_judges_but_not_banked(tiny_method, tiny_data, fit):
    spy = Spy()
    method = tiny_method(augmentation=RandomCropFlip(2, flip=True))
    teacher_saw = []
    method.statistics.register_forward_pre_hook(lambda _, inputs: teacher_saw.append(inputs[0]))
    data = tiny_data()
    fit(method, data, callbacks=[spy])
    images = spy.rounds[0][0]
    banked = data.bank.images[:12].float() / 255
    torch.testing.assert_close(banked, images, atol=0.5 / 255 + 1e-6, rtol=0)
    made = spy.rounds[0][2][0][0]
    shown = next(x for x in teacher_saw if len(x) == 12)
    assert not torch.equal(made, shown)


def test_nan_in_a_round_names_the_term_and_reaches_neither_bank_nor_student(
    tiny_method, tiny_data, fit
):
    method, data = tiny_method(generator_steps=5), tiny_data()
    before = copy.deepcopy(method.student.state_dict())
    loss, calls = method.statistics.loss, []

    def broken():
        calls.append(1)
        return loss() * (float("nan") if len(calls) == 8 else 1.0)

    method.statistics.loss = broken
    with pytest.raises(DivergenceError, match=r"'bn' became nan at step 3 of round 2"):
        fit(method, data)
    assert data.bank.num_added == 12
    assert all(torch.equal(before[k], v) for k, v in method.student.state_dict().items())


def test_a_teacher_without_batchnorm_needs_a_weight_of_zero(
    tiny_method, tiny_classifier, tiny_data, fit
):
    with pytest.raises(InputError, match=r"model\.bn_weight=0"):
        tiny_method(teacher=tiny_classifier(norm=False))
    method = tiny_method(teacher=tiny_classifier(norm=False), bn_weight=0)
    fit(method, tiny_data())
    assert method.student_updates == 6


@pytest.mark.parametrize("names", [["cat", "dog"], ["cat", "dog", "bird", "frog"]])
def test_class_names_must_be_as_many_as_outputs(tiny_method, names):
    class Never:
        def embed(self, names):
            raise AssertionError("encoded before the number of names was checked")

    with pytest.raises(
        InputError, match=f"{len(names)} class names, but the teacher has 3 outputs"
    ):
        tiny_method(label_text=LabelText(names, Never()))


def test_bad_shapes_are_refused(tiny_method):
    with pytest.raises(InputError, match=r"\[3, d\]"):
        tiny_method(label_text=torch.randn(4, 5))
    with pytest.raises(InputError, match="needs label_text"):
        tiny_method(label_text=None)
    with pytest.raises(InputError, match="must be lte or onehot or noise, not onehott"):
        tiny_method(conditioning="onehott")
    with pytest.raises(InputError, match="at least 1, not 0"):
        tiny_method(labels_per_layer=0)
    with pytest.raises(InputError, match="divisible by 4"):
        tiny_method(image_shape=(1, 10, 8))


@pytest.mark.slow
def test_compiled_steps_compute_the_same(tiny_method, tiny_data, fit):
    method = tiny_method()
    fit(method, tiny_data())  # statistics of rounds, a student that has learned
    method.student.eval().requires_grad_(False)
    images = torch.rand(12, *method.teacher.network.conv1.weight.shape[1:2], 8, 8)
    targets = torch.arange(12) % 3

    def terms_and_gradients():
        results = [method._make(targets)]
        for warm_up in (False, True):
            x = images.clone().requires_grad_()
            terms = method.invert(x, targets, warm_up)
            results += [*terms.values(), *torch.autograd.grad(terms["loss"], x)]
        method.student.requires_grad_(True).train()
        loss = method.student_loss(images)
        results += [loss, *torch.autograd.grad(loss, list(method.student.parameters()))]
        method.student.eval().requires_grad_(False)
        return results

    plain = terms_and_gradients()
    method.compile_steps()
    for fast, expected in zip(terms_and_gradients(), plain, strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-3, atol=1e-5)


def test_rounds_larger_than_the_noisy_layer_are_refused_before_the_first(
    tiny_method, tiny_data, fit
):
    with pytest.raises(
        InputError, match=r"round_size must be at least plan\.round_size.* 12, not 8"
    ):
        fit(tiny_method(round_size=8), tiny_data({"round_size": 12}))
