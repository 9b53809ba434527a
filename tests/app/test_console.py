import logging
import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import huggingface_hub
import pytest
from rich.console import Console
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from nayer_pl.app.console import TqdmLoggingHandler, ignore_write_errors, quiet_lightning
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
