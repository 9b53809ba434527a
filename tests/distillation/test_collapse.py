import logging

import pytest
import torch

from nayer_pl.distillation.collapse import CollapseMonitor


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "nayer_pl")
    return lambda: [record.getMessage() for record in caplog.records]


def test_rounds_of_equal_images_are_told_once_and_not_before_the_third(warnings):
    watch, image = CollapseMonitor("model.generator_lr"), torch.rand(1, 1, 8, 8)
    for round_ in range(1, 6):
        watch.update((image + 0.004 * torch.rand(20, 1, 8, 8)).clamp(0, 1), 0.9, num_classes=10)
        assert len(warnings()) == (round_ >= 3)
    assert "collapsed" in warnings()[0]
    assert "model.generator_lr" in warnings()[0]


def test_one_good_round_in_between_is_forgiven(warnings):
    watch = CollapseMonitor("model.generator_lr")
    for varied in (False, False, True, False, False):
        images = torch.rand(20, 1, 8, 8) if varied else torch.rand(1, 1, 8, 8).expand(20, 1, 8, 8)
        watch.update(images, 0.9, num_classes=10)
    assert not warnings()


@pytest.mark.parametrize(("agreement", "told"), [(0.10, True), (0.05, True), (0.5, False)])
def test_labels_that_the_teacher_only_guesses_are_told(warnings, agreement, told):
    watch = CollapseMonitor("model.generator_lr")
    for _ in range(3):
        watch.update(torch.rand(20, 1, 8, 8), agreement, num_classes=10)
    assert bool(warnings()) is told
    if told:
        assert "guessing would give 10 %" in warnings()[0]


def test_a_method_without_wanted_labels_is_not_asked_about_them(warnings):
    watch = CollapseMonitor("model.generator_lr")
    for _ in range(4):
        watch.update(torch.rand(20, 1, 8, 8), None, num_classes=10)
    assert not warnings()
