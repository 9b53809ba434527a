"""Pictures, clocks and files: everything optional, and off the path."""

from nayer_pl.callbacks.checkpoints import Checkpoints
from nayer_pl.callbacks.curves import Curves
from nayer_pl.callbacks.export import Export
from nayer_pl.callbacks.progress import PhaseProgressBar
from nayer_pl.callbacks.samples import SampleGrid, sample_grid
from nayer_pl.callbacks.timer import PhaseTimer

__all__ = [
    "Checkpoints",
    "Curves",
    "Export",
    "PhaseProgressBar",
    "PhaseTimer",
    "SampleGrid",
    "sample_grid",
]
