"""The training loop: synthesis rounds, student updates, evaluation, and what is saved."""

from nayer_pl.distillation.base import TeacherStudentModule
from nayer_pl.distillation.module import DataFreeDistillation
from nayer_pl.distillation.student import step_decay

__all__ = ["DataFreeDistillation", "TeacherStudentModule", "step_decay"]
