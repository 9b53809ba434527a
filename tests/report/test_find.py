import shutil

import pytest

from nayer_pl.report.find import find_runs
from nayer_pl.report.run import Evaluation

CURVE = [(10, 0.5, 4.0, 1.0), (20, 0.8, 8.0, 3.0)]


def why(left_out):
    return {each.name.rpartition("/")[2]: each.why for each in left_out}


def test_runs_are_found_at_any_depth_and_once(tmp_path, write_run, distilled):
    one = write_run("sweep/a/one", CURVE, distilled(0.8))
    write_run("two", CURVE, distilled(0.7), seed=3)
    runs, left_out = find_runs([tmp_path, one, tmp_path / "sweep"])
    assert {run.seed for run in runs} == {0, 3}
    assert len(runs) == 2
    assert runs[0].evaluations == (Evaluation(10, 0.5, 5, 100), Evaluation(20, 0.8, 11, 200))
    assert runs[0].summary == distilled(0.8)
    assert left_out == []


def test_the_training_of_a_runs_teacher_is_no_run_of_its_own(tmp_path, write_run, distilled):
    write_run("sweep/whole", CURVE, distilled(0.8))
    write_run("sweep/whole/teacher", summary={"accuracy": 0.9}, method="supervised")
    write_run("sweep/failed/teacher", summary={"accuracy": 0.9}, method="supervised")
    runs, left_out = find_runs([tmp_path / "sweep"])
    assert [run.method for run in runs] == ["nayer"]
    assert why(left_out) == {"failed": "no run in it: it never began"}


def test_the_training_of_a_teacher_is_no_students(tmp_path, write_run, distilled):
    teacher = {"teacher": {"weights": "t.safetensors"}, "export": {"path": "t.safetensors"}}
    folder = write_run("of_a_teacher", summary={"accuracy": 0.9}, **teacher)
    student = write_run("student", summary=distilled(0.8))
    runs, left_out = find_runs([tmp_path])
    assert [run.name for run in runs] == [student.as_posix()]
    assert left_out == [(folder.as_posix(), "it trained a teacher")]


def test_what_cannot_be_reported_is_named(tmp_path, write_run, distilled):
    write_run("jobs/good", CURVE, distilled(0.8))
    write_run("jobs/killed", CURVE)
    write_run("jobs/early")
    (tmp_path / "jobs" / "refused").mkdir()
    broken = write_run("jobs/broken", CURVE)
    (broken / "summary.json").write_text('{"student_acc')
    listed = write_run("jobs/listed", CURVE)
    (listed / "summary.json").write_text("[1, 2]")
    foreign = write_run("jobs/foreign", CURVE, {})
    (foreign / "config.yaml").write_text("optimizer: sgd\n")
    mangled = write_run("jobs/mangled", CURVE, {})
    (mangled / "config.yaml").write_text("a: [\n")
    write_run("jobs/empty", CURVE, {})
    long = write_run("jobs/long", CURVE, {})
    (long / "metrics.csv").write_text("a\n" + "9" * 200_000)
    (tmp_path / "beside").mkdir()
    roots = ("jobs", "nowhere", "beside", "jobs/good/summary.json")
    runs, left_out = find_runs([tmp_path / root for root in roots])
    assert len(runs) == 1
    reasons = why(left_out)
    assert reasons["killed"] == "not finished: 80.0 % after 20 student updates"
    assert reasons["early"] == "not finished, and not evaluated"
    assert reasons["refused"] == "no run in it: it never began"
    assert reasons["broken"].startswith("its summary.json cannot be read: ")
    assert reasons["listed"] == reasons["empty"] == "its summary.json is not one of nayer_pl"
    assert reasons["foreign"] == "its config.yaml is not one of nayer_pl"
    assert reasons["mangled"].startswith("its config.yaml cannot be read: ")
    assert reasons["long"].startswith("its metrics.csv cannot be read: ")
    assert reasons["nowhere"] == "there is no such directory"
    assert reasons["beside"] == "no runs in it"
    assert reasons["summary.json"] == "not a directory"
    assert len(reasons) == 12


@pytest.mark.parametrize("missing", ["metrics.csv", "samples.png"])
def test_a_run_is_one_without_its_curve_or_picture(write_run, distilled, missing):
    path = write_run("run", CURVE, distilled(0.8), picture=b"picture")
    (path / missing).unlink()
    (run,), left_out = find_runs([path])
    assert left_out == []
    assert (run.evaluations == ()) == (missing == "metrics.csv")
    assert run.picture == (None if missing == "samples.png" else b"picture")


def test_moved_runs_are_still_runs(tmp_path, write_run, distilled):
    path = write_run("run", CURVE, distilled(0.8))
    shutil.move(path, tmp_path / "elsewhere")
    assert len(find_runs([tmp_path / "elsewhere"])[0]) == 1
