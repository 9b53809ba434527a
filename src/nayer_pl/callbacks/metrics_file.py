"""`metrics.csv`, which loses no row to a full disk and continues after a resume."""

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from nayer_pl.runtime.files import append, cannot_write, write_durably

log = logging.getLogger(__name__)


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger for a disk that may be full.

    Rows that cannot be written wait in memory until they can, and checkpoints hold them. No row is
    written twice or in part.

    Args:
        save_dir: The run's directory; the others are as in the base class.

    Example:
        >>> logger = MetricsFile("run", name="", version="")
        >>> logger.log_metrics({"loss": 0.5}, step=1)
        >>> rows(logger).split()
        ['loss,step', '0.5,1']
    """

    _waiting = False

    @rank_zero_only
    def save(self) -> None:
        """Write the rows since the last time, or warn that they cannot be written."""
        try:
            self._write()
            self._waiting = False
        except OSError as error:
            if not self._waiting:
                log.warning("%s; its rows wait in memory until it can be.", cannot_write(error))
            self._waiting = True

    def _write(self) -> None:
        writer = self.experiment
        path, new = Path(writer.metrics_file_path), writer.metrics
        if not new:
            return
        keys = _columns(writer.metrics_keys, new)
        if keys != writer.metrics_keys or not path.exists():
            write_durably(path, rows(self).encode())
        else:
            append(path, _table(new, keys).encode())
        writer.metrics, writer.metrics_keys = [], keys


def rows(logger: CSVLogger) -> str:
    """All rows so far as CSV, written or not."""
    writer = logger.experiment
    path = Path(writer.metrics_file_path)
    written = path.read_bytes().decode() if path.exists() else ""
    if not writer.metrics:
        return written
    keys = _columns(writer.metrics_keys, writer.metrics)
    header = dict(zip(keys, keys, strict=True))
    return _table([header, *csv.DictReader(written.splitlines()), *writer.metrics], keys)


def restore_rows(logger: CSVLogger, content: str) -> None:
    """Let a new logger continue after these rows; by itself it would begin an empty file."""
    writer = logger.experiment
    if content:
        write_durably(Path(writer.metrics_file_path), content.encode())
        writer.metrics_keys = next(csv.reader(content.splitlines()))


def _columns(written: Iterable[str], new: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({*written, *(name for row in new for name in row)})


def _table(table: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, keys).writerows(table)
    return text.getvalue()
