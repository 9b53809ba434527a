import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nayer_pl import Classifier, Digits, InputError
from nayer_pl.distillation.evaluation import Evaluation, check_teacher_above_chance


def passes(right: int, images: int, classes: int) -> bool:
    try:
        check_teacher_above_chance(right / images, images, classes)
    except InputError:
        return False
    return True


@given(classes=st.integers(2, 1000), images=st.integers(1, 20_000), data=st.data())
def test_the_border_is_two_deviations_or_two_points_above_a_guesser(classes, images, data):
    right = data.draw(st.integers(0, images))
    chance = 1 / classes
    deviation = math.sqrt(images * chance * (1 - chance))  # of a binomial's count
    above = right - images * chance
    if abs(above - 2 * deviation) < 1e-6 or abs(above - images / 50) < 1e-6:
        return  # on the border, rounding decides
    better = above > 2 * deviation and above > images / 50
    assert passes(right, images, classes) == (better or right == images)


@pytest.mark.parametrize(
    ("images", "classes", "needed"),
    [
        (5, 10, 2),  # 0.1 + 2 sqrt(0.09 / 5) = 0.368
        (9, 3, 6),  # 1/3 + 2 sqrt(2 / 81) = 0.648
        (6, 2, 6),  # 0.5 + 2 sqrt(0.25 / 6) = 0.908
        (10_000, 10, 1201),  # 0.1 + 0.02
        (10_000, 200, 251),  # 0.005 + 0.02
    ],
)
def test_few_images_ask_for_a_larger_share_of_right_answers(images, classes, needed):
    assert passes(needed, images, classes)
    assert not passes(needed - 1, images, classes)


@pytest.mark.parametrize("images", [1, 2, 4])
def test_a_teacher_that_is_always_right_passes_however_few_the_images(images):
    assert passes(images, images, 2)
    assert not passes(images - 1, images, 2)


def test_the_message_says_both_figures_and_where_to_look():
    with pytest.raises(InputError) as error:
        check_teacher_above_chance(0.105, images=10_000, num_classes=10)
    for part in ("10.5 %", "10,000", "10 classes", "10.0 %", "teacher.mean", "check_teacher=false"):
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


def asked(teacher, labels=None):
    """Accuracy and number of images, as a run finds them out: 7 batches of unequal size."""
    images, true = Digits(8).load("evaluation")
    labels = true if labels is None else labels
    batches = zip((images / 255).split(77), labels.split(77), strict=True)
    accuracy, count = Evaluation().ask(teacher, [list(batch) for batch in batches], lambda b: b)
    assert accuracy == pytest.approx(
        (teacher(images / 255).argmax(1) == labels).float().mean().item()
    )
    assert count == 500
    return accuracy, count, 10


def test_a_trained_teacher_passes(teacher):
    assert asked(teacher)[0] > 0.9
    check_teacher_above_chance(*asked(teacher))


@pytest.mark.parametrize("shift", range(1, 10))
def test_labels_in_another_order_are_noticed(teacher, shift):
    labels = (Digits(8).load("evaluation").labels + shift) % 10
    with pytest.raises(InputError, match="order of the labels"):
        check_teacher_above_chance(*asked(teacher, labels))


def test_labels_of_other_images_are_noticed(teacher):
    labels = Digits(8).load("evaluation").labels
    shuffled = labels[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    with pytest.raises(InputError, match="The teacher is right on"):
        check_teacher_above_chance(*asked(teacher, shuffled))


def test_a_normalisation_for_images_up_to_255_is_noticed(teacher):
    with pytest.raises(InputError, match="divide those of images in"):
        Classifier(teacher.network, mean=[0.3 * 255], std=[0.38 * 255])


def test_a_run_stops_before_any_synthesis(tiny_method, tiny_data, fit, monkeypatch):
    def never(*_):
        raise AssertionError("a synthesis round had begun")

    monkeypatch.setattr("nayer_pl.NAYER.synthesize", never)
    method = tiny_method(check_teacher=True)
    torch.nn.init.zeros_(method.teacher.network.head.weight)  # one answer to every image
    with pytest.raises(InputError, match=r"right on 33\.3 % of 24 evaluation images"):
        fit(method, tiny_data())


def test_without_real_images_there_is_nothing_to_check(tiny_method, tiny_data, fit):
    method = tiny_method(check_teacher=True)
    torch.nn.init.zeros_(method.teacher.network.head.weight)
    fit(method, tiny_data(evaluation=False))
    assert method.results()["teacher_accuracy"] is None


def test_the_teacher_is_asked_about_every_image_only_once(tiny_method, tiny_data, fit):
    method, seen = tiny_method(), []
    method.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    data = tiny_data({"epochs": 3}, eval_batch_size=5)
    fit(method, data)
    real = {tuple(x.flatten().tolist()) for x in data.source.load("evaluation").images / 255}
    shown = [tuple(image.flatten().tolist()) for batch in seen for image in batch]
    assert sum(image in real for image in shown) == len(real) == 24
