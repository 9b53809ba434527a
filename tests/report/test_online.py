from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb

from nayer_pl import InputError
from nayer_pl.report.online import fetch_runs
from nayer_pl.report.run import Evaluation


class StandIn:
    """A W&B run as far as a report reads one; rows as Lightning's logger writes them."""

    def __init__(self, name, config, state="finished", summary=None, rows=()):
        self.path, self.config, self.state = ["me", "nayer", name], config, state
        self.summary, self.rows = summary or {}, rows

    def scan_history(self):
        return iter(self.rows)

    def file(self, name):
        def download(root, replace):
            path = Path(root) / name
            path.parent.mkdir(parents=True)
            path.write_bytes(b"picture of " + name.encode())

        return SimpleNamespace(download=download)


@pytest.fixture
def project(monkeypatch):
    """Lets `wandb.Api().runs("me/nayer")` be these runs."""

    def hold(*runs):
        api = SimpleNamespace(runs=lambda path: {"me/nayer": runs}[path])
        monkeypatch.setattr(wandb, "Api", lambda: api)

    return hold


ROWS = [
    {"trainer/global_step": 10, "student_updates": 10, "val/student_accuracy": 0.5},
    {"trainer/global_step": 10, "student_updates": 10, "time/synthesis": 4.0,
     "time/distillation": 1.0, "synthesis/steps": 60},
    {"trainer/global_step": 10, "bank/samples": {"filenames": ["media/images/old.png"]}},
    {"trainer/global_step": 20, "bank/samples": {"filenames": ["media/images/new.png"]}},
]  # fmt: skip


def test_a_run_is_what_its_directory_would_be(project, config, distilled):
    summary = {**distilled(0.8), "val/agreement": 0.5}
    project(StandIn("abc", config(), summary=summary, rows=ROWS))
    (run,), left_out = fetch_runs("me/nayer")
    assert run.name == "me/nayer/abc"
    assert run.config == config()
    assert run.summary == distilled(0.8)
    assert run.evaluations == (Evaluation(10, 0.5, 5.0, 60),)
    assert run.picture == b"picture of media/images/new.png"
    assert left_out == []


def test_runs_that_are_no_results_are_named(project, config, distilled):
    project(
        StandIn("a", config(), state="crashed"),
        StandIn("b", {"lr": 0.1}),
        StandIn("c", config(), summary=distilled(0.8)),
    )
    runs, left_out = fetch_runs("me/nayer")
    assert [run.name for run in runs] == ["me/nayer/c"]
    assert left_out == [
        ("me/nayer/a", "not finished: it is crashed"),
        ("me/nayer/b", "not a run of nayer_pl"),
    ]


def test_a_project_that_cannot_be_read_is_an_error_that_says_what_to_do(project):
    project()
    with pytest.raises(InputError, match=r"'me/other' cannot be read.*wandb login"):
        fetch_runs("me/other")
