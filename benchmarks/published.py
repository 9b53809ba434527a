"""The published pipeline's steps, rendered plainly: what the other scripts measure against.

Everything that NAYER's authors' code does, in our words: float32 in the default layout, gradients
for the weights of all three networks, BatchNorm hooks that never rest, the noisy layers one by one,
images cropped one by one, a line printed (and waited for) at every generator step, every image a
PNG file that four worker processes read back.
"""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler


class StatisticsHook:
    """Statistics of one BatchNorm's input, and their distance from the running ones."""

    def __init__(self, norm: nn.BatchNorm2d, momentum: float = 0.9) -> None:
        self.norm, self.momentum = norm, momentum
        self.average: tuple[Tensor, Tensor] | None = None
        norm.register_forward_hook(self._take)

    def _take(self, norm: nn.BatchNorm2d, inputs: tuple[Tensor], _: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        if self.average is not None:
            old_mean, old_var = self.average
            mean = self.momentum * old_mean + (1 - self.momentum) * mean
            var = self.momentum * old_var + (1 - self.momentum) * var
        self.batch = mean, var
        distance = torch.norm(norm.running_var - var, 2) + torch.norm(norm.running_mean - mean, 2)
        self.distance = distance

    def finish_round(self) -> None:
        """Remember this round."""
        mean, var = self.batch
        self.average = mean.detach(), var.detach()


class NoisyLayers(nn.Module):
    """BatchNorm, then one Linear for every full set of labels, called in turn."""

    def __init__(self, embeddings: Tensor, features: int, batch_size: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings)
        classes, size = embeddings.shape
        self.classes = classes
        self.norm = nn.BatchNorm1d(size)
        self.layers = nn.ModuleList(
            nn.Linear(size, features) for _ in range(math.ceil(batch_size / classes))
        )

    def reset_noisy_layer(self) -> None:
        """N(0, 1) weights, no bias."""
        for layer in self.layers:
            nn.init.normal_(layer.weight, 0, 1)
            nn.init.constant_(layer.bias, 0)

    def forward(self, targets: Tensor) -> Tensor:
        """Labels [B] -> [B, features]."""
        x = self.norm(self.embeddings[targets])
        sets = x.split(self.classes)
        return torch.cat([layer(part) for layer, part in zip(self.layers, sets, strict=False)])


def crop_and_flip(images: Tensor, padding: int = 4) -> Tensor:
    """RandomCrop and RandomHorizontalFlip, image by image; differentiable."""
    size = images.shape[-1]
    padded = F.pad(images, [padding] * 4)
    rows = torch.randint(2 * padding + 1, (len(images),)).tolist()
    columns = torch.randint(2 * padding + 1, (len(images),)).tolist()
    crops = [
        image[:, row : row + size, column : column + size]
        for image, row, column in zip(padded, rows, columns, strict=True)
    ]
    cropped = torch.stack(crops)
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, cropped.flip(3), cropped)


class Published:
    """Rounds and distillation steps on copies of the networks.

    Args:
        teacher, student, generator: float32, default layout; their weights take gradients.
        embeddings: label text, [num_classes, d].
        features: size of a noisy layer's output.
        round_size: images in a round.
        lr: learning rate of the student.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        generator: nn.Module,
        embeddings: Tensor,
        features: int,
        round_size: int,
        lr: float = 0.2,
    ) -> None:
        self.teacher, self.student, self.generator = teacher.eval(), student, generator
        for net in (teacher, student, generator):
            net.requires_grad_(True)
        self.noisy = NoisyLayers(embeddings, features, round_size).to(embeddings.device)
        norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
        self.hooks = [StatisticsHook(norm) for norm in norms]
        self.sgd = torch.optim.SGD(student.parameters(), lr, momentum=0.9, weight_decay=1e-4)
        self.log = io.StringIO()

    def round(self, targets: Tensor, steps: int, warm_up: bool = False) -> Tensor:
        """One synthesis round: [B] -> images [B, C, H, W] of the step with the lowest loss."""
        self.student.eval()
        self.noisy.reset_noisy_layer()
        parameters = [*self.noisy.parameters(), *self.generator.parameters()]
        adam = torch.optim.Adam(parameters, lr=4e-3, betas=(0.5, 0.999))
        best, lowest = None, math.inf
        for step in range(steps):
            images = self.generator(self.noisy(targets))
            augmented = crop_and_flip(images)
            teacher_logits = self.teacher(augmented)
            bn = torch.stack([hook.distance for hook in self.hooks]).sum()
            ce = F.cross_entropy(teacher_logits, targets)
            adv = torch.zeros((), device=images.device)
            if not warm_up:
                logits = self.student(augmented)
                agree = (logits.argmax(1) == teacher_logits.argmax(1)).float()
                kl = F.kl_div(
                    F.log_softmax(logits, 1), F.softmax(teacher_logits, 1), reduction="none"
                )
                adv = -(kl.sum(1) * agree).mean()
            loss = 10 * bn + 0.5 * ce + 1.33 * adv
            print(step, bn.item(), ce.item(), adv.item(), file=self.log)
            if loss.item() < lowest:
                lowest, best = loss.item(), images.detach()
            adam.zero_grad()
            loss.backward()
            adam.step()
        for hook in self.hooks:
            hook.finish_round()
        self.student.train()
        assert best is not None
        return best

    def distil(self, images: Tensor) -> None:
        """One student step on images [B, C, H, W] in [0, 1]."""
        with torch.no_grad():
            teacher_logits = self.teacher(images)
        logits = self.student(images)
        temperature = 20.0
        loss = F.kl_div(
            F.log_softmax(logits / temperature, 1),
            F.softmax(teacher_logits / temperature, 1),
            reduction="batchmean",
        )
        self.sgd.zero_grad()
        (loss * temperature**2).backward()
        self.sgd.step()


class PngBank:
    """Every image a PNG file; the folder is listed and workers are started for every round."""

    def __init__(self, folder: Path, batch_size: int, workers: int = 4) -> None:
        self.folder, self.batch_size, self.workers = folder, batch_size, workers
        folder.mkdir(parents=True, exist_ok=True)
        self.rounds = 0

    def add(self, images: Tensor) -> None:
        """Write images [B, C, H, W] in [0, 1]."""
        pixels = (images.detach().clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)
        for i, image in enumerate(pixels.transpose(0, 2, 3, 1)):
            Image.fromarray(image).save(self.folder / f"{self.rounds}-{i}.png")
        self.rounds += 1

    def batches(self, count: int) -> Iterator[Tensor]:
        """Augmented float batches [B, C, H, W] in [0, 1] from freshly started workers."""
        files = PngFiles(sorted(self.folder.glob("*.png")))
        sampler = RandomSampler(files, replacement=True, num_samples=count * self.batch_size)
        yield from DataLoader(
            files,
            self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )


class PngFiles(Dataset[Tensor]):
    """Reads one file, crops and flips it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        with Image.open(self.paths[i]) as image:
            padded = ImageOps.expand(image.convert("RGB"), 4)
        row, column, mirrored = (int(torch.randint(n, ())) for n in (9, 9, 2))
        crop = padded.crop((column, row, column + padded.width - 8, row + padded.height - 8))
        crop = ImageOps.mirror(crop) if mirrored else crop
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 255
