import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st

from nayer_pl.report.runs import LeftOut, Run, fetch_runs, find_runs, read_curve, seconds_to

CURVE = [(10, 0.5, 4.0, 1.0), (20, 0.8, 8.0, 3.0)]
CSV_ROWS = [  # texts, as they come from a CSV file
    {"student_updates": "60", "val/student_accuracy": "0.5", "time/synthesis": ""},
    {"student_updates": "60", "time/synthesis": "7", "time/distillation": "2"},
    {"student_updates": "60", "synthesis/steps": "30"},
    {"student_updates": "40", "distillation/loss": "3.5"},
    {"student_updates": "120.0", "val/student_accuracy": "0.75"},
    {"student_updates": "120", "time/synthesis": "11", "time/distillation": "4.5"},
    {"student_updates": "120", "synthesis/steps": "60"},
    {"student_updates": "130", "val/student_accuracy": "inf", "synthesis/steps": {"no": "number"}},
]
JOINED = [(60, 0.5, 9, 30), (120, 0.75, 15.5, 60)]
LIGHTNING_ROWS = [
    {"step": "59", "val/accuracy": "0.5"},
    {"step": "60", "student_updates": "60", "time/training": "8"},
    {"val/accuracy": "1"},
]


def evaluations(curve):
    """(updates, accuracy, seconds, steps) of each, None if unknown."""
    return [
        tuple(None if math.isnan(value) else value for value in row)
        for row in curve.reset_index().to_numpy()
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (CSV_ROWS, JOINED),
        (CSV_ROWS[::-1], JOINED),
        (LIGHTNING_ROWS, [(60, 0.5, 8, None)]),
        (LIGHTNING_ROWS[:1], [(60, 0.5, None, None)]),
    ],
)
def test_read_curve(rows, expected):
    assert evaluations(read_curve(rows)) == expected


def curve_of(pairs):
    names = ("student_updates", "val/accuracy", "time/training")
    return read_curve(dict(zip(names, (i, *pair), strict=True)) for i, pair in enumerate(pairs))


@given(st.lists(st.integers(0, 100), min_size=1), st.integers(0, 110))
def test_seconds_to(percents, target):
    curve = [(percent / 100, 10.0 * i + 3) for i, percent in enumerate(percents)]
    times = [seconds for accuracy, seconds in curve if accuracy >= target / 100]
    assert seconds_to(target / 100, curve_of(curve)) == (min(times) if times else math.inf)
    assert seconds_to(target / 100, curve_of([(accuracy, None) for accuracy, _ in curve])) is None


@pytest.mark.parametrize(
    ("summary", "key", "expected"),
    [
        ({"student_accuracy": math.nan}, "student_accuracy", None),
        ({"student_accuracy": None}, "share_of_teacher", None),
        ({"student_accuracy": 0.6}, "share_of_teacher", pytest.approx(0.75)),
        ({}, "seconds_to_90", 4.0),
        ({"teacher_accuracy": "high"}, "seconds_to_90", None),
        ({}, "student_updates", 20),
        ({"student_updates": 30}, "student_updates", 30),
    ],
)
def test_numbers(make_run, summary, key, expected):
    run = make_run({"teacher_accuracy": 0.8, **summary}, [(10, 0.75, 4.0, 1), (20, 0.7, 5.0, 2)])
    assert run.numbers.get(key) == expected


def test_find_runs__nested_and_repeated(tmp_path, write_run, distilled):
    one = write_run("sweep/a/one", CURVE, distilled(0.8), picture=b"picture")
    write_run("two", summary=distilled(0.7), seed=3)
    first, second = find_runs([tmp_path, one, tmp_path / "sweep"])
    assert (first.seed, second.seed) == (0, 3)
    assert evaluations(first.curve) == [(10, 0.5, 5, 100), (20, 0.8, 11, 200)]
    assert (first.summary, first.picture) == (distilled(0.8), b"picture")
    assert (len(second.curve), second.picture) == (0, None)


def test_find_runs__teachers(tmp_path, write_run, distilled):
    write_run("sweep/whole", CURVE, distilled(0.8))
    for folder in ("sweep/whole/teacher", "sweep/failed/teacher"):
        write_run(folder, summary={"accuracy": 0.9}, method="supervised")
    written = {"teacher": {"weights": "t.safetensors"}, "export": {"path": "t.safetensors"}}
    write_run("sweep/supervised", summary={"accuracy": 0.9}, **written)
    failed, supervised, whole = find_runs([tmp_path / "sweep"])
    assert failed.why == "no run in it: it never began"
    assert supervised.why == "it trained a teacher"
    assert whole.method == "nayer"


