import json
import os
import pty
import subprocess
import sys
import threading

import pytest
import torch
import wandb
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nayer_pl.callbacks import SampleGrid, loggers
from nayer_pl.callbacks.loggers import OfflineSafeWandbLogger, close, sync_command, wandb_logger

# Written into a file: the terminal belongs to whatever Weights & Biases may want to ask.
OFFLINE = """
import json, runpy, sys
# The file alone: the package's other imports take longer than the test.
loggers = runpy.run_path(sys.argv[3])
logger = loggers["wandb_logger"](project="p", name="n", save_dir=sys.argv[1])
logger.log_metrics({"student_updates": 1, "val/student_accuracy": 0.5})
facts = {"offline": logger.experiment.offline, "sync": loggers["sync_command"](logger)}
loggers["close"]([logger])
first = logger.experiment.id
again = loggers["wandb_logger"](project="p", name="n", save_dir=sys.argv[1], again=True)
facts |= {"ids": [first, again.experiment.id], "sync both": loggers["sync_command"](again)}
loggers["close"]([again])
with open(sys.argv[2], "w") as file:
    json.dump(facts, file)
"""


@pytest.fixture
def nobody_logged_in(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    (tmp_path / "netrc").touch(mode=0o600)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    # Whatever happens, nothing leaves this machine.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


def test_without_a_login_a_run_is_offline_and_goes_on_and_nobody_is_asked(
    tmp_path, nobody_logged_in
):
    master, terminal = pty.openpty()  # a question on a terminal would wait for its answer
    save_dir, facts_file = tmp_path / "run", tmp_path / "facts.json"
    save_dir.mkdir()
    try:
        subprocess.run(
            [sys.executable, "-c", OFFLINE, str(save_dir), str(facts_file), loggers.__file__],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=tmp_path,
            timeout=120,
            check=True,
        )
    finally:
        os.close(terminal)
        os.close(master)
    facts = json.loads(facts_file.read_text())
    assert facts["offline"] is True
    folder, again = sorted((save_dir / "wandb").glob("offline-run-*"))
    assert facts["sync"] == f"wandb sync {folder.relative_to(tmp_path)}"
    for part in (folder, again):
        (record,) = part.glob("*.wandb")
        assert record.stat().st_size > 0

    # A run that goes on is the same one for Weights & Biases.
    first, second = facts["ids"]
    assert first == second
    both = facts["sync both"].removeprefix("wandb sync ")
    assert sorted(tmp_path.glob(both)) == [folder, again]


def test_disabled_by_the_environment_records_nothing(tmp_path, monkeypatch, nobody_logged_in):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "login", lambda **_: pytest.fail("asked for a login"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    logger = wandb_logger(project="p", name="n", save_dir=str(tmp_path / "run"))
    logger.log_metrics({"student_updates": 1})
    assert sync_command(logger) is None
    assert not list(tmp_path.rglob("*run-*"))


class Recorder:
    """Stands in for a run of Weights & Biases: keeps its options and starts nothing."""

    def __init__(self, **options):
        self.options, self.axes = options, {}

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric


@pytest.fixture
def start(monkeypatch, nobody_logged_in):
    started, unreachable = [], None

    def init(**options):
        if options["mode"] in (unreachable or ()):
            raise wandb.errors.CommError("no route\nto host")
        started.append(Recorder(**options))
        return started[-1]

    monkeypatch.setattr(wandb, "init", init)

    def start(save_dir="d", out_of_reach=None, **options):
        nonlocal unreachable
        unreachable = out_of_reach
        wandb_logger(project="p", name="n", save_dir=str(save_dir), **options)
        return started[-1]

    return start


@pytest.mark.parametrize(("logged_in", "mode"), [(True, "online"), (False, "offline")])
def test_login_decides_the_mode(monkeypatch, start, logged_in, mode):
    monkeypatch.setattr(wandb, "login", lambda **_: logged_in)
    options = start(tags=["x"]).options
    assert options.pop("settings").silent is (not logged_in)
    assert options == {"project": "p", "name": "n", "dir": "d", "mode": mode, "tags": ["x"]}


def test_unreachable_server_means_offline_with_a_warning(monkeypatch, start, caplog):
    def login(**_):
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "login", login)
    assert start().options["mode"] == "offline"
    assert "no route to host" in caplog.text


def test_a_server_that_is_gone_when_the_run_begins_means_offline_with_a_warning(start, caplog):
    assert start(mode="online", out_of_reach=["online"]).options["mode"] == "offline"
    assert "Weights & Biases cannot be used (no route); recording offline" in caplog.text


def test_where_not_even_that_works_the_run_goes_on_without(start, caplog):
    recorder = start(mode="online", out_of_reach=["online", "offline"])
    assert recorder.options["mode"] == "disabled"
    assert "(no route); the run goes on without it" in caplog.text


def test_a_run_that_goes_on_keeps_the_id_of_the_newest_record(start, tmp_path):
    # As W&B names them; the last two began in the same second.
    of = {"run-20260102_030405-old": "old", "latest-run": "old"}
    of |= {f"offline-run-20260102_030406-new{again}": "new" for again in ("", "-1")}
    for name, run_id in of.items():
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / f"run-{run_id}.wandb").touch()
    assert "id" not in start(tmp_path, mode="online").options
    options = start(tmp_path, mode="online", again=True).options
    assert (options["id"], options["resume"]) == ("new", "allow")


