from functools import partial

import pytest
import torch
from lightning import Trainer

from nayer_pl import Classifier, InputError, KnowledgeDistillation
from nayer_pl.losses import KLCrossEntropy, KLDivergence

SHAPE = (1, 8, 8)
MEAN, STD = 0.4, 0.3


@pytest.fixture
def kd(make):
    return partial(make, KnowledgeDistillation)


@pytest.mark.parametrize("alpha", [1.0, 0.9])
def test_loss(kd, alpha):
    """Hinton's, and with a cross-entropy that takes the labels of the images."""
    method = kd(student_loss=KLDivergence(4.0) if alpha == 1 else KLCrossEntropy(4.0, alpha))
    images, labels = torch.rand(5, *SHAPE), torch.tensor([0, 2, 1, 1, 0])
    loss = method.training_step((images, labels), 0)
    inputs = (images - MEAN) / STD
    teacher = method.teacher.classifier.network(inputs).double()
    student = method.student.network(inputs).double()
    p, q = (teacher / 4).softmax(1), (student / 4).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean() * 4**2
    cross_entropy = -student.softmax(1)[range(5), labels].log().mean()
    expected = alpha * divergence + (1 - alpha) * cross_entropy
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_only_the_student_learns(kd, real_data, fit):
    method = kd(optimizer=partial(torch.optim.SGD, lr=0.05))
    before = {name: tensor.clone() for name, tensor in method.teacher.state_dict().items()}
    weight = method.student.network.conv1.weight.clone()
    fit(method, real_data)
    assert all(torch.equal(before[k], v) for k, v in method.teacher.state_dict().items())
    assert not torch.equal(weight, method.student.network.conv1.weight)
    images, labels = real_data.source.load("evaluation")
    method.eval()
    answers = [net(images / 255).argmax(1) for net in (method.teacher, method.student)]
    parameters = sum(p.numel() for p in method.student.parameters())
    assert method.results() == {
        "teacher_accuracy": pytest.approx((answers[0] == labels).float().mean().item()),
        "student_accuracy": pytest.approx((answers[1] == labels).float().mean().item()),
        "agreement": pytest.approx((answers[0] == answers[1]).float().mean().item()),
        "teacher_parameters": parameters,
        "student_parameters": parameters,
        "student_updates": 2 * 3,
    }
    assert method.exported_classifier is method.student


def test_results__no_evaluation(kd, real_data, fit):
    method = kd()
    fit(method, real_data, limit_val_batches=0)
    assert method.results()["student_accuracy"] is None


def test_what_does_not_fit(kd, real_data, tiny_classifier, fit):
    same = tiny_classifier()
    with pytest.raises(InputError, match="the same object"):
        kd(teacher=same, student=same)
    with pytest.raises(InputError, match="guessing"):
        fit(kd(check_teacher=True), real_data)
    with pytest.raises(InputError, match="student has 3 outputs, but the data set has 4"):
        fit(kd(teacher=tiny_classifier(classes=4)), real_data)


def test_student_takes_over_the_normalization(kd, tiny_classifier):
    method = kd(student=Classifier(tiny_classifier().network))
    assert method.student.normalization == method.teacher.classifier.normalization


def test_plain_dataloaders(kd, real_data, tmp_path):
    loader = torch.utils.data.DataLoader(list(zip(*real_data.source.load("train"), strict=True)))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    with pytest.raises(InputError, match="RealDataModule"):
        trainer.fit(kd(), loader, loader)
