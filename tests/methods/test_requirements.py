"""What a method asks of the teacher, and whether those that a refusal names ask for less."""

import pytest
from torch import nn

from nayer_pl import Classifier, InputError, build_classifier
from nayer_pl.methods.cmi import CMI
from nayer_pl.methods.dafl import DAFL
from nayer_pl.methods.deep_inversion import DeepInversion
from nayer_pl.methods.dfad import DFAD
from nayer_pl.methods.dfq import DFQ
from nayer_pl.methods.fast_dfkd import FastDFKD
from nayer_pl.methods.nayer import NAYER
from nayer_pl.methods.zskt import ZSKT

SHAPE = (1, 8, 8)
LINEAR = [nn.Flatten(), nn.Linear(64, 3)]
CONVOLUTION = nn.Conv2d(1, 3, 3, padding=1)
POOLED = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
TEACHERS = {
    "nothing but a linear layer": LINEAR,
    "nothing but convolutions": [CONVOLUTION, *POOLED],
    "a BatchNorm of single pixels": [nn.Conv2d(1, 3, 8), nn.BatchNorm2d(3), nn.Flatten()],
    "all of it": [CONVOLUTION, nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                  nn.Linear(12, 3)],
}  # fmt: skip
STATISTICS = (NAYER, FastDFKD, CMI, DeepInversion, DFQ)
WORK = {
    "nothing but a linear layer": {DFAD, DAFL},
    "nothing but convolutions": {DFAD, ZSKT},
    "a BatchNorm of single pixels": {DFAD, *STATISTICS},
    "all of it": {DFAD, DAFL, ZSKT, *STATISTICS},
}


def refusal(method, layers):
    """What it says about such a teacher; None if it takes it."""
    teacher = Classifier(nn.Sequential(*layers), [0.5], [0.5])
    wrn = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 3, "channels": 1}
    student = build_classifier(wrn, [0.5], [0.5])
    options = {"conditioning": "onehot"} if method is NAYER else {}
    try:
        method(teacher, student, SHAPE, check_teacher=False, **options)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", TEACHERS)
def test_refusal_names_what_works(kind):
    said = {m: refusal(m, TEACHERS[kind]) for m in (*STATISTICS, DAFL, ZSKT, DFAD)}
    assert {method for method, text in said.items() if text is None} == WORK[kind]
    for text in filter(None, said.values()):
        assert "DFAD works with every teacher" in text
