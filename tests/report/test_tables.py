import math

import pytest

from nayer_pl.report.tables import COUNT, PERCENT, SECONDS, cell, over_seeds


@pytest.mark.parametrize(
    ("style", "values", "text"),
    [
        (PERCENT, [0.5, 0.6, 0.7], "60.0 ± 10.0"),
        (PERCENT, [0.05], "5.0"),
        (PERCENT, [0.5, 0.5], "50.0 ± 0.0"),
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
def test_cell(style, values, text):
    assert cell(over_seeds(values), style) == text
