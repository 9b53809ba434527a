import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from nayer_pl import NoisyLayer
from nayer_pl.synthesis import LabelConditioning, NoiseConditioning

TARGETS = torch.tensor([2, 0, 1, 1, 2, 0, 0])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("batch", "per_layer", "layers"),
    [(6, 3, 2), (7, 3, 3), (8, 3, 3), (2, 5, 1), (5, 5, 1), (4, 1, 4), (1, 1, 1)],
)
def test_noisy_layer(batch, per_layer, layers):
    """Each set goes through a linear layer of its own, also where the last one is not full."""
    noisy = NoisyLayer(4, 6, per_layer, batch)
    noisy.bias.data.normal_()
    assert len(noisy.weight) == layers
    embeddings, factors = torch.randn(batch, 4), torch.randn(batch, 6)
    rows = [noisy.weight[i // per_layer].T @ row for i, row in enumerate(embeddings)]
    biases = [noisy.bias[i // per_layer, 0] for i in range(batch)]
    found, expected = noisy(embeddings), torch.stack(rows) + torch.stack(biases)
    torch.testing.assert_close(found, expected)
    parameters = [noisy.weight, noisy.bias]
    slopes = [torch.autograd.grad((x * factors).sum(), parameters) for x in (found, expected)]
    torch.testing.assert_close(*slopes)
    half = (batch + 1) // 2
    torch.testing.assert_close(noisy(embeddings[:half]), found[:half])


def test_noisy_layer__reset():
    """N(0, 1) from the given random numbers, and zero; the optimizer keeps its parameters."""
    noisy = NoisyLayer(40, 50, labels_per_layer=1, batch_size=5)
    optimizer = torch.optim.SGD(noisy.parameters(), lr=0.1)
    noisy.bias.data.fill_(3)
    draws = []
    for seed in (1, 2, 1):
        noisy.reset_parameters(seeded(seed))
        draws.append(noisy.weight.detach().clone())
    assert (draws[0] != draws[1]).float().mean() > 0.99
    assert torch.equal(draws[0], draws[2])
    assert not noisy.bias.any()
    for layer in draws[0]:
        assert kstest(layer.flatten().numpy(), "norm").pvalue > 1e-3
    noisy(torch.ones(5, 40)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(noisy.weight.detach(), draws[2] - 0.1)


def conditioning(**options):
    torch.manual_seed(0)
    return LabelConditioning(torch.randn(3, 5), 6, len(TARGETS), 3, **options)


def test_label_conditioning():
    """BatchNorm, then a layer per set; and every part learns."""
    module = conditioning()
    norm = module.embedding_norm
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    rows = module.embeddings.numpy().astype(np.float64)[TARGETS.numpy()]
    spread = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + norm.eps)
    spread = spread * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    layers = module.noisy_layer.weight.detach().numpy()
    expected = np.stack([row @ layers[i // 3] for i, row in enumerate(spread)])
    found = module(TARGETS)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@pytest.mark.parametrize(
    "wrap", [lambda x: 2 * x.requires_grad_(), nn.Parameter, torch.Tensor.half]
)
def test_label_conditioning__embeddings(wrap):
    """Constants, also those of a model that learns or has half precision."""
    module = LabelConditioning(wrap(torch.randn(3, 5)), 6, 7, 3)
    assert not module.embeddings.requires_grad
    assert "embeddings" not in {**module.state_dict(), **dict(module.named_parameters())}
    for _ in range(2):
        out = module(TARGETS)
        out.sum().backward()
    assert out.dtype == torch.float32


@pytest.mark.parametrize("reset", [True, False])
def test_label_conditioning__round(reset):
    module, outputs = conditioning(reset_noisy_layer=reset), []
    for seed in (1, 2, 1):
        module.start_round(TARGETS, seeded(seed))
        outputs.append(module(TARGETS))
    assert torch.equal(outputs[0], outputs[1]) != reset
    assert torch.equal(outputs[0], outputs[2])
    module.start_run(seeded(3))  # a rank that keeps its layer draws it here
    assert torch.equal(module(TARGETS), outputs[0]) == reset


def test_label_conditioning__reset():
    """It forgets what was learned, in place, and keeps the noisy layer."""
    module = conditioning()
    norm, parameters = module.embedding_norm, list(module.parameters())
    noise = module.noisy_layer.weight.detach().clone()
    norm.weight.data.fill_(7)
    norm.bias.data.fill_(7)
    module(TARGETS)
    module.reset_parameters()
    assert all(new is old for new, old in zip(module.parameters(), parameters, strict=True))
    assert norm.weight.tolist() == [1.0] * 5
    assert norm.bias.tolist() == norm.running_mean.tolist() == [0.0] * 5
    assert torch.equal(module.noisy_layer.weight, noise)


def test_noise_conditioning():
    """Standard normal, other noise in every round, and the same within one."""
    module, targets, rounds = NoiseConditioning(400), torch.arange(50) % 3, []
    for seed in (1, 2):
        module.start_round(targets, seeded(seed))
        rounds.append(module(targets))
        assert torch.equal(module(2 - targets), rounds[-1])
        assert torch.equal(module(targets[:3]), rounds[-1][:3])
    assert rounds[0].shape == (50, 400)
    assert kstest(rounds[0].flatten().numpy(), "norm").pvalue > 1e-3
    assert (rounds[0] != rounds[1]).float().mean() > 0.99
    module.reset_parameters()
    assert list(module.parameters()) == []
    assert module.state_dict() == {}
