import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nayer_pl.report.run import Evaluation, Run, evaluations, is_one_of_ours, with_teachers

ROWS = [  # texts, as they come from a CSV file
    {"student_updates": "60", "val/student_accuracy": "0.5", "time/synthesis": ""},
    {"student_updates": "60", "time/synthesis": "7", "time/distillation": "2"},
    {"student_updates": "60", "synthesis/steps": "30"},
    {"student_updates": "40", "distillation/loss": "3.5"},
    {"student_updates": "120.0", "val/student_accuracy": "0.75"},
    {"student_updates": "120", "time/synthesis": "11", "time/distillation": "4.5"},
    {"student_updates": "120", "synthesis/steps": "60"},
]


@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1]])
def test_accuracy_and_cost_meet_at_their_student_updates(rows):
    assert evaluations(rows) == (Evaluation(60, 0.5, 9, 30), Evaluation(120, 0.75, 15.5, 60))


def test_lightnings_own_rows_count_steps_from_0():
    rows = [
        {"step": "59", "val/accuracy": "0.5"},
        {"step": "60", "student_updates": "60", "time/training": "8"},
    ]
    assert evaluations(rows) == (Evaluation(60, 0.5, 8, None),)


def test_what_nobody_timed_has_no_seconds():
    rows = [{"student_updates": "60", "val/student_accuracy": "0.5"}, {"val/student_accuracy": "1"}]
    assert evaluations(rows) == (Evaluation(60, 0.5, None, None),)


def run(curve, summary=None, **config):
    every = tuple(Evaluation(i, accuracy, s, None) for i, (accuracy, s) in enumerate(curve))
    config = {"model_name": "m", "seed": 0, "data": {"name": "d"}, **config}
    return Run("name", config, {"teacher_accuracy": 0.8, **(summary or {})}, every)


@given(st.lists(st.integers(0, 100), min_size=1), st.integers(0, 110))
def test_time_to_is_that_of_the_first_evaluation_at_or_above(percents, wanted):
    curve = [(percent / 100, 10.0 * i + 3) for i, percent in enumerate(percents)]
    measured = run(curve, {"teacher_accuracy": 1.0}).seconds_to(wanted / 100)
    times = [seconds for accuracy, seconds in curve if accuracy >= wanted / 100]
    assert measured == (min(times) if times else math.inf)


@pytest.mark.parametrize(
    "odd",
    [
        {"seed": "abc"}, {"seed": None}, {"data": "cifar10"}, {"data": {}}, {"teacher": "resnet"},
        {"student": {"architecture": "resnet"}}, {"trainer": [1]},
    ],
)  # fmt: skip
def test_configurations_of_other_projects_are_known_by_their_form(config, odd):
    assert is_one_of_ours(config())
    assert is_one_of_ours({**config(), "teacher": None})  # model=scratch has none
    assert not is_one_of_ours({**config(), **odd})
    assert not is_one_of_ours([config()])


def test_time_to_is_unknown_without_times_or_teacher():
    assert run([(0.9, None)]).seconds_to(0.9) is None
    assert run([(0.9, 3.0)], {"teacher_accuracy": None}).seconds_to(0.9) is None


def test_share_is_of_the_runs_own_teacher():
    assert run([], {"student_accuracy": 0.6}).share_of_teacher() == pytest.approx(0.75)
    assert run([], {"student_accuracy": None}).share_of_teacher() is None


def test_values_that_are_not_finite_count_as_not_measured():
    assert run([], {"student_accuracy": math.nan}).student_accuracy is None


def test_a_run_without_a_teacher_is_compared_with_that_of_its_seed():
    def one(seed, summary):
        weights = {"weights": f"{seed}.safetensors"}
        config = {"model_name": "m", "seed": seed, "data": {"name": "d"}, "teacher": weights}
        return Run(f"{seed} {summary}", config, summary)

    taught = [one(0, {"teacher_accuracy": 0.8}), one(1, {"teacher_accuracy": 0.5})]
    alone = [one(1, {"accuracy": 0.4}), one(2, {"accuracy": 0.4})]
    _, _, known, unknown = with_teachers([*taught, *alone])
    assert known.share_of_teacher() == pytest.approx(0.8)
    assert unknown.share_of_teacher() is None
