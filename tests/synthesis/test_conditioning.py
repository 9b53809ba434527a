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
    [(6, 3, 2), (7, 3, 3), (2, 5, 1), (5, 5, 1), (4, 1, 4), (1, 1, 1)],
)
def test_noisy_layer(batch, per_layer, layers):
    """A linear layer for each set, and its gradients; a smaller batch takes the first ones."""
    noisy = NoisyLayer(4, 6, per_layer, batch)
    noisy.bias.data.normal_()
    assert len(noisy.weight) == layers
    weight, bias = (p.detach().clone().requires_grad_() for p in (noisy.weight, noisy.bias))
    embeddings, slopes = torch.randn(batch, 4), torch.randn(batch, 6)
    rows = [
        row @ weight[i // per_layer] + bias[i // per_layer, 0] for i, row in enumerate(embeddings)
    ]
    out, expected = noisy(embeddings), torch.stack(rows)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(noisy(embeddings[: batch // 2 + 1]), expected[: batch // 2 + 1])
    found = torch.autograd.grad((out * slopes).sum(), [noisy.weight, noisy.bias])
    expected = torch.autograd.grad((expected * slopes).sum(), [weight, bias])
    torch.testing.assert_close(found, expected)


def test_noisy_layer__reset():
    """Standard normal weights, each layer its own; in place, so that an optimizer can stay."""
    noisy = NoisyLayer(40, 50, labels_per_layer=1, batch_size=5)
    optimizer, drawn = torch.optim.SGD(noisy.parameters(), lr=0.1), []
    for seed in (1, 2, 1):
        noisy.bias.data.fill_(3)
        noisy.reset_parameters(seeded(seed))
        drawn += noisy.weight.detach().clone()
        assert not noisy.bias.any()
    for layer in drawn[:10]:
        assert kstest(layer.flatten().numpy(), "norm").pvalue > 1e-3
    assert len(torch.stack(drawn).unique(dim=0)) == 10
    assert torch.equal(torch.stack(drawn[:5]), noisy.weight)
    noisy(torch.ones(5, 40)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(noisy.weight.detach(), torch.stack(drawn[:5]) - 0.1)


def conditioning(**options):
    return LabelConditioning(torch.randn(3, 5), 6, len(TARGETS), 3, **options)


def test_label_conditioning():
    """BatchNorm, then a layer for each set; all of it learns."""
    module = conditioning()
    norm, noisy = module.embedding_norm, module.noisy_layer
    norm.weight.data.normal_(), norm.bias.data.normal_()
    rows = module.embeddings.numpy().astype(np.float64)[TARGETS.numpy()]
    rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + norm.eps)
    rows = rows * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    layers = noisy.weight.detach().numpy()
    expected = np.stack([row @ layers[i // 3] for i, row in enumerate(rows)])
    out = module(TARGETS)
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    out.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (norm.weight, norm.bias, noisy.weight, noisy.bias))


@pytest.mark.parametrize(
    "wrap", [torch.Tensor.half, lambda x: 2 * x.requires_grad_(), nn.Parameter]
)
def test_label_conditioning__embeddings(wrap):
    """Constants of any source, which no checkpoint needs."""
    module = LabelConditioning(wrap(torch.randn(3, 5)), 6, 7, 3)
    assert "embeddings" not in module.state_dict()
    assert not module.embeddings.requires_grad
    names = {
        "embedding_norm.weight",
        "embedding_norm.bias",
        "noisy_layer.weight",
        "noisy_layer.bias",
    }
    assert {name for name, _ in module.named_parameters()} == names
    for _ in range(2):
        out = module(TARGETS)
        assert out.dtype == torch.float32
        out.sum().backward()


@pytest.mark.parametrize("reset_noisy_layer", [True, False])
def test_label_conditioning__rounds(reset_noisy_layer):
    """A noisy layer for every round, or one for the run of this rank."""
    module = conditioning(reset_noisy_layer=reset_noisy_layer)
    outputs = [module(TARGETS)]
    module.start_run(seeded(3))
    outputs.append(module(TARGETS))
    for seed in (1, 2, 1):
        module.start_round(TARGETS, seeded(seed))
        outputs.append(module(TARGETS))
    kinds = torch.stack(outputs).flatten(1).unique(dim=0, return_inverse=True)[1].tolist()
    same = [[i for i, other in enumerate(kinds) if other == kind] for kind in kinds]
    rounds = [[0, 1], [0, 1], [2, 4], [3], [2, 4]]
    assert same == (rounds if reset_noisy_layer else [[0], *4 * [[1, 2, 3, 4]]])


def test_label_conditioning__reset():
    """BatchNorm starts again, in place; the noisy layer stays."""
    module = conditioning()
    parameters, noise = list(module.parameters()), module.noisy_layer.weight.detach().clone()
    norm = module.embedding_norm
    norm.weight.data.fill_(7), norm.bias.data.fill_(7)
    module(TARGETS)
    module.reset_parameters()
    assert all(new is old for new, old in zip(module.parameters(), parameters, strict=True))
    for found, value in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0)):
        assert (found == value).all()
    assert torch.equal(module.noisy_layer.weight, noise)


def test_noise_conditioning():
    """Standard normal, the same for all of a round, whatever the labels; nothing is kept."""
    module, targets, drawn = NoiseConditioning(400), torch.arange(50) % 3, []
    for seed in (1, 2, 1):
        module.start_round(targets, seeded(seed))
        drawn.append(module(targets))
        assert kstest(drawn[-1].flatten().numpy(), "norm").pvalue > 1e-3
        assert torch.equal(module(2 - targets), drawn[-1])
        assert torch.equal(module(targets[:3]), drawn[-1][:3])
    module.reset_parameters()
    assert drawn[0].shape == (50, 400)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert not [*module.parameters(), *module.state_dict()]
