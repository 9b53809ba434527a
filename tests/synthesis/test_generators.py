import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nayer_pl import Generator, InputError
from nayer_pl.synthesis import DeepGenerator
from nayer_pl.synthesis.generators import MAX_CHANNELS, UpsampledConv, reset_parameters_


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


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 8, 20)])
def test_images_have_the_wanted_shape_and_range(shape):
    images = Generator(12, shape, width=8)(3 * torch.randn(5, 12))
    assert images.shape == (5, *shape)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0


def test_deep_generator_makes_photographs():
    images = DeepGenerator(6, (3, 224, 224), width=4)(torch.randn(2, 6))
    assert images.shape == (2, 3, 224, 224)
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("upsamplings", [1, 2, 4])
def test_forward_matches_a_second_implementation(upsamplings):
    torch.manual_seed(0)
    generator = Generator(7, (3, 16, 32), width=3, upsamplings=upsamplings)
    for parameter in generator.parameters():
        nn.init.normal_(parameter, std=0.5)
    features = torch.randn(4, 7)
    expected = second_implementation(generator, features, (3, 16, 32), upsamplings)
    torch.testing.assert_close(generator(features), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [32, 64])
def test_layers_are_those_of_the_paper(size):
    generator = Generator(1000, (3, size, size))
    start = 128 * (size // 4) ** 2
    sizes = [
        1000 * start, start, 128, 128,
        128 * 128 * 9, 128, 128, 128,
        128 * 64 * 9, 64, 64, 64,
        64 * 3 * 9, 3,
    ]  # fmt: skip
    assert [parameter.numel() for parameter in generator.parameters()] == sizes


def test_deep_generator_has_five_convolutions_from_fourteen_pixels():
    with torch.device("meta"):
        generator = DeepGenerator(1000, (3, 224, 224))
    convolutions = [m.out_channels for m in generator.modules() if isinstance(m, nn.Conv2d)]
    linear = next(m for m in generator.modules() if isinstance(m, nn.Linear))
    assert convolutions == [512, 256, 128, 64, 3]
    assert linear.out_features == 512 * 14 * 14


@pytest.mark.parametrize("shape", [(2, 5, 8, 6), (1, 3, 1, 1), (3, 4, 7, 2)])
@pytest.mark.parametrize("out_channels", [5, 32])
def test_upsampled_convolution_is_upsampling_then_convolution(shape, out_channels):
    fast = UpsampledConv(shape[1], out_channels).double()
    plain = nn.Sequential(
        nn.Upsample(scale_factor=2), nn.Conv2d(shape[1], out_channels, 3, padding=1)
    )
    plain = plain.double()
    plain[1].load_state_dict(fast.state_dict())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(shape[0], out_channels, 2 * shape[2], 2 * shape[3], dtype=torch.float64)
    results = []
    for module in (fast, plain):
        out = module(x)
        gradients = torch.autograd.grad((out * wanted).sum(), [x, *module.parameters()])
        results.append([out, *gradients])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_channels_are_never_more_than_allowed():
    generator = Generator(4, (3, 8, 8), width=200, upsamplings=3)
    widths = [m.out_channels for m in generator.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [MAX_CHANNELS, 400, 200, 3]


@pytest.mark.parametrize(
    ("shape", "upsamplings"), [((3, 30, 32), 2), ((3, 32, 30), 2), ((1, 7, 7), 1), ((3, 40, 40), 4)]
)
def test_sides_that_cannot_be_doubled_are_refused(shape, upsamplings):
    with pytest.raises(InputError, match=f"{shape[1]}x{shape[2]}.*divisible by {2**upsamplings}"):
        Generator(4, shape, upsamplings=upsamplings)


def test_deep_generator_refuses_sides_not_divisible_by_sixteen():
    with pytest.raises(InputError, match="divisible by 16"):
        DeepGenerator(4, (3, 28, 28))


def test_reset_starts_anew_in_place():
    generator = Generator(5, (1, 8, 8), width=4)
    parameters = list(generator.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(9)
    generator(torch.randn(4, 5))
    reset_parameters_(generator)
    assert all(new is old for new, old in zip(generator.parameters(), parameters, strict=True))
    assert not any((parameter == 9).any() for parameter in parameters)
    for name, buffer in generator.named_buffers():
        assert torch.equal(buffer, torch.full_like(buffer, name.endswith("running_var")))


def test_reset_draws_from_the_distribution_of_a_new_generator():
    reset, new = Generator(5, (1, 8, 8), width=4), Generator(5, (1, 8, 8), width=4)
    torch.manual_seed(3)
    reset_parameters_(reset)
    torch.manual_seed(3)
    for module in new.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.uniform_(module.bias, -bound, bound)
    for ours, expected in zip(reset.parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_gradient_reaches_features_and_every_weight():
    generator = Generator(5, (2, 8, 8), width=4)
    features = torch.randn(4, 5, requires_grad=True)
    (generator(features) * torch.randn(4, 2, 8, 8)).sum().backward()
    assert features.grad.abs().sum() > 0
    weights = (p for p in generator.parameters() if p.ndim > 1)
    assert all(weight.grad.abs().sum() > 0 for weight in weights)
