import pytest
import torch
from torch import nn

from nayer_pl import Classifier, FrozenTeacher, create_model
from nayer_pl.networks.features import TeacherFeatures


def norm_inputs(classifier, images):
    """Mean of every channel that goes into a BatchNorm, by hooks of its own: [B, features]."""
    found = []
    norms = [each for each in classifier.modules() if isinstance(each, nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(lambda _, x, y: found.append(x[0])) for norm in norms]
    classifier.eval()(images)
    for handle in handles:
        handle.remove()
    return [torch.stack([image.mean((1, 2)) for image in x]) for x in found]


@pytest.mark.parametrize(("layers", "channels"), [("all", 464), ("stages", 16 + 32 + 64)])
def test_features(layers, channels):
    """Of all layers, or of the last one per resolution."""
    classifier = Classifier(create_model("wrn16_1", 10, channels=1), [0.4], [0.3])
    features = TeacherFeatures(FrozenTeacher(classifier), (1, 16, 16), layers)
    images = torch.rand(2, 1, 16, 16)
    expected = norm_inputs(classifier, images)
    if layers == "stages":
        expected = [expected[-1]]
    found = features(images)
    assert found.shape == (2, features.count) == (2, channels)
    expected = torch.cat(expected, dim=1)
    torch.testing.assert_close(found[:, -expected.shape[1] :], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(features.last(), found)


def test_gradient(tiny_classifier):
    classifier = tiny_classifier()
    features = TeacherFeatures(FrozenTeacher(classifier), (1, 8, 8), "all")
    images = torch.rand(3, 1, 8, 8, requires_grad=True)
    both = features(images), torch.cat(norm_inputs(classifier, images), dim=1)
    slopes = [torch.autograd.grad(each.square().sum(), images)[0] for each in both]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
