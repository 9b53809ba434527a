import json
import os
import pty
import subprocess
import sys
import threading

import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nayer_pl.callbacks import SampleGrid, loggers
from nayer_pl.callbacks.loggers import (
    MetricsFile,
    OfflineSafeWandbLogger,
    close_wandb,
    restore_rows,
    rows,
    sync_command,
    wandb_logger,
)

# Written into a file: the terminal belongs to a question that Weights & Biases may ask.
OFFLINE = """
import json, runpy, sys
# The file alone: the package's other imports take longer than the test.
loggers = runpy.run_path(sys.argv[3])
logger = loggers["wandb_logger"](project="p", name="n", save_dir=sys.argv[1])
logger.log_metrics({"student_updates": 1, "val/student_accuracy": 0.5})
facts = {"offline": logger.experiment.offline, "sync": loggers["sync_command"](logger)}
loggers["close_wandb"]([logger])
first = logger.experiment.id
again = loggers["wandb_logger"](project="p", name="n", save_dir=sys.argv[1], resume_run=True)
facts |= {"ids": [first, again.experiment.id], "sync both": loggers["sync_command"](again)}
loggers["close_wandb"]([again])
with open(sys.argv[2], "w") as file:
    json.dump(facts, file)
"""


@pytest.fixture
def logged_out(monkeypatch, tmp_path):
    """No login, and nothing leaves this machine."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    (tmp_path / "netrc").touch(mode=0o600)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


def test_wandb_logger__offline_and_resumed(tmp_path, logged_out):
    """Without a login nothing is asked, and a resumed run has the same id."""
    master, terminal = pty.openpty()  # a question on a terminal would wait for its answer
    save_dir, facts_file = tmp_path / "run", tmp_path / "facts.json"
    save_dir.mkdir()
    try:
        subprocess.run(
            [sys.executable, "-c", OFFLINE, str(save_dir), str(facts_file), loggers.__file__],
            stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path, timeout=120, check=True,
        )  # fmt: skip
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
    first, second = facts["ids"]
    assert first == second
    assert sorted(tmp_path.glob(facts["sync both"].removeprefix("wandb sync "))) == [folder, again]


def test_wandb_logger__disabled(tmp_path, monkeypatch, logged_out):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "login", lambda **_: pytest.fail("asked for a login"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    logger = wandb_logger(project="p", name="n", save_dir=str(tmp_path / "run"))
    logger.log_metrics({"student_updates": 1})
    assert sync_command(logger) is None
    assert not list(tmp_path.rglob("*run-*"))


class Run:
    """A W&B run that starts nothing; its service fails after some calls."""

    id, summary = "id", {}

    def __init__(self, error=None, calls=99, **options):
        self.error, self.calls, self.options = error, calls, options
        self.logged, self.axes, self.status = [], {}, None

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self._answer()
        self.logged.append(values)

    def finish(self, exit_code):
        self._answer()
        self.status = exit_code

    def _answer(self):
        self.calls -= 1
        if self.calls < 0:
            raise self.error


def wandb_of(run):
    return OfflineSafeWandbLogger(project="p", experiment=run)


@pytest.fixture
def start(monkeypatch, logged_out):
    """Calls `wandb_logger`; returns the run, which starts only in modes that can be reached."""
    started = []

    def start(save_dir="d", unreachable=(), **options):
        def init(**options):
            if options["mode"] in unreachable:
                no_route()
            started.append(Run(**options))
            return started[-1]

        monkeypatch.setattr(wandb, "init", init)
        wandb_logger("p", "n", str(save_dir), **options)
        return started[-1]

    return start


def no_route(**_):
    raise wandb.errors.CommError("no route\nto host")


@pytest.mark.parametrize(
    ("login", "given", "unreachable", "mode", "said"),
    [
        (lambda **_: True, None, [], "online", []),
        (lambda **_: False, None, [], "offline", []),
        (no_route, None, [], "offline", ["no route"]),
        (None, "online", ["online"], "offline", ["recording offline"]),
        (None, "online", ["online", "offline"], "disabled", ["offline", "continues without it"]),
    ],
)
def test_wandb_logger__mode(monkeypatch, start, caplog, login, given, unreachable, mode, said):
    monkeypatch.setattr(wandb, "login", login)
    run = start(mode=given, unreachable=unreachable, tags=["x"])
    assert run.options.pop("settings").silent is (mode != "online")
    assert run.options == {"project": "p", "name": "n", "dir": "d", "mode": mode, "tags": ["x"]}
    assert run.axes == {"*": "student_updates", "synthesis/*": "synthesis/round"}
    for message, text in zip(caplog.messages, said, strict=True):
        assert "no route" in message
        assert text in message


def test_wandb_logger__explicit_mode(monkeypatch, start):
    monkeypatch.setattr(wandb, "login", lambda **_: pytest.fail("asked for a login"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert start(mode="offline").options["mode"] == "offline"
    assert start(mode=None).options["mode"] == "disabled"
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)  # only the first records
    assert start(mode="offline").options["mode"] == "disabled"


def test_wandb_logger__resume_run(start, tmp_path):
    # As W&B names them; the last two began in the same second.
    of = {"run-20260102_030405-old": "old", "latest-run": "old"}
    of |= {f"offline-run-20260102_030406-new{again}": "new" for again in ("", "-1")}
    for name, run_id in of.items():
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / f"run-{run_id}.wandb").touch()
    assert "id" not in start(tmp_path, mode="online").options
    options = start(tmp_path, mode="online", resume_run=True).options
    assert (options["id"], options["resume"]) == ("new", "allow")


@pytest.mark.parametrize(
    "error",
    [wandb.errors.CommError("no route to host"), BrokenPipeError(32, "Broken pipe")],
    ids=lambda error: type(error).__name__,
)
def test_logger__wandb_fails(tiny_method, tiny_data, fit, tmp_path, caplog, error):
    """In the middle of a run: the student is that of a run without W&B, with one warning."""
    students = []
    for calls in (None, 3):
        run = Run(error, calls)
        logger = wandb_of(run) if calls else False
        torch.manual_seed(3)
        method = tiny_method()
        grid = SampleGrid(tmp_path / "samples.png", ["a", "b", "c"], every_n_epochs=1)
        fit(method, tiny_data(), logger=logger, callbacks=[grid])
        students.append(method.student.state_dict())
    logger.summarize({"accuracy": 1.0})
    close_wandb([logger])
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])
    assert len(run.logged) == 3
    (said,) = [text for text in caplog.messages if "Weights & Biases" in text]
    assert f"failed ({type(error).__name__}: " in said


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("timeout", [None, 60])
def test_close_wandb(caplog, failed, timeout):
    run = Run()
    assert close_wandb([wandb_of(run)], timeout, failed)
    assert run.status == int(failed)
    assert close_wandb([wandb_of(Run(OSError("gone"), 0))], timeout, failed)
    assert "Weights & Biases failed (OSError: gone)" in caplog.text


def test_close_wandb__timeout(caplog):
    released = threading.Event()

    class Slow(Run):
        def finish(self, exit_code):
            released.wait(60)

    try:
        assert not close_wandb([wandb_of(Slow()), wandb_of(Run())], timeout=0.1)
        assert "wandb sync" in caplog.text
    finally:
        released.set()


def test_restore_rows(tmp_path):
    first = MetricsFile(tmp_path / "first", name="", version="")
    first.log_metrics({"a": 0.1}, 0)
    for kind in (MetricsFile, CSVLogger):
        again = kind(tmp_path / kind.__name__, name="", version="")
        restore_rows(again, rows(first))
        again.log_metrics({"b": 0.2}, 1)
        again.save()
        content = (tmp_path / kind.__name__ / "metrics.csv").read_bytes()
        assert content == b"a,b,step\r\n0.1,,0\r\n,0.2,1\r\n"
