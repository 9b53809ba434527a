from functools import partial

import pytest
import torch
from lightning import Trainer

from nayer_pl import Classifier, InputError, RealDataModule
from nayer_pl.data import ImageSet
from nayer_pl.losses import KLCrossEntropy, KLDivergence
from nayer_pl.methods.kd import KnowledgeDistillation

SHAPE, CLASSES = (1, 8, 8), 3
MEAN, STD = 0.4, 0.3


class Real:
    """Images of three classes, without anything to learn about them."""

    def load(self, split):
        rng = torch.Generator().manual_seed(len(split))
        images = torch.randint(256, (24, *SHAPE), dtype=torch.uint8, generator=rng)
        return ImageSet(images, torch.arange(24) % CLASSES)


@pytest.fixture
def make(tiny_classifier):
    def method(**options):
        torch.manual_seed(3)
        teacher = options.pop("teacher", None) or tiny_classifier()
        student = options.pop("student", None) or tiny_classifier()
        return KnowledgeDistillation(teacher, student, SHAPE, **{"check_teacher": False, **options})

    return method


def fit(method, tmp_path, **options):
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    trainer.fit(method, datamodule=RealDataModule(Real(), batch_size=8))


@pytest.mark.parametrize("alpha", [1.0, 0.9])
def test_loss(make, alpha):
    """Hinton's, and with a cross-entropy that takes the labels of the images."""
    method = make(student_loss=KLDivergence(4.0) if alpha == 1 else KLCrossEntropy(4.0, alpha))
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


def test_only_the_student_learns(make, tmp_path):
    method = make(optimizer=partial(torch.optim.SGD, lr=0.05))
    before = {name: tensor.clone() for name, tensor in method.teacher.state_dict().items()}
    weight = method.student.network.conv1.weight.clone()
    fit(method, tmp_path)
    assert all(torch.equal(before[k], v) for k, v in method.teacher.state_dict().items())
    assert not torch.equal(weight, method.student.network.conv1.weight)
    images, labels = Real().load("evaluation")
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


def test_guessing_teacher(make, tmp_path):
    with pytest.raises(InputError, match="guessing"):
        fit(make(check_teacher=True), tmp_path)


def test_networks_that_do_not_fit(make, tiny_classifier, tmp_path):
    same = tiny_classifier()
    with pytest.raises(InputError, match="the same object"):
        make(teacher=same, student=same)
    with pytest.raises(InputError, match="student has 3 outputs, but the data set has 4"):
        fit(make(teacher=tiny_classifier(classes=4)), tmp_path)


def test_student_takes_over_the_normalization(make, tiny_classifier):
    method = make(student=Classifier(tiny_classifier().network))
    assert method.student.normalization == method.teacher.classifier.normalization


def test_plain_dataloaders(make, tmp_path):
    loader = torch.utils.data.DataLoader(list(zip(*Real().load("train"), strict=True)))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    with pytest.raises(InputError, match="RealDataModule"):
        trainer.fit(make(), loader, loader)


def test_results__no_evaluation(make, tmp_path):
    method = make()
    fit(method, tmp_path, limit_val_batches=0)
    assert method.results()["student_accuracy"] is None
