import logging
import os
import platform
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import huggingface_hub
import pytest
import torch
from rich.console import Console
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from nayer_pl.app.output import (
    TqdmLoggingHandler,
    environment_info,
    ignore_write_errors,
    print_summary,
    quiet_lightning,
)
from nayer_pl.callbacks import PhaseProgressBar

FULL = Path("/dev/full")  # answers every write as a full disk does
DISTILLED = {
    "seed": 3,
    "teacher_accuracy": 0.957,
    "student_accuracy": 0.94321,
    "agreement": 0.9612,
    "teacher_parameters": 21_282_122,
    "student_parameters": 11_173_962,
    "images_banked": 160_000,
    "images_kept": 160_000,
    "bank_bytes": 492_800_000,
    "label_agreement": 0.8765,
    "seconds_teacher": 0.0,
    "seconds_synthesis": 1234.56,
    "images_per_second_synthesis": 129.6,
    "seconds_distillation": 77.04,
    "images_per_second_distillation": 12_345.6,
}


@contextmanager
def full_log():
    """Standard output and errors go to a file on a full disk."""
    with open(FULL, "w", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        try:
            yield
        finally:
            with suppress(OSError):  # what it still holds
                log.close()


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
def test_ignore_write_errors__full_disk(tiny_method, tiny_data, fit):
    def run():
        method = tiny_method()
        fit(method, tiny_data(), callbacks=[PhaseProgressBar()], enable_progress_bar=True)
        return method

    with full_log(), pytest.raises(OSError, match="No space"):
        run()
    with full_log(), ignore_write_errors():
        method = run()
        print("x" * 100_000)
        Console().print("a table")
    assert method.student_updates == 6


def test_ignore_write_errors__room(capsys):
    with ignore_write_errors():
        print("out")
        print("err", file=sys.stderr)
        assert not sys.stdout.isatty()
    assert capsys.readouterr() == ("out\n", "err\n")


def test_logging_handler__above_progress_bar(capsys):
    log = logging.Logger("test")
    log.addHandler(TqdmLoggingHandler())
    with tqdm(total=2, file=sys.stdout, desc="bar") as bar:
        bar.update()
        log.warning("ended")
    drawn = capsys.readouterr().out
    assert "ended" in [line.rpartition("\r")[2] for line in drawn.split("\n")]
    assert drawn.rpartition("ended")[2].lstrip().startswith("bar:  50%")  # drawn below it


def test_quiet_lightning__bars_of_other_libraries(monkeypatch, capsys):
    """None in a log file, as standard error is here."""
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS", raising=False)
    transformers_logging.enable_progress_bar()
    quiet_lightning()
    for tqdm_of in (transformers_logging.tqdm, huggingface_hub.utils.tqdm):
        list(tqdm_of(range(3)))
    assert "100%" not in capsys.readouterr().err
    assert os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] == "1"  # read when it is imported


@pytest.fixture
def rows(monkeypatch, capsys):
    """The printed rows by name, each a list of its lines."""

    def read(summary, files=None, width=60):
        monkeypatch.setenv("COLUMNS", str(width))
        print_summary(summary, files or {})
        cells = {}
        for line in capsys.readouterr().out.splitlines():
            assert len(line) <= width
            if line.startswith("│"):
                name, text = (cell.strip() for cell in line.strip("│").split("│", 1))
                if name:
                    last = name
                cells.setdefault(last, []).append(text)
        return cells

    return read


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (
            DISTILLED,
            {
                "teacher accuracy": "95.70 %",
                "student accuracy": "94.32 %",
                "agreement": "96.12 %",
                "parameters": "teacher 21.28 M, student 11.17 M, 1.90x smaller",
                "images banked": "160,000 (492.80 MB); the teacher sees the target label "
                "in 87.65 %",
                "time, synthesis": "1234.6 s, 130 images/s",
                "time, distillation": "77.0 s, 12,346 images/s",
            },
        ),
        (
            {"accuracy": 0.5, "parameters": 175_066, "seconds_training": 2.5},
            {"accuracy": "50.00 %", "parameters": "0.18 M", "time, training": "2.5 s"},
        ),
        ({"parameters": 9_876}, {"parameters": "9,876"}),
        (
            {"student_accuracy": None, "agreement": 0.25},
            {"student accuracy": "not measured (no real images)", "agreement": "25.00 %"},
        ),
    ],
    ids=["distillation", "teacher", "small network", "no evaluation"],
)
def test_print_summary(rows, summary, expected):
    assert {name: " ".join(lines) for name, lines in rows(summary).items()} == expected


@pytest.mark.parametrize(
    ("count", "text"),
    [(9_876, "0.01 MB"), (999_000_000, "999.00 MB"), (48_168_960_000, "48.17 GB")],
)
def test_print_summary__bank_size(rows, count, text):
    assert f"({text})" in " ".join(rows({**DISTILLED, "bank_bytes": count})["images banked"])


@pytest.mark.parametrize("width", [40, 200])
def test_print_summary__long_paths_are_folded(rows, width):
    files = {
        "weights": "/data/" + "very_long_folder_name/" * 8 + "student.safetensors",
        "directory": "runs/lr[a]/[bold]/[/x]",
    }
    cells = rows(DISTILLED, files, width)
    assert {name: "".join(cells[name]) for name in files} == files


@pytest.mark.parametrize(
    ("cores", "threads", "text"), [(8, 2, "8 cores, 2 threads"), (1, 1, "1 core, 1 thread")]
)
def test_environment_info(monkeypatch, cores, threads, text):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU {device}")
    info = environment_info()
    assert info["machine"].endswith(f", {text}")
    assert environment_info(devices=4)["machine"] == f"4 x {info['machine']}"
    assert environment_info("cuda:1")["machine"] == f"GPU cuda:1, {text}"
    release = torch.__version__.partition("+")[0]  # not every build's package says for which CUDA
    assert f"torch {release}" in info["versions"]
    assert info["versions"].endswith(f", Python {platform.python_version()}")
