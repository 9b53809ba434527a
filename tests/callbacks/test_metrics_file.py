from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger

from nayer_pl.callbacks.loggers import MetricsFile, restore_rows, rows

VALUES = st.dictionaries(st.sampled_from("abcd"), st.floats(-1, 1), min_size=1)


def opened(kind, folder):
    return kind(folder, name="", version="")


@given(moments=st.lists(st.tuples(VALUES, st.booleans()), min_size=1, max_size=8))
def test_file__as_lightnings(tmp_path_factory, moments):
    """Logged and saved alike; and the rows for a checkpoint are the same at every moment."""
    ours = opened(MetricsFile, tmp_path_factory.mktemp("ours"))
    theirs = opened(CSVLogger, tmp_path_factory.mktemp("theirs"))
    for step, (values, save) in enumerate(moments):
        for logger in (ours, theirs):
            logger.log_metrics(values, step)
            if save:
                logger.save()
        if save:
            assert content(ours) == content(theirs) == rows(ours) == rows(theirs)
        else:
            assert rows(ours) == rows(theirs)


def content(logger):
    with open(logger.experiment.metrics_file_path, newline="") as file:
        return file.read()


def test_restore_rows(tmp_path):
    first = opened(MetricsFile, tmp_path / "first")
    first.log_metrics({"a": 0.1}, 0)
    kept = rows(first)
    for kind in (MetricsFile, CSVLogger):
        again = opened(kind, tmp_path / kind.__name__)
        restore_rows(again, kept)
        again.log_metrics({"b": 0.2}, 1)
        again.save()
        assert content(again) == "a,b,step\r\n0.1,,0\r\n,0.2,1\r\n"
