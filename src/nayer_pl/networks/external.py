"""Networks of other packages: timm, torchvision, transformers, and repositories with a hubconf.py.

Those of timm and torchvision can be rebuilt from a weight file that names them. Those of
transformers and torch.hub cannot: they read a folder, the Hub or code, and a weight file must not
choose which. With published weights, a network carries their `normalization` for
`build_classifier`.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from nayer_pl.errors import InputError, friendly_errors, import_optional, weights_only_load
from nayer_pl.networks.registry import architecture


@architecture
def from_timm(
    name: str, num_classes: int, channels: int = 3, pretrained: bool = False
) -> nn.Module:
    """A network of `timm.list_models()` (https://github.com/huggingface/pytorch-image-models).

    Args:
        name: of the network, such as `resnet50.tv_in1k`; with `pretrained` also `hf-hub:...` and
            `local-dir:...`.
        num_classes: number of logits; published weights must have as many.
        channels: of the images; published weights must be for as many.
        pretrained: load its published weights; the network then carries their normalization.

    Raises:
        InputError: timm is missing, does not know the name, or cannot download the weights.
    """
    _require_name(name, "timm", "resnet50.tv_in1k")
    timm = import_optional("timm")
    if ":" in name and not pretrained:
        # A weight file may name a network, but must not cause a download.
        raise InputError(f"timm downloads '{name}'; without weights, name a timm.list_models().")
    advice = (
        "timm.list_models() has the names, and weights that were downloaded elsewhere can be given "
        "as weights=PATH"
    )
    with weights_only_load(), friendly_errors(f"timm cannot make '{name}'", advice):
        if not pretrained:
            return timm.create_model(name, num_classes=num_classes, in_chans=channels)
        facts = timm.create_model(name).pretrained_cfg
        found = facts["num_classes"], facts["input_size"][0]
        _check_head_shape(name, found, (num_classes, channels))
        network = timm.create_model(name, pretrained=True)
    network.normalization = {"mean": facts["mean"], "std": facts["std"]}
    return network


@architecture
def from_torchvision(
    name: str, num_classes: int, channels: int = 3, pretrained: str | bool = False
) -> nn.Module:
    """An image classifier of `torchvision.models` (https://pytorch.org/vision/stable/models.html).

    Args:
        name: of the network, such as `resnet50`.
        num_classes: number of logits; published weights must have as many.
        channels: of the images; published weights are for three.
        pretrained: load published weights; the network then carries their normalization. Their
            name, such as `IMAGENET1K_V1`, or true for torchvision's default.

    Raises:
        InputError: torchvision is missing, does not know the name, or cannot download the weights.
    """
    _require_name(name, "torchvision", "resnet50")
    models = import_optional("torchvision.models")
    # The builders that are no classifiers would download weights without being asked.
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
    _check_head_shape(name, (len(weights.meta["categories"]), 3), (num_classes, channels))
    failure = f"torchvision cannot download {choice} of '{name}'"
    advice = "give a file that was downloaded elsewhere as weights=PATH"
    with weights_only_load(), friendly_errors(failure, advice):
        network = models.get_model(name, weights=weights)
    transforms = weights.transforms()
    network.normalization = {"mean": transforms.mean, "std": transforms.std}
    return network


def _for_channels(network: nn.Module, channels: int) -> nn.Module:
    """Give the first convolution another number of input channels than torchvision's three."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if channels != first.in_channels:
        first.in_channels = channels
        shape = first.out_channels, channels, *first.kernel_size
        first.weight = nn.Parameter(first.weight.new_empty(shape))
        first.reset_parameters()
    return network


def from_transformers(
    name: str, num_classes: int, channels: int = 3, pretrained: bool = False
) -> nn.Module:
    """An image classifier of transformers (https://huggingface.co/docs/transformers).

    Args:
        name: on the Hub, such as `microsoft/resnet-50`, or a local folder.
        num_classes: number of logits; published weights must have as many.
        channels: of the images; published weights must be for as many.
        pretrained: load its published weights, and the normalization of its image processor;
            otherwise it is built from its configuration, with fresh weights.

    Raises:
        InputError: it cannot be read, is no image classifier, or needs code of its own.
    """
    # Takes seconds to import.
    from transformers import AutoConfig, AutoModelForImageClassification

    _require_name(name, "transformers", "microsoft/resnet-50")
    failure = f"The image classifier '{name}' cannot be loaded"
    advice = "without internet access set its name to a local folder"
    with weights_only_load(), friendly_errors(failure, advice):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if pretrained:
            found = config.num_labels, getattr(config, "num_channels", 3)
            _check_head_shape(name, found, (num_classes, channels))
            network, report = AutoModelForImageClassification.from_pretrained(
                name, output_loading_info=True, trust_remote_code=False
            )
            if missing := report["missing_keys"]:
                raise InputError(
                    f"'{name}' is no trained image classifier: it has no {min(missing)}."
                )
        else:
            config.num_labels, config.num_channels = num_classes, channels
            network = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    if pretrained:
        _attach_processor(network, name)
    # A hook and not a wrapper, so that the weights keep their published names.
    network.register_forward_hook(_logits)
    return network.float()


def _logits(network: nn.Module, inputs: Any, output: Any) -> Tensor:
    return output.logits


def _attach_processor(network: nn.Module, name: str) -> None:
    """Express what the image processor does to pixels as mean and std of images in [0, 1].

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
                "express; load it in a function of your own, named by architecture._target_."
            )
    scale = 255 * (facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1)
    mean, std = facts.get("image_mean"), facts.get("image_std")
    if not facts.get("do_normalize", True):
        mean, std = [0.0], [1.0]
    if mean is not None and std is not None:
        network.normalization = {  # type: ignore[assignment]
            "mean": [value / scale for value in mean],
            "std": [value / scale for value in std],
        }


def from_torch_hub(
    repo: str,
    name: str,
    source: Literal["github", "local"] = "github",
    trust_code: bool = False,
    **arguments: Any,
) -> nn.Module:
    """The network of a repository's entry point (https://pytorch.org/docs/stable/hub.html).

    Args:
        repo: `owner/name[:ref]` on GitHub, or a folder.
        name: a function in its `hubconf.py`.
        source: "github", or "local" for a folder.
        trust_code: run the repository's code.
        arguments: of the entry point.

    Raises:
        InputError: the code is not trusted, cannot be downloaded, or fails.
    """
    if not repo or not name:
        raise InputError(
            "Which network of torch.hub? Give repo=OWNER/NAME (or a folder, with source=local) and "
            "name=ENTRY_POINT."
        )
    if not trust_code:
        raise InputError(
            f"A torch.hub network runs the code of '{repo}'; if you trust it, set trust_code=true."
        )
    failure = f"'{name}' of '{repo}' cannot be loaded"
    advice = "without internet access set repo to a local copy and source=local"
    with friendly_errors(failure, advice):
        return torch.hub.load(repo, name, source=source, trust_repo=True, **arguments)


def _require_name(name: str | None, source: str, example: str) -> None:
    if not name:
        raise InputError(f"Which network of {source}? Give name=, such as {example}.")


def _check_head_shape(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Refuse published weights whose (classes, channels) are not the wanted ones.

    The packages would replace the last layer by an untrained one without a message.
    """
    if found != wanted:
        raise InputError(
            f"The published weights of '{name}' have {found[0]} outputs for images of {found[1]} "
            f"channels, {wanted[0]} outputs for {wanted[1]} channels are wanted; give weights that "
            "were trained for these as weights=PATH, or choose the data set of these."
        )
