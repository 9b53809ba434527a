"""Runs at Weights & Biases."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from nayer_pl.errors import InputError
from nayer_pl.report.run import LeftOut, Run, evaluations, is_one_of_ours, trained_a_teacher

PICTURES = "bank/samples"


def fetch_runs(project: str) -> tuple[list[Run], list[LeftOut]]:
    """Read every run of a project.

    Args:
        project: "entity/project".

    Raises:
        InputError: it cannot be read.
    """
    import wandb

    try:
        found = [_read(run) for run in wandb.Api().runs(project)]
    except Exception as error:  # the client's errors have no class in common
        raise InputError(
            f"The runs of '{project}' cannot be read from Weights & Biases "
            f"({str(error).partition(chr(10))[0]}); give ENTITY/PROJECT, and log in with "
            "`wandb login`."
        ) from error
    runs = [run for run in found if isinstance(run, Run)]
    return runs, [run for run in found if isinstance(run, LeftOut)]


def _read(run: Any) -> Run | LeftOut:
    name, config = "/".join(run.path), dict(run.config)
    if not is_one_of_ours(config):
        return LeftOut(name, "not a run of nayer_pl")
    if trained_a_teacher(config):
        return LeftOut(name, "it trained a teacher")
    if run.state != "finished":
        return LeftOut(name, f"not finished: it is {run.state}")
    rows = list(run.scan_history())
    summary = {key: value for key, value in dict(run.summary).items() if "/" not in key}
    if "versions" not in summary:  # the last thing that a run does
        return LeftOut(name, "not finished: it was ended before its summary")
    return Run(name, config, summary, evaluations(rows), _picture(run, rows))


def _picture(run: Any, rows: list[dict[str, Any]]) -> bytes | None:
    """The newest grid of samples that was logged."""
    logged = [row[PICTURES] for row in rows if row.get(PICTURES)]
    names = logged[-1].get("filenames") if logged else None
    if not names:
        return None
    with tempfile.TemporaryDirectory() as folder, suppress(Exception):  # it was deleted there
        run.file(names[-1]).download(root=folder, replace=True)
        return (Path(folder) / names[-1]).read_bytes()
    return None
