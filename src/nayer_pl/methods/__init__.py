"""The published methods, one file each, and how teachers and baselines are trained."""

from nayer_pl.methods.cmi import CMI
from nayer_pl.methods.dafl import DAFL
from nayer_pl.methods.deep_inversion import DeepInversion
from nayer_pl.methods.dfad import DFAD
from nayer_pl.methods.dfq import DFQ
from nayer_pl.methods.fast_dfkd import FastDFKD
from nayer_pl.methods.kd import KnowledgeDistillation
from nayer_pl.methods.nayer import NAYER
from nayer_pl.methods.supervised import Supervised
from nayer_pl.methods.zskt import ZSKT

__all__ = [
    "CMI",
    "DAFL",
    "DFAD",
    "DFQ",
    "NAYER",
    "ZSKT",
    "DeepInversion",
    "FastDFKD",
    "KnowledgeDistillation",
    "Supervised",
]
