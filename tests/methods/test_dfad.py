"""DFAD's logarithmic form; what it has in common with others is in test_turns.py."""

import pytest
import torch

from nayer_pl.methods.dfad import DFAD


def test_log_form(tiny_classifier):
    images = torch.rand(16, 1, 8, 8)
    nets = [tiny_classifier().eval() for _ in "ts"]
    gap = (nets[0](images) - nets[1](images)).abs().mean().item()
    method = DFAD(*nets, (1, 8, 8), noise_features=6, log_form=True)
    terms = method.synthesizer.loss(images, None, method.teacher, method.student, False)
    assert terms["loss"].item() == pytest.approx(-torch.tensor(1 + gap).log().item(), abs=1e-6)
    assert terms["discrepancy"].item() == pytest.approx(gap, abs=1e-6)
    assert gap > 0.01
