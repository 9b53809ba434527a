"""BatchNorm folded into the convolution before it: the same answers, with fewer passes over memory.

A frozen network multiplies every channel twice, by the convolution's weight and by BatchNorm's;
one multiplication by their product does the same (Jacob et al., 2018, arXiv 1712.05877,
section 3.2). On a CPU, ReLUs and sums then go along with the convolutions (`fusing`).
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.fusing import fused
from nayer_pl.networks.modes import preserve_mode

log = logging.getLogger(__name__)


@torch.no_grad()
def folded(
    classifier: Classifier, image_shape: Sequence[int], dtype: torch.dtype | None = None
) -> Classifier:
    """A frozen copy that computes the same function in evaluation mode.

    Every BatchNorm2d that alone follows a convolution becomes part of it. A network whose forward
    pass torch.fx cannot follow, or that would answer differently, comes back itself.

    Args:
        classifier: on any device; not changed.
        image_shape: (C, H, W) that it takes.
        dtype: float32 or bfloat16, that the fused layers of a CPU compute in; None goes without.
    """
    rng = torch.Generator().manual_seed(0)  # its own: nobody else's numbers change
    probe = torch.rand(2, *image_shape, generator=rng).to(next(classifier.parameters()).device)
    best = classifier
    try:
        with preserve_mode(classifier):
            expected: Tensor = classifier.eval()(probe)
            network: Any = fuse(classifier.network)
        best = _checked(network, classifier, probe, expected)
        if dtype and probe.device.type == "cpu" and torch.backends.mkldnn.is_available():
            # Checked in float32, where a rounding cannot hide a mistake.
            _checked(fused(network, torch.float32), classifier, probe, expected)
            best.network = fused(network, dtype)
    except Exception as error:  # whatever a stranger's forward pass does to a tracer
        name = type(classifier.network).__name__
        log.debug("%s stays as far as it is: %s", name, error)
    return best


def _checked(
    network: nn.Module, classifier: Classifier, probe: Tensor, expected: Tensor
) -> Classifier:
    """`network` in the place of a classifier's own, if it answers the same."""
    copy = Classifier(network)
    copy.copy_normalization(classifier)
    copy.freeze().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Some devices multiply in few digits. What all classes have in common says nothing.
    tolerance = 1e-2 * float((expected - expected.mean(1, keepdim=True)).abs().max())
    torch.testing.assert_close(copy(probe), expected, rtol=0, atol=tolerance)
    return copy
