import re

import pytest
from lightning.pytorch.callbacks import Callback

from nayer_pl.callbacks import PhaseProgressBar, progress


@pytest.fixture
def shown(tiny_method, tiny_data, fit, capsys):
    """What a run of one warm-up epoch and two others puts on standard output."""

    def run(bar, *callbacks):
        try:
            fit(tiny_method(), tiny_data(), callbacks=[bar, *callbacks], enable_progress_bar=True)
        finally:
            run.text = capsys.readouterr().out
        return run.text

    return run


def epochs(text):
    """The lines that are not a log's."""
    return [line for line in text.splitlines() if line.startswith("Epoch")]


def lines_of(text):
    """The lines on a screen at the end."""
    return [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]


def test_log_file__line_per_epoch(shown):
    text = shown(PhaseProgressBar())  # what is captured is no terminal
    assert "\r" not in text
    warm_up, first, last = epochs(text)
    assert re.fullmatch(r"Epoch 1/3 done in \d+ s: synthesis=\S+", warm_up)
    line = r"Epoch {}/3 done in \d+ s: acc=\S+, agree=\S+, synthesis=\S+, kd=\S+"
    assert re.fullmatch(line.format(2), first)
    assert re.fullmatch(line.format(3), last)


def test_log_file__line_per_minute(shown, monkeypatch):
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    found = [line.partition(":")[0] for line in epochs(shown(PhaseProgressBar()))]
    steps = ["synthesis 1/4", "distillation 2/4", "distillation 3/4", "distillation 4/4"]
    wanted = ["Epoch 1/3 warm-up 1/2", "Epoch 1/3 warm-up 2/2", *(f"Epoch 2/3 {s}" for s in steps)]
    assert [line for line in found if " done" not in line][:6] == wanted


def test_terminal__bar_per_epoch(shown):
    drawn = re.split("[\r\n]", shown(PhaseProgressBar(terminal=True)))
    bars = {bar[:9]: bar for bar in drawn if re.match(r"Epoch ./3", bar)}  # the last of each
    phases = [bar.partition(" |")[0].rstrip() for bar in bars.values()]
    assert phases == ["Epoch 1/3 warm-up", "Epoch 2/3 distillation", "Epoch 3/3 distillation"]
    line = r"4/4 \[\S+, acc=\S+, agree=\S+, synthesis="
    assert [bool(re.search(line, bar)) for bar in bars.values()] == [False, True, True]


def test_terminal__after_error(shown):
    class Fails(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.current_epoch == 1:
                raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        shown(PhaseProgressBar(terminal=True), Fails())
    *_, last, rest = lines_of(shown.text)
    assert last.startswith("Epoch 2/3")
    assert not rest
