import pytest
import torch
from scipy.stats import kstest
from torch import nn

from nayer_pl import NoisyLayer


def separate_layers(noisy):
    """The same weights in one nn.Linear per set."""
    layers = []
    for weight, bias in zip(noisy.weight, noisy.bias, strict=True):
        layer = nn.Linear(*weight.shape)
        layer.weight.data = weight.detach().T.contiguous()
        layer.bias.data = bias.detach()[0]
        layers.append(layer)
    return layers


@pytest.mark.parametrize(
    ("batch", "per_layer", "layers"),
    [(6, 3, 2), (7, 3, 3), (8, 3, 3), (2, 5, 1), (5, 5, 1), (4, 1, 4), (1, 1, 1)],
)
def test_each_set_goes_through_a_linear_layer_of_its_own(batch, per_layer, layers):
    noisy = NoisyLayer(4, 6, per_layer, batch)
    noisy.bias.data.normal_()
    assert len(noisy.weight) == layers
    embeddings = torch.randn(batch, 4)
    linears = separate_layers(noisy)
    expected = torch.stack([linears[i // per_layer](row) for i, row in enumerate(embeddings)])
    torch.testing.assert_close(noisy(embeddings), expected)


def test_smaller_batch_uses_the_first_layers():
    noisy = NoisyLayer(4, 6, labels_per_layer=3, batch_size=12)
    embeddings = torch.randn(12, 4)
    torch.testing.assert_close(noisy(embeddings[:5]), noisy(embeddings)[:5])


def test_gradients_are_those_of_separate_layers():
    noisy = NoisyLayer(3, 5, labels_per_layer=2, batch_size=5)
    linears = separate_layers(noisy)
    embeddings, wanted = torch.randn(5, 3), torch.randn(5, 5)
    (noisy(embeddings) * wanted).sum().backward()
    for i, row in enumerate(embeddings):
        (linears[i // 2](row) * wanted[i]).sum().backward()
    weight = torch.stack([layer.weight.grad.T for layer in linears])
    bias = torch.stack([layer.bias.grad[None] for layer in linears])
    torch.testing.assert_close(noisy.weight.grad, weight)
    torch.testing.assert_close(noisy.bias.grad, bias)


def test_weights_are_standard_normal_and_biases_zero():
    noisy = NoisyLayer(40, 50, labels_per_layer=1, batch_size=5)
    noisy.bias.data.fill_(3)
    noisy.reset_parameters(torch.Generator().manual_seed(0))
    for layer in noisy.weight:
        assert kstest(layer.detach().flatten().numpy(), "norm").pvalue > 1e-3
    assert not noisy.bias.any()


def test_reset_draws_every_layer_anew_in_place():
    noisy = NoisyLayer(8, 9, labels_per_layer=2, batch_size=6)
    weight, bias, old = noisy.weight, noisy.bias, noisy.weight.detach().clone()
    noisy.reset_parameters()
    assert noisy.weight is weight
    assert noisy.bias is bias
    assert (noisy.weight != old).flatten(1).float().mean(1).min() > 0.99
    assert noisy.weight.requires_grad
    assert noisy.bias.requires_grad


def test_optimizer_still_moves_the_parameters_after_a_reset():
    noisy = NoisyLayer(3, 2, labels_per_layer=2, batch_size=2)
    optimizer = torch.optim.SGD(noisy.parameters(), lr=0.1)
    noisy.reset_parameters()
    before = noisy.weight.detach().clone()
    noisy(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(noisy.weight.detach(), before - 0.2)


def test_generator_decides_the_draw():
    noisy = NoisyLayer(3, 4, 2, 4)
    noisy.reset_parameters(torch.Generator().manual_seed(1))
    first = noisy.weight.detach().clone()
    noisy.reset_parameters(torch.Generator().manual_seed(2))
    assert not torch.equal(noisy.weight, first)
    noisy.reset_parameters(torch.Generator().manual_seed(1))
    assert torch.equal(noisy.weight, first)


def test_one_embedding_gives_another_output_in_every_set():
    noisy = NoisyLayer(6, 7, labels_per_layer=2, batch_size=6)
    out = noisy(torch.ones(6, 6))
    assert torch.equal(out[0::2], out[1::2])
    assert len(out[0::2].unique(dim=0)) == 3
