"""What is printed: only what says something. It may get lost (a full disk); the run does not."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar


class Unbroken:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if that works."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that works."""
        with suppress(OSError):
            self._stream.flush()


class BesideBars(logging.StreamHandler[Any]):
    """Log messages on lines of their own, above the progress bars that are drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """To standard output, whatever that is now."""
        try:
            tqdm.write(self.format(record), file=sys.stdout)
        except Exception:  # as every handler: logging says what happened
            self.handleError(record)


@contextmanager
def unbroken_console() -> Iterator[None]:
    """Let nobody fail who prints: progress bars and tables do not expect a disk to be full."""
    with redirect_stdout(Unbroken(sys.stdout)), redirect_stderr(Unbroken(sys.stderr)):
        yield


def quiet_lightning() -> None:
    """Keep advertisements and remarks about choices that are made on purpose off the screen."""
    for talkative in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        logging.getLogger("nayer_pl").setLevel(logging.ERROR)  # the first process says it already
    if not sys.stderr.isatty():  # a log file, where every state of a bar would stay
        disable_progress_bar()  # the Hub's too
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when it is imported
    for message in (
        ".*does not have many workers.*",
        ".*Total length of .* across ranks is zero.*",
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*recommended to use .self.log.*sync_dist=True.*",  # the metrics are synchronized already
    ):
        warnings.filterwarnings("ignore", message)
