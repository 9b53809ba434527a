import io
import json
import math

import pytest
from rich.console import Console

from nayer_pl.app.summary import print_summary, write_summary

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


def rows(summary, files=None, width=60):
    """What is printed, as a dict: the text of each row, put together again where it was folded."""
    console = Console(width=width, record=True, file=io.StringIO())
    print_summary(summary, files or {}, console)
    cells = {}
    for line in console.export_text().splitlines():
        assert len(line) <= width
        if line.startswith("│"):
            name, text = (cell.strip() for cell in line.strip("│").split("│", 1))
            if name:
                last = name
                cells[last] = [text]
            else:
                cells[last].append(text)
    return cells


def text_of(parts):
    return "".join("".join(parts).split())


def test_numbers_of_a_distillation_are_printed():
    cells = {name: " ".join(parts) for name, parts in rows(DISTILLED).items()}
    assert cells == {
        "teacher accuracy": "95.70 %",
        "student accuracy": "94.32 %",
        "agreement": "96.12 %",
        "parameters": "teacher 21.28 M, student 11.17 M, 1.90x smaller",
        "images banked": "160,000 (492.80 MB); the teacher sees the wanted label in 87.65 %",
        "time, synthesis": "1234.6 s, 130 images/s",
        "time, distillation": "77.0 s, 12,346 images/s",
    }


@pytest.mark.parametrize(
    ("count", "text"),
    [(9_876, "0.01 MB"), (999_000_000, "999.00 MB"), (48_168_960_000, "48.17 GB")],
)
def test_a_banks_memory_is_in_megabytes_or_gigabytes(count, text):
    assert f"({text})" in " ".join(rows({**DISTILLED, "bank_bytes": count})["images banked"])


def test_numbers_of_a_teachers_training_are_printed():
    summary = {"accuracy": 0.5, "parameters": 175_066, "seconds_training": 2.5}
    cells = {name: " ".join(parts) for name, parts in rows(summary).items()}
    assert cells == {"accuracy": "50.00 %", "parameters": "0.18 M", "time, training": "2.5 s"}


def test_a_small_networks_parameters_are_counted_to_the_last():
    assert rows({"parameters": 9_876})["parameters"] == ["9,876"]


def test_accuracy_that_was_not_measured_says_so():
    cells = rows({"student_accuracy": None, "agreement": 0.25})
    assert "not measured" in " ".join(cells["student accuracy"])
    assert cells["agreement"] == ["25.00 %"]


@pytest.mark.parametrize("width", [40, 60, 200])
def test_long_paths_are_folded_not_cut(width):
    files = {
        "weights": "/data/" + "very_long_folder_name/" * 8 + "student.safetensors",
        "W&B, offline": "wandb sync runs/2025-01-01/wandb/offline-run-20250101_000000-abcdefgh",
    }
    cells = rows(DISTILLED, files, width)
    for name, path in files.items():
        assert text_of(cells[name]) == path.replace(" ", "")
    assert list(cells)[-2:] == list(files)


@pytest.mark.parametrize("path", ["runs/lr[a]/x", "runs/[bold]x", "runs/[/x]"])
def test_paths_with_brackets_are_printed_as_they_are(path):
    assert text_of(rows(DISTILLED, {"directory": path})["directory"]) == path


def test_written_summary_reads_back_as_it_was(tmp_path):
    summary = {**DISTILLED, "accuracy": None, "text": "ä", "tiny": 1e-300, "third": 1 / 3}
    write_summary(tmp_path / "summary.json", summary)
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text) == summary
    assert list(json.loads(text)) == list(summary)


def test_infinite_numbers_come_back_too(tmp_path):
    write_summary(tmp_path / "summary.json", {"loss": math.inf, "other": math.nan})
    loaded = json.loads((tmp_path / "summary.json").read_text())
    assert loaded["loss"] == math.inf
    assert math.isnan(loaded["other"])
