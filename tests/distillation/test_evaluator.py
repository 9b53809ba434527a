import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nayer_pl import Classifier, Digits, InputError
from nayer_pl.distillation.evaluator import Evaluator, check_teacher_above_chance


@pytest.mark.parametrize(
    ("images", "classes", "needed"),
    [
        (5, 10, 2),  # 0.1 + 2 sqrt(0.09 / 5) = 0.368
        (9, 3, 6),  # 1/3 + 2 sqrt(2 / 81) = 0.648
        (6, 2, 6),  # 0.5 + 2 sqrt(0.25 / 6) = 0.908
        (90, 10, 15),  # 0.1 + 2 sqrt(0.09 / 90) = 0.163
        (10_000, 10, 1201),  # 0.1 + 0.02
        (10_000, 200, 251),  # 0.005 + 0.02
        *((images, 2, images) for images in (1, 2, 4)),  # always right
    ],
)
def test_chance(images, classes, needed):
    check_teacher_above_chance(needed / images, images, classes)
    with pytest.raises(InputError) as error:
        check_teacher_above_chance((needed - 1) / images, images, classes)
    for part in (f"{100 * (needed - 1) / images:.1f} %", f"{images:,}", f"{classes} classes"):
        assert part in str(error.value)


@pytest.fixture(scope="module")
def teacher():
    """Two layers that learned real digits in a moment."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
    net.append(nn.Linear(32, 10))
    teacher = Classifier(net, mean=[0.3], std=[0.38])
    images, labels = Digits(8).load("train")
    adam = torch.optim.Adam(teacher.parameters(), 0.01)
    for _ in range(60):
        adam.zero_grad()
        F.cross_entropy(teacher(images / 255), labels).backward()
        adam.step()
    return teacher.freeze()


class Real:
    """The evaluation images with other labels, in 7 batches of unequal size."""

    has_real_images = True

    def __init__(self, relabel=lambda labels: labels):
        images, labels = Digits(8).load("evaluation")
        self.images, self.labels = images, relabel(labels)

    def evaluation_batches(self):
        return zip(self.images.split(77), self.labels.split(77), strict=True)


def test_trained_teacher(teacher):
    data, evaluator = Real(), Evaluator()
    evaluator.ask_teacher(teacher, data, num_classes=10)
    student = lambda images: teacher(1 - images)  # noqa: E731
    for i, (images, labels) in enumerate(data.evaluation_batches()):
        evaluator.update(i, images / 255, labels, student, teacher=None)
    answers, others = (net(data.images / 255).argmax(1) for net in (teacher, student))
    pairs = {"teacher": (answers, data.labels), "student": (others, data.labels)}
    share = lambda one, other: pytest.approx((one == other).float().mean().item())  # noqa: E731
    expected = {f"{name}_accuracy": share(*pair) for name, pair in pairs.items()}
    found = evaluator.compute()
    assert found == {"agreement": share(answers, others), **expected}
    assert found["teacher_accuracy"] > 0.9


def test_labels_in_another_order(teacher):
    with pytest.raises(InputError, match=r"order of the labels.*check_teacher=False"):
        Evaluator().ask_teacher(teacher, Real(lambda labels: (labels + 1) % 10), num_classes=10)


@pytest.mark.parametrize("evaluation", [True, False])
def test_run__teacher_of_one_answer(tiny_method, tiny_data, fit, evaluation):
    """It stops the run before any synthesis; without real images nobody can know."""
    method = tiny_method(check_teacher=True)
    torch.nn.init.zeros_(method.teacher.classifier.network.head.weight)
    if evaluation:
        with pytest.raises(InputError, match=r"right on 33\.3 % of 24 evaluation images"):
            fit(method, tiny_data())
        assert method.rounds == method.synthesis_steps == 0
    else:
        fit(method, tiny_data(evaluation=False))
        assert method.results()["teacher_accuracy"] is None


def test_run__every_image_once(tiny_method, tiny_data, fit):
    method, seen = tiny_method(), []
    method.teacher.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    data = tiny_data({"epochs": 3}, eval_batch_size=5)
    fit(method, data)
    real = {tuple(x.flatten().tolist()) for x in data.source.load("evaluation").images / 255}
    shown = [tuple(image.flatten().tolist()) for batch in seen for image in batch]
    assert sum(image in real for image in shown) == len(real) == 24
