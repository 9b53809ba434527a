import itertools
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from nayer_pl import NAYER, InputError, LabelText


@pytest.fixture
def nayer(make):
    return partial(make, NAYER)


@pytest.mark.parametrize("reset_noisy_layer", [True, False])
def test_noisy_layer(nayer, tiny_data, fit, reset_noisy_layer):
    """Drawn for every round, or only once."""
    method, starts = nayer(reset_noisy_layer=reset_noisy_layer, generator_lr=1e-6), []
    synthesizer, start_round = method.synthesizer, method.synthesizer.start_round

    def watched(*arguments):
        start_round(*arguments)
        starts.append(synthesizer.conditioning.noisy_layer.weight.detach().clone())

    synthesizer.start_round = watched
    fit(method, tiny_data())
    assert len(starts) == 4
    changed = [float((b - a).abs().mean()) for a, b in itertools.pairwise(starts)]
    assert all((change > 0.5) == reset_noisy_layer for change in changed)


def test_generator_life(nayer, tiny_data, fit):
    method, seen = nayer(generator_life=2, generator_lr=0.0), []
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
def test_conditioning(nayer, tiny_data, fit, conditioning):
    """Of labels, the same one twice gives one image, and another one another; not so of noise."""
    label_text = torch.randn(3, 5) if conditioning == "lte" else None
    method = nayer(conditioning=conditioning, label_text=label_text, labels_per_layer=4)
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
    ],
)
def test_init__bad_options(nayer, options, message):
    with pytest.raises(InputError, match=message):
        nayer(**options)
