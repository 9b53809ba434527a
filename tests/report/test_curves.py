from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from nayer_pl.report.curves import AXES, COLORS, draw_axes, points, styles
from nayer_pl.report.groups import Method, Section
from nayer_pl.report.run import Evaluation, Run


def run(seed, curve, real=False):
    config = {"model_name": "m", "seed": seed, "data": {"name": "d"}}
    summary = {"teacher_accuracy": 0.9} | {f"seconds_{'training' if real else 'synthesis'}": 1.0}
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


@pytest.mark.parametrize(
    ("accuracies", "teacher", "limits", "ticks"),
    [
        ((0.4, 0.55), 0.758, (37, 78.8), [40, 50, 60, 70]),  # 100 classes: nobody is near 100 %
        ((0.1, 0.97), 0.996, (7, 100), [20, 40, 60, 80, 90, 95, 98, 99, 100]),
        ((0.0, 0.3), None, (0, 33), [0, 10, 20, 30]),
    ],
)
def test_the_scale_ends_where_the_best_do(accuracies, teacher, limits, ticks):
    curve = [(10 * (i + 1), each, 4.0 + i, 30) for i, each in enumerate(accuracies)]
    one = replace(run(0, curve), summary={"teacher_accuracy": teacher, "seconds_synthesis": 1.0})
    ax = Figure().subplots()
    draw_axes(ax, Section("title", [Method("nayer", [one], {})], {}), "seconds")
    assert ax.get_ylim() == pytest.approx(limits)
    low, high = limits
    assert [tick for tick in ax.get_yticks() if low <= tick <= high] == ticks


@pytest.mark.parametrize(("count", "marked"), [(1, 1), (15, 15), (16, 8), (300, 15)])
def test_long_runs_have_few_markers(count, marked):
    curve = [(i, 0.5, float(i), i) for i in range(1, count + 1)]
    ax = Figure().subplots()
    draw_axes(ax, Section("title", [Method("nayer", [run(0, curve)], {})], {}), "steps")
    line = ax.lines[0]
    assert len(line.get_xdata()) == count
    assert len(range(0, count, line.get_markevery())) == marked


def test_no_two_methods_look_the_same():
    free = [Method(str(i), [run(i, [])], {}) for i in range(2 * len(COLORS))]
    real = [Method(f"real {i}", [run(i, [], real=True)], {}) for i in range(2)]
    looks = [(s["color"], str(s["linestyle"]), s["marker"]) for s in styles([*free, *real])]
    assert len(set(looks)) == len(looks)
    assert {look[0] for look in looks[-2:]}.isdisjoint(COLORS)


def test_a_method_looks_the_same_whoever_wins():
    methods = [Method(name, [run(0, [])], {}) for name in ("nayer", "fast", "dafl")]
    looks = dict(zip("nfd", styles(methods), strict=True))
    turned = dict(zip("dfn", styles(methods[::-1]), strict=True))
    assert looks == turned
