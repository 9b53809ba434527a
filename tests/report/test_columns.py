import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nayer_pl.report.columns import Column, figures
from nayer_pl.report.run import Evaluation, Run


def runs(values, key="x"):
    config = {"model_name": "m", "data": {"name": "d"}}
    return [Run(str(i), {**config, "seed": i}, {key: value}) for i, value in enumerate(values)]


COLUMN = Column("x", "x", lambda run: run.summary["x"], scale=100, digits=1)
COUNT = Column("x", "x", lambda run: run.summary["x"])
SECONDS = Column("x", "x", lambda run: run.summary["x"], small=1)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_mean_and_sample_deviation_are_those_of_the_textbook(values):
    spread = COLUMN.spread(runs(values))
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    assert spread.mean == pytest.approx(mean, abs=1e-6)
    assert spread.deviation == pytest.approx(math.sqrt(variance), abs=1e-6)


@pytest.mark.parametrize(
    ("column", "values", "text"),
    [
        (COLUMN, [0.5, 0.6, 0.7], "60.0 ± 10.0"),
        (COLUMN, [0.5], "50.0"),
        (COLUMN, [0.5, 0.5], "50.0 ± 0.0"),
        (COUNT, [7200, 7200], "7,200"),
        (COUNT, [10, 20], "15 ± 7"),
        (COUNT, [10, math.inf, 20], "15 ± 7 (2 of 3)"),
        (COUNT, [10, math.inf], "10 (1 of 2)"),
        (COUNT, [math.inf, math.inf], "not reached"),
        (SECONDS, [0.44, 0.26], "0.3 ± 0.1"),
        (SECONDS, [4.44, 4.44], "4.4 ± 0.0"),
        (SECONDS, [13.2, 15.9], "15 ± 2"),
        (COUNT, [None, 10], "10"),
        (COUNT, [None, None], "\N{EN DASH}"),
    ],
)
def test_cells_say_how_many_seeds_they_are_about(column, values, text):
    assert column.text(runs(values)) == text


def test_figures_hold_every_run():
    made = runs([0.8, 0.9], "teacher_accuracy")
    made = [
        Run(run.name, run.config, run.summary, (Evaluation(5, accuracy, 3.0, None),))
        for run, accuracy in zip(made, (0.1, 0.9), strict=True)
    ]
    found = figures(made)
    assert found["seconds_to_95"] == {"mean": 3.0, "std": None, "values": ["not reached", 3.0]}
    assert found["teacher_accuracy"]["mean"] == pytest.approx(0.85)
    assert found["agreement"] == {"mean": None, "std": None, "values": [None, None]}
