"""What is printed: only what matters, and an error of writing it does not end the run."""

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


class IgnoreWriteErrors:
    """A text stream that drops what cannot be written, for example on a full disk.

    Args:
        stream: The stream to write to.
    """

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


@contextmanager
def ignore_write_errors() -> Iterator[None]:
    """Print to `IgnoreWriteErrors`: progress bars and tables do not expect a full disk."""
    out, err = IgnoreWriteErrors(sys.stdout), IgnoreWriteErrors(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield


class TqdmLoggingHandler(logging.StreamHandler[Any]):
    """Logs to the current standard output, on lines of their own above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record with `tqdm.write`."""
        try:
            tqdm.write(self.format(record), file=sys.stdout)
        except Exception:  # as every handler: logging reports it
            self.handleError(record)


def quiet_lightning() -> None:
    """Hide advertisements, and warnings about what is done on purpose."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
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
