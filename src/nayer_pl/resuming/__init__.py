"""How an interrupted run goes on: what is saved (`content`), when, and what is chosen then."""

from nayer_pl.resuming.checkpoints import Checkpoints

__all__ = ["Checkpoints"]
