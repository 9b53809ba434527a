import math

import pytest
import torch

from nayer_pl.losses.functional import divergence
from nayer_pl.synthesis import adversarial_loss, class_loss, distillation_loss


def softmax(logits, temperature=1.0):
    powers = [math.exp(logit / temperature - max(logits) / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def kl(teacher, student, temperature=1.0):
    pairs = zip(softmax(teacher, temperature), softmax(student, temperature), strict=True)
    return sum(p * math.log(p / q) for p, q in pairs)


def logits(batch, classes, seed=0, dtype=torch.float64):
    return 3 * torch.randn(
        batch, classes, dtype=dtype, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (7, 5), (20, 3)])
def test_label_loss_is_the_mean_negative_log_probability(batch, classes):
    teacher = logits(batch, classes)
    targets = torch.arange(batch) % classes
    expected = [
        -math.log(softmax(row)[target])
        for row, target in zip(teacher.tolist(), targets.tolist(), strict=True)
    ]
    loss = class_loss(teacher, targets)
    assert loss.ndim == 0
    assert float(loss) == pytest.approx(sum(expected) / batch, rel=1e-12)


def test_label_loss_of_equal_logits_is_log_of_classes():
    assert float(class_loss(torch.zeros(4, 10), torch.arange(4))) == pytest.approx(math.log(10))


def test_label_loss_gradient_is_probability_minus_one_hot():
    teacher = logits(6, 4).requires_grad_()
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    class_loss(teacher, targets).backward()
    expected = torch.tensor([softmax(row) for row in teacher.tolist()], dtype=torch.float64)
    expected[range(6), targets] -= 1
    torch.testing.assert_close(teacher.grad, expected / 6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_divergence_matches_a_loop(temperature):
    student, teacher = logits(9, 6, 1), logits(9, 6, 2)
    expected = [
        kl(t, s, temperature) for t, s in zip(teacher.tolist(), student.tolist(), strict=True)
    ]
    assert divergence(student, teacher, temperature).tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_loss_matches_a_loop(temperature):
    student, teacher = logits(9, 6, 1), logits(9, 6, 2)
    expected = [
        kl(t, s, temperature) for t, s in zip(teacher.tolist(), student.tolist(), strict=True)
    ]
    loss = distillation_loss(student, teacher, temperature)
    assert loss.ndim == 0
    assert float(loss) == pytest.approx(sum(expected) / 9 * temperature**2, rel=1e-10)


def test_distillation_temperature_is_twenty_unless_told():
    student, teacher = logits(5, 4, 1), logits(5, 4, 2)
    assert float(distillation_loss(student, teacher)) == pytest.approx(
        float(distillation_loss(student, teacher, 20.0))
    )


def test_distillation_from_a_uniform_student_is_log_classes_minus_entropy():
    probability = 0.9
    teacher = torch.tensor([[math.log(probability), math.log(1 - probability)]])
    entropy = -probability * math.log(probability) - (1 - probability) * math.log(1 - probability)
    loss = distillation_loss(torch.zeros(1, 2), teacher, temperature=1.0)
    assert float(loss) == pytest.approx(math.log(2) - entropy, rel=1e-5)


def test_distillation_at_high_temperature_is_half_the_variance_of_the_difference():
    student, teacher = logits(8, 5, 3), logits(8, 5, 4)
    expected = (teacher - student).var(dim=1, correction=0).mean() / 2
    assert float(distillation_loss(student, teacher, 1e4)) == pytest.approx(
        float(expected), rel=1e-2
    )


def test_distillation_gradient_is_the_difference_of_probabilities():
    student, teacher = logits(5, 4, 1).requires_grad_(), logits(5, 4, 2)
    distillation_loss(student, teacher, 7.0).backward()
    p = torch.tensor([softmax(row, 7.0) for row in teacher.tolist()], dtype=torch.float64)
    q = torch.tensor([softmax(row, 7.0) for row in student.tolist()], dtype=torch.float64)
    torch.testing.assert_close(student.grad, 7.0 * (q - p) / 5)


@pytest.mark.parametrize("loss", [distillation_loss, adversarial_loss])
def test_equal_logits_up_to_a_constant_have_no_divergence(loss):
    teacher = logits(6, 5)
    shift = torch.arange(6, dtype=torch.float64)[:, None]
    assert float(loss(teacher + shift, teacher)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_adversarial_loss_matches_a_loop(seed):
    student, teacher = logits(12, 3, seed), logits(12, 3, seed + 100)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        if s.index(max(s)) == t.index(max(t)):
            total -= kl(t, s)
    loss = adversarial_loss(student, teacher)
    assert loss.ndim == 0
    assert total < 0
    assert float(loss) == pytest.approx(total / 12, rel=1e-10)


def test_adversarial_loss_ignores_images_on_which_the_nets_differ():
    student = torch.tensor([[2.0, 0.0], [0.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[5.0, 0.0], [5.0, 0.0]])
    adversarial_loss(student, teacher).backward()
    assert student.grad[0].abs().sum() > 0
    assert student.grad[1].tolist() == [0.0, 0.0]


def test_adversarial_loss_is_zero_without_any_agreement():
    student, teacher = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 1.0]] * 3)
    assert float(adversarial_loss(student, teacher)) == 0


def test_adversarial_loss_reaches_both_networks():
    student = torch.tensor([[2.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[5.0, 0.0]], requires_grad=True)
    adversarial_loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", [distillation_loss, adversarial_loss])
def test_extreme_logits_stay_finite(loss):
    student = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1e4], [1e4, 0.0]])
    value = loss(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
