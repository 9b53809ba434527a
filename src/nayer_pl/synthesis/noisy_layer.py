"""The noisy layer: NAYER's only source of randomness (section 3.3, equations 6 to 8)."""

import math

import torch
from torch import Tensor, nn

from nayer_pl.errors import require


class NoisyLayer(nn.Module):
    """Linear layers Z with N(0, 1) weights and zero bias, drawn anew for every synthesis round.

    K-to-1: one Z serves the K labels of one full set, so a batch of B labels is cut into
    ceil(B / K) sets, each with a Z of its own. All of them are one batched product.

    Args:
        in_features: d, the size of a label-text embedding.
        out_features: the size of what the generator sees.
        labels_per_layer: K, usually the number of classes; 1 gives every image its own Z.
        batch_size: largest B.

    Raises:
        InputError: a size below 1.
    """

    def __init__(
        self, in_features: int, out_features: int, labels_per_layer: int, batch_size: int
    ) -> None:
        super().__init__()
        require(out_features >= 1, "noisy_features", "at least 1", out_features)
        require(labels_per_layer >= 1, "labels_per_layer", "at least 1", labels_per_layer)
        layers = math.ceil(batch_size / labels_per_layer)
        self.labels_per_layer = labels_per_layer
        self.weight = nn.Parameter(torch.empty(layers, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(layers, 1, out_features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, rng: torch.Generator | None = None) -> None:
        """Draw every Z anew, in place: optimizers keep pointing at the same parameters."""
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
