"""Two numbers about the images in a bank: are they what was wanted, and do they differ?"""

import torch
from torch import Tensor, nn

from nayer_pl.bank.bank import MemoryBank


@torch.no_grad()
def label_agreement(
    bank: MemoryBank, teacher: nn.Module, at_most: int = 5000, batch_size: int = 500
) -> float:
    """Share of banked images in which the teacher sees the label they were made for.

    Args:
        bank: at least one image.
        teacher: images in [0, 1] -> logits.
        at_most: asked about that many images, evenly spread over the bank.
        batch_size: images per forward pass.
    """
    device = next(teacher.parameters()).device
    chosen = torch.linspace(0, len(bank) - 1, min(at_most, len(bank))).long().to(bank.device)
    right = torch.zeros((), device=device)
    for index in chosen.split(batch_size):
        images = bank.images[index].to(device, torch.float32) / 255
        right += (teacher(images).argmax(1) == bank.labels[index].to(device)).sum()
    return float(right / len(chosen))


def within_class_distance(bank: MemoryBank, at_most: int = 5000) -> float:
    """Diversity: root mean square difference of a pixel between two images of one class.

    In units of [0, 1]; the mean over classes with two or more images, or 0.0 if there are none.
    Over all pairs of n images it is sqrt(2 n / (n - 1) * variance), so no pair is ever formed.
    """
    chosen = torch.linspace(0, len(bank) - 1, min(at_most, len(bank))).long().to(bank.device)
    images, labels = bank.images[chosen].flatten(1), bank.labels[chosen]
    distances: list[Tensor] = [
        (2 * (images[labels == label] / 255).var(dim=0).mean()).sqrt()
        for label in labels.unique()
        if (labels == label).sum() > 1
    ]
    return float(torch.stack(distances).mean()) if distances else 0.0
