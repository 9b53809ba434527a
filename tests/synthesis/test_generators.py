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


def convolutions(generator):
    return [m.out_channels for m in generator.modules() if isinstance(m, nn.Conv2d)]


def second_implementation(generator, features, shape, upsamplings):
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


@pytest.mark.parametrize("upsamplings", [1, 2, 4])
def test_forward(upsamplings):
    generator = Generator(7, (3, 16, 32), width=3, upsamplings=upsamplings)
    for parameter in generator.parameters():
        nn.init.normal_(parameter, std=0.5)
    features = torch.randn(4, 7, requires_grad=True)
    expected = second_implementation(generator, features, (3, 16, 32), upsamplings)
    found = generator(features)
    assert found.shape == (4, 3, 16, 32)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    (found * torch.randn_like(found)).sum().backward()
    weights = (p for p in generator.parameters() if p.ndim > 1)
    assert all(each.grad.abs().sum() > 0 for each in (features, *weights))


@pytest.mark.parametrize("size", [32, 64])
def test_layers(size):
    """Those of the paper."""
    generator = Generator(1000, (3, size, size))
    start = 128 * (size // 4) ** 2
    sizes = [
        1000 * start, start, 128, 128,
        128 * 128 * 9, 128, 128, 128,
        128 * 64 * 9, 64, 64, 64,
        64 * 3 * 9, 3,
    ]  # fmt: skip
    assert [parameter.numel() for parameter in generator.parameters()] == sizes


def test_layers__deep():
    """From 14x14, and nowhere wider than MAX_CHANNELS."""
    with torch.device("meta"):
        generator = DeepGenerator(1000, (3, 224, 224), width=100)
    assert generator.layers[0].out_features == MAX_CHANNELS * 14 * 14
    assert convolutions(generator) == [512, 400, 200, 100, 3]


@pytest.mark.parametrize("shape", [(2, 5, 8, 6), (1, 3, 1, 1), (3, 4, 7, 2)])
@pytest.mark.parametrize("out_channels", [5, 32])
def test_upsampled_conv(shape, out_channels):
    fast = UpsampledConv(shape[1], out_channels)
    conv = nn.Conv2d(shape[1], out_channels, 3, padding=1)
    conv.load_state_dict(fast.state_dict())
    plain = nn.Sequential(nn.Upsample(scale_factor=2), conv)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(shape[0], out_channels, 2 * shape[2], 2 * shape[3], dtype=torch.float64)
    results = []
    for module in (fast.double(), plain.double()):
        out = module(x)
        results.append(
            [out, *torch.autograd.grad((out * factors).sum(), [x, *module.parameters()])]
        )
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("shape", "upsamplings"), [((3, 30, 32), 2), ((3, 32, 30), 2), ((1, 7, 7), 1), ((3, 40, 40), 4)]
)
def test_sides(shape, upsamplings):
    with pytest.raises(InputError, match=f"{shape[1]}x{shape[2]}.*divisible by {2**upsamplings}"):
        Generator(4, shape, upsamplings=upsamplings)


PLAIN = nn.Linear(5, 64), nn.Unflatten(1, (64, 1, 1)), nn.ConvTranspose2d(64, 40, 3, bias=False)


@pytest.fixture(params=[Generator(5, (1, 8, 8), width=64), nn.Sequential(*PLAIN)])
def used(request):
    """A generator that has learned something, and its parameters."""
    generator = request.param
    parameters = list(generator.parameters())
    for parameter in parameters:
        parameter.data.fill_(9)
    generator(torch.randn(4, 5))
    return generator, parameters


def check_statistics(generator):
    for name, buffer in generator.named_buffers():
        assert torch.equal(buffer, torch.full_like(buffer, name.endswith("running_var")))


def test_reset_parameters_(used):
    """In place, and from the distribution of a new generator."""
    generator, parameters = used
    torch.manual_seed(3)
    reset_parameters_(generator)
    assert all(new is old for new, old in zip(generator.parameters(), parameters, strict=True))
    check_statistics(generator)
    torch.manual_seed(3)
    for module in generator.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            bound = module.weight[0].numel() ** -0.5
            for found in filter(lambda x: x is not None, (module.weight, module.bias)):
                expected = nn.init.uniform_(torch.empty_like(found), -bound, bound)
                torch.testing.assert_close(found.detach(), expected)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_dcgan_reset_(used):
    """As Radford et al. (2016) say: all weights are N(0, 0.02), around 1 in a BatchNorm."""
    generator, parameters = used
    dcgan_reset_(generator, torch.Generator().manual_seed(0))
    first = [parameter.detach().clone() for parameter in parameters]
    for seed, alike in ((1, False), (0, True)):
        dcgan_reset_(generator, torch.Generator().manual_seed(seed))
        assert all(map(torch.equal, generator.parameters(), first)) == alike
    assert all(new is old for new, old in zip(generator.parameters(), parameters, strict=True))
    check_statistics(generator)
    for module in generator.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
            mean = 1 if isinstance(module, nn.BatchNorm2d) else 0
            drawn = module.weight.detach().flatten().numpy()
            assert kstest((drawn - mean) / 0.02, "norm").pvalue > 1e-3
            assert module.bias is None or (module.bias == 0).all()
