"""Networks of torchvision (https://pytorch.org/vision/stable/models.html)."""

from torch import nn

from nayer_pl.errors import InputError
from nayer_pl.networks.architecture import architecture
from nayer_pl.networks.outside import attach_normalization, check_head_shape, require_name
from nayer_pl.runtime.libraries import friendly_errors, import_optional, weights_only_load


@architecture
def from_torchvision(
    name: str, num_classes: int, channels: int = 3, pretrained: str | bool = False
) -> nn.Module:
    """An image classifier of `torchvision.models`.

    Args:
        name: such as `resnet50`.
        num_classes, channels: what it is for; published weights must be for the same.
        pretrained: with published weights, whose normalization it then carries: their name, such
            as `IMAGENET1K_V1`, or true for the package's default.

    Raises:
        InputError: torchvision is missing, does not know the name, or cannot fetch the weights.
    """
    name = require_name(name, "torchvision", "resnet50")
    models = import_optional("torchvision.models")
    # Those that are no classifiers would fetch weights of their own accord.
    if name not in models.list_models(module=models):
        raise InputError(
            f"torchvision has no image classifier '{name}'; torchvision.models.list_models() has "
            "the names."
        )
    if not pretrained:
        return _for_channels(models.get_model(name, num_classes=num_classes), channels)
    published = models.get_model_weights(name).__members__
    choice = "DEFAULT" if pretrained is True else pretrained.rpartition(".")[2]
    if choice not in published:
        raise InputError(
            f"torchvision has no weights '{pretrained}' of '{name}'; set pretrained to one of "
            f"{', '.join(published)}."
        )
    weights = published[choice]
    check_head_shape(name, (len(weights.meta["categories"]), 3), (num_classes, channels))
    with (
        weights_only_load(),
        friendly_errors(
            f"torchvision cannot fetch {choice} of '{name}'",
            "give a file that was fetched elsewhere as teacher.weights=PATH",
        ),
    ):
        network = models.get_model(name, weights=weights)
    transforms = weights.transforms()
    attach_normalization(network, transforms.mean, transforms.std)
    return network


def _for_channels(network: nn.Module, channels: int) -> nn.Module:
    """Let the first convolution take so many channels; torchvision's take three."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if channels != first.in_channels:
        first.in_channels = channels
        shape = first.out_channels, channels, *first.kernel_size
        first.weight = nn.Parameter(first.weight.new_empty(shape))
        first.reset_parameters()
    return network
