"""Networks of timm (https://github.com/huggingface/pytorch-image-models)."""

from torch import nn

from nayer_pl.errors import InputError
from nayer_pl.networks.architecture import architecture
from nayer_pl.networks.outside import attach_normalization, check_head_shape, require_name
from nayer_pl.runtime.libraries import friendly_errors, import_optional, weights_only_load


@architecture
def from_timm(
    name: str, num_classes: int, channels: int = 3, pretrained: bool = False
) -> nn.Module:
    """A network of `timm.list_models()`.

    Args:
        name: of the network, such as `resnet50.tv_in1k`; with `pretrained` also `hf-hub:...` and
            `local-dir:...`.
        num_classes, channels: what it is for; published weights must be for the same.
        pretrained: with its published weights, whose normalization it then carries.

    Raises:
        InputError: timm is missing, does not know the name, or cannot fetch the weights.
    """
    name = require_name(name, "timm", "resnet50.tv_in1k")
    timm = import_optional("timm")
    if ":" in name and not pretrained:
        # Files that name a network are rebuilt, and must not fetch anything.
        raise InputError(f"timm fetches '{name}'; without weights, name a timm.list_models().")
    with (
        weights_only_load(),
        friendly_errors(
            f"timm cannot make '{name}'",
            "timm.list_models() has the names, and weights that were fetched elsewhere go to "
            "teacher.weights=PATH",
        ),
    ):
        if not pretrained:
            return timm.create_model(name, num_classes=num_classes, in_chans=channels)
        facts = timm.create_model(name).pretrained_cfg
        found = facts["num_classes"], facts["input_size"][0]
        check_head_shape(name, found, (num_classes, channels))
        network = timm.create_model(name, pretrained=True)
    attach_normalization(network, facts["mean"], facts["std"])
    return network
