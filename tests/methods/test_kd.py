import pytest
import torch
from lightning import Trainer

from nayer_pl import Classifier, InputError, RealDataModule
from nayer_pl.data import ImageSet
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
        return KnowledgeDistillation(
            teacher, student, SHAPE, **{"check_teacher": False, "learning_rate": 0.05, **options}
        )

    return method


def fit(method, tmp_path, epochs=2, callbacks=(), ckpt_path=None, **options):
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=bool(callbacks),
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        default_root_dir=tmp_path, **options,
    )  # fmt: skip
    trainer.fit(method, datamodule=RealDataModule(Real(), batch_size=8), ckpt_path=ckpt_path)
    return trainer


def test_loss_is_hintons(make):
    method = make(temperature=4.0)
    images = torch.rand(5, *SHAPE)
    loss = method.training_step((images, torch.zeros(5, dtype=torch.int64)), 0)
    inputs = (images - MEAN) / STD
    p = (method.teacher.network(inputs).double() / 4).exp()
    q = (method.student.network(inputs).double() / 4).exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    naive = (p * (p.log() - q.log())).sum(1).mean() * 4**2
    assert loss.item() == pytest.approx(naive.item(), rel=1e-4)


def test_only_the_student_learns_and_it_is_measured_like_others(make, tmp_path):
    method = make()
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
    assert method.product is method.student


def test_a_guessing_teacher_is_refused(make, tmp_path):
    with pytest.raises(InputError, match="guessing"):
        fit(make(check_teacher=True), tmp_path)


def test_teacher_and_student_must_be_two_that_fit(make, tiny_classifier, tmp_path):
    same = tiny_classifier()
    with pytest.raises(InputError, match="the same object"):
        make(teacher=same, student=same)
    with pytest.raises(InputError, match="teacher has 4 outputs, but the student has 3"):
        fit(make(teacher=tiny_classifier(classes=4)), tmp_path)


def test_the_student_takes_over_its_teachers_normalisation(make, tiny_classifier):
    method = make(student=Classifier(tiny_classifier().network))
    assert method.student.normalization == method.teacher.normalization


def test_plain_dataloaders_are_refused(make, tmp_path):
    loader = torch.utils.data.DataLoader(list(zip(*Real().load("train"), strict=True)))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    with pytest.raises(InputError, match="RealDataModule"):
        trainer.fit(make(), loader, loader)


def test_without_evaluation_there_are_no_accuracies(make, tmp_path):
    method = make()
    fit(method, tmp_path, limit_val_batches=0)
    assert method.results()["student_accuracy"] is None
