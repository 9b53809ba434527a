import numpy as np
import pytest
import torch

from nayer_pl.synthesis import LabelConditioning, NoiseConditioning

TARGETS = torch.tensor([2, 0, 1, 1, 2, 0, 0])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def conditioning(**options):
    torch.manual_seed(0)
    return LabelConditioning(torch.randn(3, 5), 6, len(TARGETS), 3, **options)


def test_output_is_batch_norm_then_a_layer_per_set():
    module = conditioning()
    module.embedding_norm.weight.data.normal_()
    module.embedding_norm.bias.data.normal_()
    rows = module.embeddings.numpy().astype(np.float64)[TARGETS.numpy()]
    spread = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + module.embedding_norm.eps)
    spread = (
        spread * module.embedding_norm.weight.detach().numpy()
        + module.embedding_norm.bias.detach().numpy()
    )
    layers = module.noisy_layer.weight.detach().numpy()
    expected = np.stack([row @ layers[i // 3] for i, row in enumerate(spread)])
    np.testing.assert_allclose(module(TARGETS).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_half_precision_embeddings_are_taken():
    assert LabelConditioning(torch.randn(3, 5).half(), 6, 7, 3)(TARGETS).dtype == torch.float32


def test_embeddings_are_constant_and_stay_out_of_checkpoints():
    module = conditioning()
    assert "embeddings" not in module.state_dict()
    assert not module.embeddings.requires_grad
    assert {name for name, _ in module.named_parameters()} == {
        "embedding_norm.weight", "embedding_norm.bias", "noisy_layer.weight", "noisy_layer.bias"
    }  # fmt: skip


def test_every_round_has_another_noisy_layer():
    module = conditioning()
    outputs = []
    for seed in (1, 2, 1):
        module.start_round(TARGETS, seeded(seed))
        outputs.append(module(TARGETS))
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_noisy_layer_can_stay():
    module = conditioning(reset_noisy_layer=False)
    before = module(TARGETS)
    module.start_round(TARGETS, seeded(1))
    assert torch.equal(module(TARGETS), before)


def test_reset_forgets_the_spread_and_keeps_the_parameters():
    module = conditioning()
    parameters = list(module.parameters())
    noise = module.noisy_layer.weight.detach().clone()
    module.embedding_norm.weight.data.fill_(7)
    module.embedding_norm.bias.data.fill_(7)
    module(TARGETS)
    module.reset_parameters()
    assert all(new is old for new, old in zip(module.parameters(), parameters, strict=True))
    assert module.embedding_norm.weight.tolist() == [1.0] * 5
    assert module.embedding_norm.bias.tolist() == [0.0] * 5
    assert module.embedding_norm.running_mean.tolist() == [0.0] * 5
    assert torch.equal(module.noisy_layer.weight, noise)


@pytest.mark.parametrize(
    "name", ["embedding_norm.weight", "embedding_norm.bias", "noisy_layer.weight"]
)
def test_every_part_learns(name):
    module = conditioning()
    module(TARGETS).square().sum().backward()
    assert module.get_parameter(name).grad.abs().sum() > 0


def test_noise_is_standard_normal_and_new_in_every_round():
    module = NoiseConditioning(400)
    module.start_round(torch.zeros(50, dtype=torch.long), seeded(1))
    first = module(torch.zeros(50, dtype=torch.long))
    assert first.shape == (50, 400)
    assert abs(float(first.mean())) < 0.03
    assert abs(float(first.std()) - 1) < 0.03
    module.start_round(torch.zeros(50, dtype=torch.long), seeded(2))
    assert not torch.equal(module(torch.zeros(50, dtype=torch.long)), first)


def test_noise_stays_within_a_round_and_ignores_the_labels():
    module = NoiseConditioning(4)
    module.start_round(TARGETS, seeded(1))
    assert torch.equal(module(TARGETS), module(2 - TARGETS))
    assert torch.equal(module(TARGETS[:3]), module(TARGETS)[:3])


def test_noise_has_nothing_to_learn_or_to_keep():
    module = NoiseConditioning(4)
    module.start_round(TARGETS)
    module.reset_parameters()
    assert list(module.parameters()) == []
    assert module.state_dict() == {}


@pytest.mark.parametrize("wrap", [lambda x: 2 * x.requires_grad_(), torch.nn.Parameter])
def test_embeddings_may_come_from_a_model_that_learns(wrap):
    module = LabelConditioning(wrap(torch.randn(3, 5)), 6, 7, 3)
    assert not module.embeddings.requires_grad
    for _ in range(2):
        module(TARGETS).sum().backward()
