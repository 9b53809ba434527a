"""A disk that becomes full in the middle of a run: the kernel refuses the rest of what is written.

A limit on the size of files stands for it. It holds for every write of this process, whoever makes
it, and like a full disk it takes the first bytes.
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
from nayer_pl.app.resume import damage
from nayer_pl.callbacks import Curves, Export, SampleGrid
from nayer_pl.callbacks.checkpoint import Checkpoints
from nayer_pl.callbacks.metrics_file import MetricsFile, rows

resource = pytest.importorskip("resource")

VALUES = st.dictionaries(st.sampled_from("abcd"), st.floats(-1, 1), min_size=1)


@contextmanager
def full_disk(room):
    """No file of this process becomes longer than `room` bytes.

    Nothing is printed in the meantime: pytest keeps that in a file, which would be full too. And it
    ends before the test does, or pytest could not report on the test, if that goes into a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FullDisk(Callback):
    """Full from work item `first` until `last` begins; writes down which files there are.

    `with disk.full:` around the run ends it also where the run fails.
    """

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
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        self.seen.append({path.relative_to(self.folder): path.stat().st_mtime_ns for path in files})


@pytest.fixture
def run(tiny_method, tiny_data, fit, tmp_path):
    """A run of its own networks, always the same ones, in the directory `name`."""

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
def test_a_run_goes_on_and_saves_when_there_is_room_again(run, tmp_path, caplog, room, named):
    """Neither the bank's files nor checkpoints can be written, or checkpoints alone."""
    whole = run("whole")
    caplog.clear()
    folder = tmp_path / "run"
    disk = FullDisk(room, 3, 7, folder)
    with disk.full:
        method = run("run", disk)
    assert same(method.state_dict(), whole.state_dict())
    assert (folder / "metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()

    # What had been saved stays, and nothing lies beside it.
    before, during, after = disk.seen[3], disk.seen[4:7], disk.seen[9]
    saved = {path: before[path] for path in before if path.name.endswith(".ckpt")}
    assert {path.name for path in saved} == {"last.ckpt", "previous.ckpt"}
    for seen in during:
        assert saved.items() <= seen.items()
        assert not [path for path in seen if path.suffix not in (".ckpt", ".safetensors", ".csv")]
    assert set(saved.values()).isdisjoint(after[path] for path in saved)

    # It is said, with what still protects the run.
    said = [record.getMessage() for record in caplog.records if "goes on" in record.getMessage()]
    assert len(said) == 4
    assert [message for message in said if f"'{folder}/{named}" in message]
    for message in said:
        assert "File too large" in message
        assert f"it could go on from '{folder}/checkpoints/last.ckpt'" in message

    # And it can be gone on with.
    assert damage(folder / "checkpoints" / "last.ckpt") is None
    again = run("run", ckpt_path=folder / "checkpoints" / "last.ckpt")
    assert same(again.student.state_dict(), whole.student.state_dict())


def test_a_run_that_can_save_nothing_says_so_and_ends_well(run, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file, where a folder should be")
    whole = run("whole")
    method = run("run")
    assert same(method.state_dict(), whole.state_dict())
    assert "next.ckpt' cannot be written" in caplog.text
    assert "there is none to go on from" in caplog.text


@given(
    moments=st.lists(
        st.tuples(VALUES, st.sampled_from(["wait", "save", "full"])), min_size=1, max_size=8
    ),
    room=st.integers(0, 9),
)
def test_metrics_lose_no_row(tmp_path_factory, moments, room):
    """The end is the file of a disk that was never full; before, what is written is whole."""
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
        if act == "full":
            with full_disk(room + (path.stat().st_size if path.exists() else 0)):
                ours.save()
        assert rows(ours).splitlines()[-1].endswith(f",{step}")
        if path.exists():
            header, *written = csv.reader(path.read_text().splitlines())
            assert all(len(row) == len(header) for row in written)
    ours.save()
    theirs.save()
    assert path.read_bytes() == Path(theirs.experiment.metrics_file_path).read_bytes()
    assert os.listdir(ours.log_dir) == ["metrics.csv"]


def test_metrics_say_once_that_they_wait(tmp_path, caplog):
    logger = MetricsFile(tmp_path, name="", version="")
    for room in (3, 3, 100, 30):
        logger.log_metrics({"a": 1.0}, 0)
        with full_disk(room):
            logger.save()
    path = logger.experiment.metrics_file_path
    assert len(caplog.messages) == 2
    for message in caplog.messages:
        assert message.startswith(f"'{path}' cannot be written (File too large); its rows wait")


class Until(Callback):
    """Does something when training is over, before the results are written."""

    def __init__(self, act):
        self.act = act

    def on_train_end(self, *_):
        self.act()


@contextmanager
def full_at_the_end():
    """A callback, for a disk that is full from the end of training on."""
    with ExitStack() as stack:
        yield Until(lambda: stack.enter_context(full_disk(100)))


def test_pictures_are_left_out(run, tmp_path, caplog):
    with full_at_the_end() as full:
        run(
            "run", full, SampleGrid(tmp_path / "samples.png", ["a", "b", "c"]),
            Curves(tmp_path / "run" / "metrics.csv", tmp_path / "curves.png"),
        )  # fmt: skip
    for name in ("samples.png", "curves.png"):
        assert (
            f"'{tmp_path / name}' cannot be written (File too large); the run goes" in caplog.text
        )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def export(path, **options):
    return Export(path, ["a", "b", "c"], (1, 8, 8), **options)


def test_without_room_for_the_student_the_run_stops_and_can_be_gone_on_with(run, tmp_path):
    folder, product = tmp_path / "run", tmp_path / "elsewhere" / "student.safetensors"
    with (
        full_at_the_end() as full,
        pytest.raises(InputError, match=rf"'{product}' .*File too large.*resume=auto"),
    ):
        run("run", full, export(product))
    assert list(product.parent.iterdir()) == []
    assert {path.name for path in folder.iterdir()} == {"bank", "checkpoints", "metrics.csv"}
    last = folder / "checkpoints" / "last.ckpt"
    assert damage(last) is None
    method = run("run", export(product), ckpt_path=last)
    assert same(method.student.network.state_dict(), load_file(product))


def test_a_student_that_cannot_be_written_where_it_should_is_in_the_runs_directory(run, tmp_path):
    product = tmp_path / "elsewhere" / "student.safetensors"

    def break_it():
        shutil.rmtree(product.parent)
        product.parent.write_text("a file, where the folder was")

    instead = tmp_path / "run" / "student.safetensors"
    with pytest.raises(InputError, match=rf"'{product}' cannot .*is in '{instead}' instead"):
        run("run", Until(break_it), export(product))
    method = run("whole")
    assert same(method.student.network.state_dict(), load_file(instead))


def test_a_folder_that_cannot_be_written_is_found_before_the_work(run, tmp_path):
    (tmp_path / "file").write_text("")
    began = []
    watch = Until(lambda: began.append(True))
    with pytest.raises(InputError, match=r"file' cannot be written .*export\.path=PATH"):
        run("run", watch, export(tmp_path / "file" / "student.safetensors"))
    assert not began
    assert not (tmp_path / "run" / "checkpoints").exists()