class Failing(Recorder):
    """A run whose service ends after some calls."""

    id, summary = "id", {}

    def __init__(self, error, calls):
        super().__init__()
        self.error, self.calls, self.logged = error, calls, []

    def log(self, values):
        self.answer()
        self.logged.append(values)

    def finish(self, exit_code):
        self.answer()

    def answer(self):
        self.calls -= 1
        if self.calls < 0:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        wandb.errors.CommError("no route to host"),
        wandb.errors.UsageError("api_key not configured"),
        BrokenPipeError(32, "Broken pipe"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_run_goes_on_when_weights_and_biases_fails(
    tiny_method, tiny_data, fit, tmp_path, caplog, error
):
    """Metrics, pictures and the end; the student is that of a run without it."""
    students = []
    for calls in (None, 3):
        run = Failing(error, calls)
        charts = OfflineSafeWandbLogger(project="p", experiment=run) if calls else False
        torch.manual_seed(3)
        method = tiny_method()
        grid = SampleGrid(tmp_path / "samples.png", ["a", "b", "c"], every_n_epochs=1)
        fit(method, tiny_data(), logger=charts, callbacks=[grid])
        students.append(method.student.state_dict())
    charts.summarize({"accuracy": 1.0})
    close([charts])
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])
    assert len(run.logged) == 3
    said = [message for message in caplog.messages if "Weights & Biases" in message]
    assert len(said) == 1
    assert f"failed ({type(error).__name__}: " in said[0]


@pytest.mark.parametrize("failed", [False, True])
def test_a_run_that_failed_is_not_finished_there(failed):
    said = []
    run = Recorder()
    run.finish = lambda exit_code: said.append(exit_code)
    close([OfflineSafeWandbLogger(project="p", experiment=run)], failed=failed)
    assert said == [int(failed)]


def test_a_failure_at_the_end_of_a_run_is_said(caplog):
    charts = OfflineSafeWandbLogger(project="p", experiment=Failing(OSError("gone"), 1))
    charts.log_metrics({"a": 1.0}, 0)
    close([charts])
    assert "Weights & Biases failed (OSError: gone)" in caplog.text


def test_after_sigterm_nobody_waits_for_an_upload(caplog):
    class Slow(Failing):
        begun, released = threading.Event(), threading.Event()

        def finish(self, exit_code):
            self.begun.set()
            self.released.wait(60)

    slow = Slow(None, 9)
    charts = OfflineSafeWandbLogger(project="p", experiment=slow)
    try:
        close([charts], patience=0.1)  # a test that waits ends after a minute, and fails
        assert slow.begun.is_set()
        assert charts.uploading
        assert "wandb sync sends the rest" in caplog.text
    finally:
        slow.released.set()

    quick = OfflineSafeWandbLogger(project="p", experiment=Failing(None, 9))
    close([quick], patience=60)
    assert not quick.uploading


def test_explicit_mode_wins_over_the_environment_and_the_login(monkeypatch, start):
    monkeypatch.setattr(wandb, "login", lambda **_: pytest.fail("asked for a login"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert start(mode="offline").options["mode"] == "offline"
    assert start(mode=None).options["mode"] == "disabled"


def test_only_the_first_process_records(monkeypatch, start):
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    assert start(mode="offline").options["mode"] == "disabled"


def test_charts_are_drawn_over_student_updates_and_rounds(start):
    axes = start(mode="offline").axes
    assert axes["*"] == "student_updates"
    assert axes["synthesis/*"] == "synthesis/round"
