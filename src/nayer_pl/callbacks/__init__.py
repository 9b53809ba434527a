"""Lightning callbacks and loggers: checkpoints, progress bars, timers, pictures and files."""

from nayer_pl.callbacks.checkpoint import Checkpoints
from nayer_pl.callbacks.export import Export
from nayer_pl.callbacks.pictures import Curves, SampleGrid, sample_grid
from nayer_pl.callbacks.progress import PhaseProgressBar, PhaseTimer

__all__ = [
    "Checkpoints",
    "Curves",
    "Export",
    "PhaseProgressBar",
    "PhaseTimer",
    "SampleGrid",
    "sample_grid",
]
