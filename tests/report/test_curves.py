import pytest
from matplotlib.figure import Figure

from nayer_pl.report.curves import AXES, COLOURS, draw_axes, points, styles
from nayer_pl.report.groups import Method, Section
from nayer_pl.report.run import Evaluation, Run


def run(seed, curve, real=False):
    config = {"model_name": "m", "seed": seed, "data": {"name": "d"}}
    summary = {"teacher_accuracy": 0.9} | ({} if real else {"seconds_synthesis": 1.0})
    return Run(str(seed), config, summary, tuple(Evaluation(*each) for each in curve))


RUNS = [
    run(0, [(10, 0.5, 4.0, 30), (20, 0.7, 8.0, 60), (30, 0.8, 9.0, 90)]),
    run(1, [(10, 0.7, 6.0, 30), (20, 0.9, 10.0, 60)]),
]


def test_a_point_is_the_mean_of_the_seeds_after_as_many_updates():
    first, second = points(RUNS, "seconds")  # the second seed has no third evaluation
    assert first == pytest.approx((10, 5.0, 0.6, 0.02**0.5))
    assert second == pytest.approx((20, 9.0, 0.8, 0.02**0.5))
    assert [point.x for point in points(RUNS, "steps")] == [30, 60]


def test_one_seed_is_its_own_mean_and_untimed_ones_have_no_curve():
    assert [point.deviation for point in points(RUNS[:1], "seconds")] == [0, 0, 0]
    assert points([run(0, [(10, 0.5, None, None)])], "seconds") == []


@pytest.mark.parametrize("axis", AXES)
def test_panels_hold_these_points_in_percent(axis):
    section = Section("title", [Method("nayer", RUNS, {})], {})
    ax = Figure().subplots()
    assert draw_axes(ax, section, axis)
    line, teacher = ax.lines
    assert line.get_label() == "nayer"
    expected = points(RUNS, axis)
    assert list(line.get_xdata()) == [point.x for point in expected]
    assert list(line.get_ydata()) == pytest.approx([100 * point.accuracy for point in expected])
    assert teacher.get_ydata() == pytest.approx([90, 90])


def test_no_two_methods_look_the_same():
    free = [Method(str(i), [run(i, [])], {}) for i in range(2 * len(COLOURS))]
    real = [Method(f"real {i}", [run(i, [], real=True)], {}) for i in range(2)]
    looks = [(s["color"], str(s["linestyle"]), s["marker"]) for s in styles([*free, *real])]
    assert len(set(looks)) == len(looks)
    assert {look[0] for look in looks[-2:]}.isdisjoint(COLOURS)
