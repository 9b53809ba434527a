import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from nayer_pl import Classifier, InputError, build_classifier, save_classifier
from nayer_pl.networks import vgg11, wrn16_1

WRN = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 6}


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [(3, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), (3, (0.3,), (0.6,)), (1, [0.5], [2])],
)
def test_forward__normalizes(channels, mean, std):
    images = np.random.default_rng(0).random((4, channels, 5, 6), dtype=np.float32)
    seen = Classifier(nn.Identity(), mean, std)(torch.from_numpy(images)).numpy()
    expected = np.empty_like(images)
    for c in range(channels):
        expected[:, c] = (images[:, c] - mean[c % len(mean)]) / std[c % len(std)]
    np.testing.assert_allclose(seen, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.5], [0.5, 0.5]),
        ([0.5], [0]),
        ([0.5, 0.5], [1, -1]),
        ([127], [64]),
        (None, [0.5]),
        ([0.5], None),
    ],
)
def test_init__impossible_normalization(mean, std):
    with pytest.raises(InputError, match="std"):
        Classifier(nn.Identity(), mean, std)


def test_forward__without_normalization():
    classifier = Classifier(nn.Identity())
    assert not classifier.has_normalization
    assert classifier.normalization == {}
    with pytest.raises(InputError, match="mean and std"):
        classifier(torch.rand(1, 3, 4, 4))
    with pytest.raises(InputError, match="mean and std"):
        Classifier(nn.Identity()).copy_normalization(classifier)


def test_copy_normalization():
    teacher = Classifier(nn.Identity(), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    student = Classifier(nn.Identity())
    student.copy_normalization(teacher)
    assert student.has_normalization
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(student(images), teacher(images))
    assert list(student.state_dict()) == []
    student.mean += 1  # its own, not the teacher's
    assert teacher.mean[0, 0, 0, 0] == pytest.approx(0.1)


def test_to__device_and_dtype():
    classifier = Classifier(nn.Identity(), [0.5], [0.5]).to(torch.float64)
    assert classifier(torch.ones(1, 3, 2, 2, dtype=torch.float64)).dtype == torch.float64
    assert classifier.to("meta").mean.device.type == "meta"


def test_description__rebuilds():
    classifier = build_classifier(WRN, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert json.loads(json.dumps(classifier.description)) == classifier.description
    rebuilt = build_classifier(**classifier.description)
    assert torch.equal(rebuilt.mean, classifier.mean)
    assert torch.equal(rebuilt.std, classifier.std)
    rebuilt.load_state_dict(classifier.state_dict())
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(rebuilt.eval()(images), classifier.eval()(images))
    assert Classifier(nn.Linear(2, 2)).description is None


@pytest.mark.parametrize("training", [True, False])
def test_num_classes(training):
    """It changes nothing."""
    without = Classifier(wrn16_1(6)).train(training)  # as a student, at first
    before = copy.deepcopy(without.state_dict())
    assert without.num_classes((3, 32, 32)) == 6
    assert {module.training for module in without.modules()} == {training}
    assert all(torch.equal(v, before[k]) for k, v in without.state_dict().items())
    assert Classifier(wrn16_1(11, channels=1), (0.5,), (0.5,)).num_classes([1, 28, 28]) == 11


@pytest.mark.parametrize(
    ("network", "mean", "shape", "said"),
    [
        (wrn16_1(6), [0.5], (1, 32, 32), r"WideResNet.*\(1, 32"),  # wrong number of channels
        (vgg11(6), [0.5], (3, 8, 8), r"VGG.*\(3, 8"),  # too small for four halvings
        (nn.Linear(32, 6), [0.5], (3, 32, 16), r"Linear.*\(3, 32"),  # not for images
        (wrn16_1(6, 1), [0.5] * 3, (1, 28, 28), "mean and std have 3 values, .* 1 channels"),
    ],
)
def test_num_classes__wrong_shape(network, mean, shape, said):
    with pytest.raises(InputError, match=said):
        Classifier(network, mean, mean).num_classes(shape)


class Auxiliary(nn.Module):
    """As GoogLeNet: more outputs in training mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3))

    def forward(self, x):
        logits = self.body(x)
        return (logits, logits) if self.training else logits


def test_check_train_forward():
    classifier = Classifier(Auxiliary(), (0.5,), (0.5,)).eval()
    assert classifier.num_classes((1, 4, 4)) == 3
    before = copy.deepcopy(classifier.state_dict())
    said = "Auxiliary must return logits .* not tuple, in training mode"
    with pytest.raises(InputError, match=said):
        classifier.check_train_forward((1, 4, 4))
    assert not any(module.training for module in classifier.modules())
    Classifier(classifier.network.body, (0.5,), (0.5,)).check_train_forward((1, 4, 4))
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())


def test_build_classifier__weights(tmp_path):
    trained = build_classifier(WRN, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)).eval()
    save_classifier(tmp_path / "s.safetensors", trained)
    torch.save({"model": trained.network.state_dict()}, tmp_path / "s.pth")
    images = torch.rand(2, 3, 8, 8)
    student = build_classifier(WRN, weights=tmp_path / "s.safetensors")
    assert torch.equal(student.eval()(images), trained(images))
    assert all(p.requires_grad for p in student.parameters())
    student = build_classifier(WRN, weights=tmp_path / "s.pth")
    assert not student.has_normalization
    student.copy_normalization(trained)
    assert torch.equal(student.eval()(images), trained(images))
