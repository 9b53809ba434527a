"""A disk that becomes full in the middle of a run: the kernel refuses the rest of what is written.

A limit on the size of files stands in for it. It holds for every write of this process and, like a
full disk, lets the first bytes pass.
"""

import csv
import os
import shutil
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from nayer_pl import InputError
from nayer_pl.app.resume import find_corruption
from nayer_pl.callbacks import Checkpoints, Curves, Export, SampleGrid
from nayer_pl.callbacks.loggers import MetricsFile, rows

resource = pytest.importorskip("resource")

NAMES = ["a", "b", "c"]
VALUES = st.dictionaries(st.sampled_from("abcd"), st.floats(-1, 1), min_size=1)


@contextmanager
def full_disk(room):
    """No file of this process becomes longer than `room` bytes; pytest's own file neither."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FullDisk(Callback):
    """Full from work item `first` until `last` begins; records the files after every item."""

    def __init__(self, room, first, last, folder):
        self.room, self.items, self.folder = room, (first, last), folder
        self.count, self.seen, self.full = 0, [], ExitStack()

    def on_train_batch_start(self, *_):
        if self.count == self.items[0]:
            self.full.enter_context(full_disk(self.room))
        if self.count == self.items[1]:
            self.full.close()
        self.count += 1

    def on_train_batch_end(self, *_):
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        self.seen.append({path.relative_to(self.folder): path.stat().st_mtime_ns for path in files})


class AtTheEnd(Callback):
    """Calls a function when training is over, before the results are written."""

    def __init__(self, act):
        self.act = act

    def on_train_end(self, *_):
        self.act()


@contextmanager
def full_at_the_end():
    with ExitStack() as stack:
        yield AtTheEnd(lambda: stack.enter_context(full_disk(100)))


@pytest.fixture
def run(tiny_method, tiny_data, fit, tmp_path):
    """A run of the same networks in the directory `name`."""

    def start(name, *callbacks, **options):
        torch.manual_seed(3)
        method, data, folder = tiny_method(), tiny_data(), tmp_path / name
        fit(
            method, data, callbacks=[*callbacks, Checkpoints(folder / "checkpoints", minutes=0)],
            logger=MetricsFile(folder, name="", version=""), default_root_dir=folder,
            enable_checkpointing=True, **options,
        )  # fmt: skip
        return method

    return start


def same(first, second):
    return all(torch.equal(first[k], second[k]) for k in second)


@pytest.mark.parametrize(
    ("room", "named"), [(100, "bank/bank-0-"), (5000, "checkpoints/next.ckpt")]
)
def test_run__full_for_a_while(run, tmp_path, caplog, room, named):
    """Neither the bank's files nor checkpoints can be written, or checkpoints alone."""
    whole = run("whole")
    caplog.clear()
    folder = tmp_path / "run"
    disk = FullDisk(room, 3, 7, folder)
    with disk.full:
        method = run("run", disk)
    assert same(method.state_dict(), whole.state_dict())
    assert (folder / "metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()

    # What had been saved stays, with nothing beside it.
    before, during, after = disk.seen[3], disk.seen[4:7], disk.seen[9]
    saved = {path: before[path] for path in before if path.name.endswith(".ckpt")}
    assert {path.name for path in saved} == {"last.ckpt", "previous.ckpt"}
    for seen in during:
        assert saved.items() <= seen.items()
        assert not [path for path in seen if path.suffix not in (".ckpt", ".safetensors", ".csv")]
    assert set(saved.values()).isdisjoint(after[path] for path in saved)

    # Each warning names what still protects the run.
    said = [text for text in caplog.messages if "continues" in text]
    assert len(said) == 4
    assert any(f"'{folder}/{named}" in text for text in said)
    for text in said:
        assert "File too large" in text
        assert f"resumed from '{folder}/checkpoints/last.ckpt'" in text

    last = folder / "checkpoints" / "last.ckpt"
    assert find_corruption(last) is None
    assert same(run("run", ckpt_path=last).student.state_dict(), whole.student.state_dict())


@given(
    moments=st.lists(
        st.tuples(VALUES, st.sampled_from(["wait", "save", "full"])), min_size=1, max_size=8
    ),
    room=st.integers(0, 9),
)
def test_metrics_file__loses_no_row(tmp_path_factory, moments, room):
    """As Lightning's file at every moment, of a disk that is never full; written rows are whole."""
    ours, theirs = (
        kind(tmp_path_factory.mktemp("rows"), name="", version="")
        for kind in (MetricsFile, CSVLogger)
    )
    path = Path(ours.experiment.metrics_file_path)
    for step, (values, act) in enumerate(moments):
        for logger in (ours, theirs):
            logger.log_metrics(values, step)
        if act == "save":
            ours.save()
            theirs.save()
        if act == "full":
            with full_disk(room + (path.stat().st_size if path.exists() else 0)):
                ours.save()
        assert rows(ours) == rows(theirs)
        if act == "save":
            assert path.read_bytes().decode() == rows(ours)
        if path.exists():
            header, *written = csv.reader(path.read_text().splitlines())
            assert all(len(row) == len(header) for row in written)
    ours.save()
    theirs.save()
    assert path.read_bytes() == Path(theirs.experiment.metrics_file_path).read_bytes()
    assert os.listdir(ours.log_dir) == ["metrics.csv"]


def test_metrics_file__one_warning(tmp_path, caplog):
    logger = MetricsFile(tmp_path, name="", version="")
    for room in (3, 3, 100, 30):  # full, full, room again, full
        logger.log_metrics({"a": 1.0}, 0)
        with full_disk(room):
            logger.save()
    assert [text.count("metrics.csv' cannot be written") for text in caplog.messages] == [1, 1]


def test_pictures__full(run, tmp_path, caplog):
    with full_at_the_end() as full:
        run(
            "run", full, SampleGrid(tmp_path / "samples.png", NAMES),
            Curves(tmp_path / "run" / "metrics.csv", tmp_path / "curves.png"),
        )  # fmt: skip
    for name in ("samples.png", "curves.png"):
        assert f"{name}' cannot be written (File too large)" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_export__full(run, tmp_path):
    """The run stops, keeps its checkpoint, and writes the student after a resume."""
    folder, product = tmp_path / "run", tmp_path / "elsewhere" / "student.safetensors"
    with (
        full_at_the_end() as full,
        pytest.raises(InputError, match=rf"'{product}' .*File too large.*resume from the last"),
    ):
        run("run", full, Export(product, NAMES, (1, 8, 8)))
    assert list(product.parent.iterdir()) == []
    last = folder / "checkpoints" / "last.ckpt"
    assert find_corruption(last) is None
    method = run("run", Export(product, NAMES, (1, 8, 8)), ckpt_path=last)
    assert same(method.student.network.state_dict(), load_file(product))


def test_export__folder_vanished(run, tmp_path):
    """The student is in the run's directory instead."""
    product, instead = tmp_path / "elsewhere/student.safetensors", tmp_path / "run"

    def replace_folder():
        shutil.rmtree(product.parent)
        product.parent.write_text("a file, where the folder was")

    with pytest.raises(InputError, match=rf"'{product}' cannot .*is in '{instead}"):
        run("run", AtTheEnd(replace_folder), Export(product, NAMES, (1, 8, 8)))
    student = run("whole").student.network.state_dict()
    assert same(student, load_file(instead / "student.safetensors"))