def test_find_runs__left_out(tmp_path, write_run, distilled):
    write_run("jobs/good", CURVE, distilled(0.8))
    write_run("jobs/killed", CURVE)
    write_run("jobs/early")
    (tmp_path / "jobs/refused").mkdir()
    for name, file, content in (
        ("broken", "summary.json", '{"student_acc'),
        ("listed", "summary.json", "[1, 2]"),
        ("empty", "summary.json", "{}"),
        ("foreign", "config.yaml", "optimizer: sgd\n"),
        ("mangled", "config.yaml", "a: [\n"),
        ("long", "metrics.csv", "a\n" + "9" * 200_000),
    ):
        (write_run(f"jobs/{name}", CURVE, {}) / file).write_text(content)
    (tmp_path / "beside").mkdir()
    roots = ("jobs", "nowhere", "beside", "jobs/good/summary.json")
    found = find_runs([tmp_path / root for root in roots])
    assert sum(isinstance(each, Run) for each in found) == 1
    reasons = {Path(each.name).name: each.why for each in found if isinstance(each, LeftOut)}
    for name, why in {
        "killed": "not finished: 80.0 % after 20 student updates",
        "early": "not finished",
        "refused": "no run in it",
        "broken": "its summary.json cannot be read: ",
        "listed": "its summary.json is not one of nayer_pl",
        "empty": "its summary.json is not one of nayer_pl",
        "foreign": "its config.yaml is not one of nayer_pl",
        "mangled": "its config.yaml cannot be read: ",
        "long": "its metrics.csv cannot be read: ",
        "nowhere": "there is no such directory",
        "beside": "no runs in it",
        "summary.json": "there is no such directory",
    }.items():
        assert reasons.pop(name).startswith(why)
    assert not reasons


@pytest.fixture
def project(monkeypatch):
    """Let the W&B project "me/nayer" hold runs: rows as Lightning's logger writes them."""

    def make(name, config, state="finished", summary=None, rows=()):
        def download(root, replace):
            (Path(root) / "new.png").write_bytes(b"picture")

        files = {"new.png": SimpleNamespace(download=download)}
        return SimpleNamespace(
            path=["me", "nayer", name], config=config, state=state, summary=summary or {},
            scan_history=lambda: iter(rows), file=files.__getitem__,
        )  # fmt: skip

    def hold(*runs):
        api = SimpleNamespace(runs={"me/nayer": [make(*run) for run in runs]}.__getitem__)
        monkeypatch.setattr(wandb, "Api", lambda: api)

    return hold


def test_fetch_runs(project, config, distilled):
    rows = [
        {"trainer/global_step": 9, "val/student_accuracy": 0.5},
        {"student_updates": 10, "time/synthesis": 4.0, "time/distillation": 1.0},
        {"student_updates": 10, "synthesis/steps": 60},
        {"trainer/global_step": 10, "bank/samples": {"filenames": ["old.png"]}},
        {"trainer/global_step": 20, "bank/samples": {"filenames": ["new.png"]}},
    ]
    project(("abc", config(), "finished", {**distilled(0.8), "val/x": 0.5}, rows))
    (run,) = fetch_runs("me/nayer")
    assert (run.name, run.title) == ("me/nayer/abc", "digits, wrn16_1 to wrn16_1")
    assert evaluations(run.curve) == [(10, 0.5, 5.0, 60)]
    assert (run.summary, run.picture) == (distilled(0.8), b"picture")


@pytest.mark.parametrize(
    "odd",
    [
        {"seed": "abc"}, {"seed": None}, {"data": "cifar10"}, {"data": {}}, {"teacher": "resnet"},
        {"student": {"architecture": "resnet"}}, {"trainer": [1]},
    ],
)  # fmt: skip
def test_fetch_runs__left_out(project, config, distilled, odd):
    project(
        ("crashed", config(), "crashed"),
        ("foreign", {**config(), **odd}),
        ("ended", config()),
        ("scratch", {**config(), "teacher": None}, "finished", distilled(0.8)),
    )
    crashed, foreign, ended, scratch = fetch_runs("me/nayer")
    assert crashed == ("me/nayer/crashed", "not finished: it is crashed")
    assert foreign.why == "its config.yaml is not one of nayer_pl"
    assert ended.why.startswith("not finished")
    assert isinstance(scratch, Run)
