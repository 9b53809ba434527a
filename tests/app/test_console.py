import logging
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
from rich.console import Console
from tqdm import tqdm

from nayer_pl.app.console import BesideBars, unbroken_console
from nayer_pl.callbacks import PhaseProgressBar

FULL = Path("/dev/full")  # answers every write as a full disk does


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
def test_a_log_file_on_a_full_disk_does_not_end_a_run(tiny_method, tiny_data, fit):
    def run():
        method = tiny_method()
        fit(method, tiny_data(), callbacks=[PhaseProgressBar()], enable_progress_bar=True)
        return method

    with full_log(), pytest.raises(OSError, match="No space"):
        run()
    with full_log(), unbroken_console():
        method = run()
        print("x" * 100_000)
        Console().print("a table")
    assert method.student_updates == 6


def test_what_can_be_printed_is(capsys):
    with unbroken_console():
        print("out")
        print("err", file=sys.stderr)
        assert not sys.stdout.isatty()
    assert capsys.readouterr() == ("out\n", "err\n")


def test_a_log_message_does_not_stick_to_a_progress_bar(capsys):
    handler, log = BesideBars(), logging.Logger("test")
    log.addHandler(handler)
    with tqdm(total=2, file=sys.stdout, desc="bar") as bar:
        bar.update()
        log.warning("ended")
    drawn = capsys.readouterr().out
    assert "ended" in [line.rpartition("\r")[2] for line in drawn.split("\n")]
    assert drawn.rpartition("ended")[2].lstrip().startswith("bar:  50%")  # it is drawn again


def test_bars_of_other_libraries_stay_out_of_log_files(monkeypatch):
    for library in ("HF_HUB", "HF_DATASETS"):
        monkeypatch.delenv(f"{library}_DISABLE_PROGRESS_BARS", raising=False)
    libraries = ("transformers.utils.logging", "huggingface_hub.utils", "datasets.utils")
    bars = "\n".join(f"from {name} import tqdm; list(tqdm(range(3)))" for name in libraries)
    quiet = "from nayer_pl.app.console import quiet_lightning; quiet_lightning()"
    for code, drawn in ((bars, 3), (f"{quiet}\n{bars}", 0)):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr.count("100%") == drawn
