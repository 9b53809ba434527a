"""Image classifiers of transformers (https://huggingface.co/docs/transformers)."""

from typing import Any

from torch import Tensor, nn

from nayer_pl.errors import InputError
from nayer_pl.networks.outside import attach_normalization, check_head_shape, require_name
from nayer_pl.runtime.libraries import friendly_errors, weights_only_load


# Not an @architecture: to rebuild it, the folder or the Hub must be read once more, and a file must
# not choose what is read.
def from_transformers(
    name: str, num_classes: int, channels: int = 3, pretrained: bool = False
) -> nn.Module:
    """An image classifier of a Hub name or local folder: images [B, C, H, W] -> logits.

    Args:
        name: such as `microsoft/resnet-50`.
        num_classes, channels: what it is for; published weights must be for the same.
        pretrained: with its published weights, and the normalization of its image processor;
            otherwise fresh, from its configuration alone.

    Raises:
        InputError: it cannot be read, is no image classifier, or needs code of its own.
    """
    # Seconds to import.
    from transformers import AutoConfig, AutoModelForImageClassification

    name = require_name(name, "transformers", "microsoft/resnet-50")
    plain: dict[str, Any] = {"trust_remote_code": False}
    missing: Any = ()
    with (
        weights_only_load(),
        friendly_errors(
            f"The image classifier '{name}' cannot be loaded",
            "without a network set its name to a local folder",
        ),
    ):
        if pretrained:
            config = AutoConfig.from_pretrained(name, **plain)
            found = config.num_labels, getattr(config, "num_channels", 3)
            check_head_shape(name, found, (num_classes, channels))
            network, report = AutoModelForImageClassification.from_pretrained(
                name, output_loading_info=True, **plain
            )
            missing = report["missing_keys"]
        else:
            config = AutoConfig.from_pretrained(name, num_labels=num_classes, **plain)
            config.num_channels = channels
            network = AutoModelForImageClassification.from_config(config, **plain)
    if missing:
        raise InputError(f"'{name}' is no trained image classifier: it has no {min(missing)}.")
    if pretrained:
        _carry_processor(network, name)
    # A hook and not a wrapper, so that the weights keep their published names.
    network.register_forward_hook(_logits)
    return network.float()


def _logits(network: nn.Module, inputs: Any, output: Any) -> Tensor:
    return output.logits


def _carry_processor(network: nn.Module, name: str) -> None:
    """What the image processor does to pixels, as mean and std of images in [0, 1].

    Its dictionary is read, since the processor itself may need torchvision.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        facts, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return  # there is none
    for key in ("do_flip_channel_order", "rescale_offset", "include_top"):
        if facts.get(key):
            raise InputError(
                f"The images of '{name}' are prepared with {key}, which a mean and std cannot "
                "express; load it in a function of your own (teacher=custom)."
            )
    scale = 255 * (facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1)
    mean, std = facts.get("image_mean"), facts.get("image_std")
    if not facts.get("do_normalize", True):
        mean, std = [0.0], [1.0]
    if mean is not None and std is not None:
        attach_normalization(network, (m / scale for m in mean), (s / scale for s in std))
