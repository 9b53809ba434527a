"""BatchNorm folded into the convolution before it: the same answers, with fewer passes over memory.

A frozen network multiplies every channel twice, by the convolution's weight and by BatchNorm's;
one multiplication by their product does the same (Jacob et al., 2018, arXiv 1712.05877,
section 3.2).
"""

import logging
from collections.abc import Sequence

import torch
from torch.fx.experimental.optimization import fuse

from nayer_pl.networks.classifier import Classifier

log = logging.getLogger(__name__)


@torch.no_grad()
def folded(classifier: Classifier, image_shape: Sequence[int]) -> Classifier:
    """A frozen copy that computes the same function in evaluation mode.

    Every BatchNorm2d that alone follows a convolution becomes part of it. A network whose forward
    pass torch.fx cannot follow, or that would answer differently, comes back itself.

    Args:
        classifier: on any device; not changed.
        image_shape: (C, H, W) that it takes.
    """
    rng = torch.Generator().manual_seed(0)  # its own: nobody else's numbers change
    probe = torch.rand(2, *image_shape, generator=rng).to(next(classifier.parameters()).device)
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()
    try:
        network = fuse(classifier.network)
        copy = Classifier(network)
        copy.normalise_like(classifier)
        copy.freeze().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        expected = classifier(probe)
        tolerance = 1e-2 * float(expected.abs().max())  # some devices multiply in few digits
        torch.testing.assert_close(copy(probe), expected, rtol=0, atol=tolerance)
    except Exception as error:  # whatever a stranger's forward pass does to a tracer
        log.debug("%s stays unfolded: %s", type(classifier.network).__name__, error)
        return classifier
    finally:
        for module, training in modes:
            module.training = training
    return copy
