"""What the generator is given for a label: label text through the noisy layer, or plain noise."""

import torch
from torch import Tensor, nn

from nayer_pl.synthesis.noisy_layer import NoisyLayer


class LabelConditioning(nn.Module):
    """Label -> embedding -> BatchNorm over the batch -> noisy layer (NAYER, equation 6).

    Args:
        embeddings: [num_classes, d], constant: the LTE, or an identity matrix for one-hot labels.
        features: size of the output.
        batch_size: labels in a synthesis round.
        labels_per_layer: K of the noisy layer.
        reset_noisy_layer: draw the noisy layer anew for every round. Off, only the generator's own
            restarts make one round differ from another.
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
        self.spread = nn.BatchNorm1d(embeddings.shape[1])
        self.noisy_layer = NoisyLayer(embeddings.shape[1], features, labels_per_layer, batch_size)
        self.reset_noisy_layer = reset_noisy_layer

    def start_round(self, targets: Tensor, rng: torch.Generator | None = None) -> None:
        """Draw the randomness of one synthesis round."""
        if self.reset_noisy_layer:
            self.noisy_layer.reset_parameters(rng)

    def reset_parameters(self) -> None:
        """Forget what was learned about spreading the embeddings."""
        self.spread.reset_parameters()

    def forward(self, targets: Tensor) -> Tensor:
        """Labels [B] -> [B, features]."""
        return self.noisy_layer(self.spread(self.embeddings[targets]))


class NoiseConditioning(nn.Module):
    """Fresh noise for every image of a round, and no label: what NAYER is compared with.

    The noise stays while a round is optimized, as the noisy layer does.
    """

    noise: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("noise", torch.empty(0, features), persistent=False)

    def start_round(self, targets: Tensor, rng: torch.Generator | None = None) -> None:
        """Draw z ~ N(0, 1), [B, features]."""
        self.noise = torch.randn(len(targets), self.features, device=targets.device, generator=rng)

    def reset_parameters(self) -> None:
        """Nothing is learned here."""

    def forward(self, targets: Tensor) -> Tensor:
        """Labels [B], of which only the number counts -> [B, features]."""
        return self.noise[: len(targets)]
