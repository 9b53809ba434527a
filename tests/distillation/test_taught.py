import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from nayer_pl import RealDataModule
from nayer_pl.data import ImageSet
from nayer_pl.methods.kd import KnowledgeDistillation

SHAPE = (1, 8, 8)


class Real:
    def load(self, split):
        return ImageSet(torch.randint(256, (8, *SHAPE), dtype=torch.uint8), torch.arange(8) % 3)


class Ask(Callback):
    """Whom the method asks in training, and what it is told."""

    def on_train_batch_start(self, trainer, method, batch, i):
        self.asked = method.ask_teacher.__self__
        self.told = method.ask_teacher(torch.full((2, *SHAPE), 0.3))


@pytest.fixture(params=["data-free", "kd"])
def trained(request, tiny_method, tiny_classifier, tiny_data, fit, tmp_path):
    """A method after its training, in which a callback looked on."""
    ask = Ask()
    if request.param == "data-free":
        method = tiny_method()
        fit(method, tiny_data(), callbacks=[ask])
    else:
        method = KnowledgeDistillation(
            tiny_classifier(), tiny_classifier(), SHAPE, check_teacher=False
        )
        Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[ask],
            default_root_dir=tmp_path,
        ).fit(method, datamodule=RealDataModule(Real(), batch_size=8))  # fmt: skip
    return method, ask


def test_a_copy_is_asked_in_training_and_the_teacher_afterwards(trained):
    method, ask = trained
    assert ask.asked not in (method, method.teacher)
    assert method.ask_teacher.__self__ is method
    told = method.ask_teacher(torch.full((2, *SHAPE), 0.3))
    torch.testing.assert_close(ask.told, told, rtol=1e-3, atol=1e-4)


def test_the_teacher_stays_in_evaluation_mode(trained):
    method, _ = trained
    method.train()
    assert method.student.training
    assert not any(module.training for module in method.teacher.modules())
