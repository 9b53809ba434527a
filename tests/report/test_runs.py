import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from hypothesis import given, settings
from hypothesis import strategies as st

from nayer_pl.report.runs import LeftOut, Run, fetch_runs, find_runs, read_curve

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
    """(updates, accuracy, seconds, steps) of each; -1 is unknown."""
    return list(curve.fillna(-1).itertuples(name=None))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (CSV_ROWS, JOINED),
        (CSV_ROWS[::-1], JOINED),
        (LIGHTNING_ROWS, [(60, 0.5, 8, -1)]),
        (LIGHTNING_ROWS[:1], [(60, 0.5, -1, -1)]),
    ],
)
def test_read_curve(rows, expected):
    assert evaluations(read_curve(rows)) == expected


@settings(max_examples=30)
@given(st.lists(st.integers(85, 100), min_size=1))
def test_numbers__seconds_to(make_run, percents):
    curve = [(i, percent / 100, 10.0 * i + 3, i) for i, percent in enumerate(percents)]
    numbers = make_run({"teacher_accuracy": 1.0}, curve).numbers
    for target in (90, 95, 99):
        times = [seconds for _, accuracy, seconds, _ in curve if accuracy >= target / 100]
        assert numbers[f"seconds_to_{target}"] == (min(times) if times else math.inf)


@pytest.mark.parametrize(
    ("summary", "seconds", "key", "expected"),
    [
        ({"student_accuracy": math.nan}, 4.0, "student_accuracy", None),
        ({"student_accuracy": None}, 4.0, "share_of_teacher", None),
        ({"student_accuracy": 0.6}, 4.0, "share_of_teacher", pytest.approx(0.75)),
        ({}, None, "seconds_to_90", None),
        ({"teacher_accuracy": "high"}, 4.0, "seconds_to_90", None),
        ({}, 4.0, "student_updates", 10),
        ({"student_updates": 30}, 4.0, "student_updates", 30),
    ],
)
def test_numbers(make_run, summary, seconds, key, expected):
    run = make_run({"teacher_accuracy": 0.8, **summary}, [(10, 0.75, seconds, 1)])
    assert run.numbers.get(key) == expected


def test_find_runs__nested_and_repeated(tmp_path, write_run, distilled):
    one = write_run("sweep/a/one", CURVE, distilled(0.8), picture=b"picture")
    write_run("two", summary=distilled(0.7), seed=3)
    first, second = find_runs([tmp_path, one, tmp_path / "sweep"])
    assert (first.method, first.seed, second.seed) == ("nayer", 0, 3)
    assert evaluations(first.curve) == [(10, 0.5, 5, 100), (20, 0.8, 11, 200)]
    assert (first.summary, first.picture) == (distilled(0.8), b"picture")
    assert (len(second.curve), second.picture) == (0, None)


DAMAGED = {  # a file of a run, what is in it, and why the run is left out
    "broken": ("summary.json", '{"student_acc', "its summary.json cannot be read: "),
    "listed": ("summary.json", "[1, 2]", "its summary.json is not one of nayer_pl"),
    "empty": ("summary.json", "{}", "its summary.json is not one of nayer_pl"),
    "foreign": ("config.yaml", "optimizer: sgd\n", "its config.yaml is not one of nayer_pl"),
    "mangled": ("config.yaml", "a: [\n", "its config.yaml cannot be read: "),
    "long": ("metrics.csv", "a\n" + "9" * 200_000, "its metrics.csv cannot be read: "),
}


def test_find_runs__left_out(tmp_path, write_run, distilled):
    write_run("jobs/good", CURVE, distilled(0.8))
    write_run("jobs/killed", CURVE)
    write_run("jobs/early")
    for folder in ("jobs/good/teacher", "jobs/failed/teacher", "jobs/teachers/wrn"):
        write_run(folder, summary={"accuracy": 0.9}, method="supervised")
    written = {"teacher": {"weights": "t.safetensors"}, "export": {"path": "t.safetensors"}}
    write_run("jobs/supervised", summary={"accuracy": 0.9}, **written)
    (tmp_path / "beside").mkdir()
    for name, (file, content, _) in DAMAGED.items():
        (write_run(f"jobs/{name}", CURVE, distilled(0.8)) / file).write_text(content)
    roots = ("jobs", "nowhere", "beside", "jobs/good/summary.json")
    found = find_runs([tmp_path / root for root in roots])
    assert sum(isinstance(each, Run) for each in found) == 1
    reasons = {Path(each.name).name: each.why for each in found if isinstance(each, LeftOut)}
    expected = {
        **{name: why for name, (_, _, why) in DAMAGED.items()},
        "killed": "not finished: 80.0 % after 20 student updates",
        "early": "not finished",
        "failed": "no run in it: it never began",
        "supervised": "it trained a teacher",
        "nowhere": "there is no such directory",
        "beside": "no runs in it",
        "summary.json": "there is no such directory",
    }
    assert reasons.keys() == expected.keys()
    assert all(reasons[name].startswith(why) for name, why in expected.items())


@pytest.fixture
def project(monkeypatch):
    """Let the W&B project "me/nayer" hold runs: rows as Lightning's logger writes them."""

    def make(name, config, state="finished", summary=None, rows=()):
        def download(root, replace):
            (Path(root) / "new.png").write_bytes(b"picture")

        return SimpleNamespace(
            path=["me", "nayer", name], config=config, state=state, summary=summary or {},
            scan_history=lambda: iter(rows),
            file={"new.png": SimpleNamespace(download=download)}.__getitem__,
        )  # fmt: skip

    def hold(*runs):
        held = {"me/nayer": [make(*run) for run in runs]}
        monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(runs=held.__getitem__))

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
