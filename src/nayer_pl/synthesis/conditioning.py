"""What the generator is given for a label: label text through the noisy layer, or plain noise."""

import math

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from nayer_pl.runtime.options import checked


class NoisyLayer(nn.Module):
    """Linear layers Z with N(0, 1) weights and zero bias, drawn for every synthesis round.

    NAYER's only source of randomness (section 3.3, equations 6 to 8). K-to-1: one Z serves the K
    labels of one full set, so a batch of B labels is cut into ceil(B / K) sets, each with a Z of
    its own. All of them are one batched product.

    Args:
        in_features: Size d of a label-text embedding.
        out_features: Size of what the generator sees.
        labels_per_layer: K, usually the number of classes; 1 gives every image its own Z.
        batch_size: Largest B.

    Example:
        >>> layer = NoisyLayer(in_features=4, out_features=3, labels_per_layer=2, batch_size=5)
        >>> layer.weight.shape, layer(torch.zeros(5, 4)).shape
        (torch.Size([3, 4, 3]), torch.Size([5, 3]))
    """

    @checked
    def __init__(
        self,
        in_features: PositiveInt,
        out_features: PositiveInt,
        labels_per_layer: PositiveInt,
        batch_size: PositiveInt,
    ) -> None:
        super().__init__()
        layers = math.ceil(batch_size / labels_per_layer)
        self.labels_per_layer = labels_per_layer
        self.weight = nn.Parameter(torch.empty(layers, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(layers, 1, out_features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, rng: torch.Generator | None = None) -> None:
        """Draw every Z again, in place: optimizers keep pointing at the same parameters."""
        self.weight.normal_(generator=rng)
        self.bias.zero_()

    def forward(self, embeddings: Tensor) -> Tensor:
        """[B, in_features] -> [B, out_features]; rows i*K to (i+1)*K go through layer i."""
        batch, per_layer = len(embeddings), self.labels_per_layer
        layers = math.ceil(batch / per_layer)
        full = torch.nn.functional.pad(embeddings, (0, 0, 0, layers * per_layer - batch))
        sets = full.view(layers, per_layer, -1)
        out = torch.baddbmm(self.bias[:layers], sets, self.weight[:layers])
        return out.flatten(0, 1)[:batch]


class LabelConditioning(nn.Module):
    """Label -> embedding -> BatchNorm over the batch -> noisy layer (NAYER, equation 6).

    Args:
        embeddings: [num_classes, d], constant: the LTE, or an identity matrix for one-hot labels.
        features: Size of the output.
        batch_size: Labels in a synthesis round.
        labels_per_layer: K of the noisy layer.
        reset_noisy_layer: Draw the noisy layer for every round. Off, only the generator's own
            restarts make one round differ from another.

    Example:
        >>> conditioning = LabelConditioning(torch.eye(3), 8, batch_size=6, labels_per_layer=3)
        >>> conditioning(torch.tensor([0, 1, 2])).shape
        torch.Size([3, 8])
    """

    embeddings: Tensor

    def __init__(
        self,
        embeddings: Tensor,
        features: int,
        batch_size: int,
        labels_per_layer: int,
        reset_noisy_layer: bool = True,
    ) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings.detach().float(), persistent=False)
        # Names mean nearly the same to a text encoder; this is what spreads them apart.
        self.embedding_norm = nn.BatchNorm1d(embeddings.shape[1])
        self.noisy_layer = NoisyLayer(embeddings.shape[1], features, labels_per_layer, batch_size)
        self.reset_noisy_layer = reset_noisy_layer

    def start_run(self, rng: torch.Generator) -> None:
        """Give this rank a noisy layer of its own, if it keeps the first one."""
        if not self.reset_noisy_layer:
            self.noisy_layer.reset_parameters(rng)

    def start_round(self, targets: Tensor, rng: torch.Generator | None = None) -> None:
        """Draw the randomness of one synthesis round."""
        if self.reset_noisy_layer:
            self.noisy_layer.reset_parameters(rng)

    def reset_parameters(self) -> None:
        """Forget what was learned about spreading the embeddings."""
        self.embedding_norm.reset_parameters()

    def forward(self, targets: Tensor) -> Tensor:
        """Labels [B] -> [B, features]."""
        return self.noisy_layer(self.embedding_norm(self.embeddings[targets]))


class NoiseConditioning(nn.Module):
    """Fresh noise for every image of a round, and no label: what NAYER is compared with.

    The noise stays while a round is optimized, as the noisy layer does.

    Args:
        features: Size of z ~ N(0, 1).

    Example:
        >>> conditioning = NoiseConditioning(8)
        >>> conditioning.start_round(torch.tensor([0, 1, 2]))
        >>> conditioning(torch.tensor([0, 1, 2])).shape
        torch.Size([3, 8])
    """

    noise: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("noise", torch.empty(0, features), persistent=False)

    def start_run(self, rng: torch.Generator) -> None:
        """Nothing is kept between rounds."""

    def start_round(self, targets: Tensor, rng: torch.Generator | None = None) -> None:
        """Draw z ~ N(0, 1), [B, features]."""
        self.noise = torch.randn(len(targets), self.features, device=targets.device, generator=rng)

    def reset_parameters(self) -> None:
        """Nothing is learned here."""

    def forward(self, targets: Tensor) -> Tensor:
        """Labels [B], of which only the number counts -> [B, features]."""
        return self.noise[: len(targets)]
