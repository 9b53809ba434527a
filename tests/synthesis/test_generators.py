import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest
from torch import nn

from nayer_pl import DeepGenerator, Generator, InputError
from nayer_pl.synthesis.generators import (
    MAX_CHANNELS,
    UpsampledConv,
    dcgan_reset_,
    reset_parameters_,
)


def written_out(generator, features, shape, upsamplings):
    """Training mode, from the bare parameters in their order."""

    def norm(x, weight, bias):
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), False, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt()
        return x * weight[:, None, None] + bias[:, None, None]

    p = iter(generator.parameters())
    scale = 2**upsamplings
    x = features @ next(p).T + next(p)
    x = x.reshape(len(x), -1, shape[1] // scale, shape[2] // scale)
    x = norm(x, next(p), next(p))
    for _ in range(upsamplings):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = norm(F.conv2d(x, next(p), next(p), padding=1), next(p), next(p))
        x = torch.where(x > 0, x, 0.2 * x)
    return 1 / (1 + torch.exp(-F.conv2d(x, next(p), next(p), padding=1)))


def channels(generator):
    return [m.out_channels for m in generator.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("upsamplings", [1, 2, 4])
def test_forward(upsamplings):
    generator = Generator(7, (3, 16, 32), width=3, upsamplings=upsamplings)
    for parameter in generator.parameters():
        nn.init.normal_(parameter, std=0.5)
    features = torch.randn(4, 7, requires_grad=True)
    images = generator(features)
    expected = written_out(generator, features, (3, 16, 32), upsamplings)
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-4)
    (images * torch.randn(images.shape)).sum().backward()
    learning = [features, *(p for p in generator.parameters() if p.ndim > 1)]
    assert all(each.grad.abs().sum() > 0 for each in learning)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (3, 64, 64), (2, 8, 20)])
def test_images(shape):
    images = Generator(12, shape, width=8)(3 * torch.randn(5, 12))
    assert images.shape == (5, *shape)
    assert 0 <= images.min() < images.max() <= 1


@pytest.mark.parametrize("size", [32, 64])
def test_layers(size):
    """Those of the paper."""
    start = 128 * (size // 4) ** 2
    sizes = [
        1000 * start, start, 128, 128,
        128 * 128 * 9, 128, 128, 128,
        128 * 64 * 9, 64, 64, 64,
        64 * 3 * 9, 3,
    ]  # fmt: skip
    assert [p.numel() for p in Generator(1000, (3, size, size)).parameters()] == sizes


def test_layers__limit():
    assert channels(Generator(4, (3, 8, 8), 200, upsamplings=3)) == [MAX_CHANNELS, 400, 200, 3]


def test_deep_generator():
    """Five convolutions, from 14x14 pixels."""
    images = DeepGenerator(6, (3, 224, 224), width=4)(torch.randn(2, 6))
    assert images.shape == (2, 3, 224, 224)
    assert 0 <= images.min() < images.max() <= 1
    with torch.device("meta"):
        generator = DeepGenerator(1000, (3, 224, 224))
    assert channels(generator) == [512, 256, 128, 64, 3]
    assert generator.layers[0].out_features == 512 * 14 * 14


@pytest.mark.parametrize(("features", "warns"), [(100, False), (1000, True)])
def test_large_first_layer(caplog, features, warns):
    with torch.device("meta"):
        Generator(features, (3, 224, 224))
    assert ("DeepGenerator" in caplog.text) == warns


@pytest.mark.parametrize("shape", [(2, 5, 8, 6), (1, 3, 1, 1), (3, 4, 7, 2)])
@pytest.mark.parametrize("out_channels", [5, 32])
def test_upsampled_conv(shape, out_channels):
    """It is an upsampling and a convolution, in its images and in its gradients."""
    fast = UpsampledConv(shape[1], out_channels).double()
    conv = nn.Conv2d(shape[1], out_channels, 3, padding=1).double()
    conv.load_state_dict(fast.state_dict())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(shape[0], out_channels, 2 * shape[2], 2 * shape[3], dtype=torch.float64)
    results = []
    for module in (fast, nn.Sequential(nn.Upsample(scale_factor=2), conv)):
        out = module(x)
        gradients = torch.autograd.grad((out * weights).sum(), [x, *module.parameters()])
        results.append([out, *gradients])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 30, 32), {}, "30x32 images.*divisible by 4"),
        ((3, 32, 30), {}, "32x30 images.*divisible by 4"),
        ((3, 40, 40), {"upsamplings": 4}, "divisible by 16"),
        ((3, 32, 32), {"width": 0}, "width must be at least 1"),
    ],
)
def test_impossible_generator(shape, options, message):
    with pytest.raises(InputError, match=message):
        Generator(4, shape, **options)


def reset_as_torch(generator, rng):
    torch.manual_seed(rng.initial_seed())
    reset_parameters_(generator)


@pytest.mark.parametrize("reset", [reset_as_torch, dcgan_reset_])
def test_reset(reset):
    """In place; torch's uniform distributions, or DCGAN's normal ones without a bias."""
    generator = Generator(50, (1, 8, 8), width=16)
    parameters, drawn = list(generator.parameters()), []
    for parameter in parameters:
        parameter.data.fill_(9)
    generator(torch.randn(4, 50))  # changes running statistics
    for seed in (1, 2, 1):
        reset(generator, torch.Generator().manual_seed(seed))
        drawn.append(nn.utils.parameters_to_vector(parameters))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert all(new is old for new, old in zip(generator.parameters(), parameters, strict=True))
    for name, buffer in generator.named_buffers():
        assert (buffer == name.endswith("running_var")).all()
    for layer in generator.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            norm = isinstance(layer, nn.BatchNorm2d)
            bound = layer.weight[0].numel() ** -0.5
            expected = ("uniform", (-bound, 2 * bound))
            if reset is dcgan_reset_:
                expected = ("norm", (float(norm), 0.02))
                assert not layer.bias.any()
            if norm and reset is reset_as_torch:
                assert (layer.weight == 1).all()
                assert not layer.bias.any()
            else:
                assert kstest(layer.weight.detach().flatten().numpy(), *expected).pvalue > 1e-3
