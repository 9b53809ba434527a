"""Plain knowledge distillation on real images: what data-free methods are measured against.

Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nayer_pl.data.datamodule import RealDataModule
from nayer_pl.distillation.evaluation import Evaluation
from nayer_pl.distillation.judging import Judging
from nayer_pl.distillation.results import measured
from nayer_pl.errors import InputError, require
from nayer_pl.losses.functional import distillation_loss
from nayer_pl.methods.supervised import Supervised
from nayer_pl.networks.classifier import Classifier
from nayer_pl.networks.registry import described
from nayer_pl.networks.weights import fingerprint


class KnowledgeDistillation(Judging, Supervised):
    """The student learns what the teacher says about its own training images.

    No labels and no cross-entropy, as in the data-free methods: only the images differ.

    Args:
        teacher: frozen here; images in [0, 1] -> logits.
        student: images in [0, 1] -> logits of the same classes.
        image_shape: (C, H, W) of the images.
        temperature: of the distillation loss.
        check_teacher: stop at once if the teacher does no better than a guesser.
        optimization: learning rate and so on of `Supervised`.
    """

    def __init__(
        self,
        teacher: Classifier,
        student: Classifier,
        image_shape: Sequence[int],
        temperature: float = 20.0,
        check_teacher: bool = True,
        **optimization: float,
    ) -> None:
        super().__init__(student, **optimization)
        require(temperature > 0, "model.temperature", "above 0", temperature)
        self.learn_from(teacher, student)
        self.image_shape, self.temperature = tuple(image_shape), temperature
        self.check_teacher = check_teacher
        self.evaluation = Evaluation()

    @property
    def student(self) -> Classifier:  # type: ignore[override]
        """The network that learns."""
        return self.network

    @property
    def datamodule(self) -> RealDataModule:
        """The real images."""
        module = getattr(self.trainer, "datamodule", None)
        if not isinstance(module, RealDataModule):
            raise InputError(
                "Knowledge distillation trains on a RealDataModule: trainer.fit(method, "
                "datamodule)."
            )
        return module

    @property
    def student_updates(self) -> int:  # type: ignore[override]
        """Steps of its optimizer, the only one."""
        return self.trainer.global_step

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """KL(teacher || student) * T**2 on images [B, C, H, W] in [0, 1]."""
        images, _labels = batch
        with torch.no_grad():
            answers = self.ask_teacher(images)
        loss = distillation_loss(self.student(images), answers, self.temperature)
        return self.watched(loss)

    def on_fit_start(self) -> None:
        """Check that the parts fit, and ask the teacher about the evaluation images, once."""
        super().on_fit_start()
        outputs, own = (net.num_classes(self.image_shape) for net in (self.teacher, self.student))
        if outputs != own:
            raise InputError(
                f"The teacher has {outputs} outputs, but the student has {own}; they must be the "
                "same."
            )
        self.fold_teacher(self.image_shape)
        self.examine(outputs if self.check_teacher else None)

    def facts(self) -> dict[str, str]:
        """Method and both networks."""
        weights = fingerprint(self.teacher)
        return {**super().facts(), "teacher": f"{described(self.teacher)} (weights {weights})"}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the teacher out: it is a file already."""
        super().on_save_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith("teacher.")]:
            del state[key]

    def results(self) -> dict[str, Any]:
        """What the run reached, for its summary."""
        return {
            **measured(self.trainer, "teacher_accuracy", "student_accuracy", "agreement"),
            "teacher_parameters": sum(p.numel() for p in self.teacher.parameters()),
            "student_parameters": sum(p.numel() for p in self.student.parameters()),
            "student_updates": self.student_updates,
        }
