import pytest
import torch
from lightning import LightningModule, Trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from nayer_pl import InputError, build_classifier, load_classifier, save_classifier
from nayer_pl.callbacks import Export

WRN = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 3, "channels": 1}


class Learner(LightningModule):
    def __init__(self):
        super().__init__()
        self.classifier = build_classifier(WRN, (0.2,), (0.4,))
        self.steps = 0

    @property
    def exported_classifier(self):
        return self.classifier

    def training_step(self, batch, _):
        self.steps += 1
        images, labels = batch
        loss = cross_entropy(self.classifier(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val/accuracy", 0.625)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def loader():
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(6, 1, 8, 8), torch.arange(6) % 3), batch_size=3)


def trainer(path, tmp_path, **options):
    return Trainer(
        accelerator="cpu", max_epochs=2, logger=False, default_root_dir=tmp_path,
        callbacks=[Export(path, ("a", "b", "c"), (1, 8, 8), **options)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def test_export__content(tmp_path):
    path, module = tmp_path / "new" / "student.safetensors", Learner()
    trainer(path, tmp_path).fit(module, loader(), loader())
    classifier, facts = load_classifier(path)
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(classifier(images), module.classifier.eval()(images))
    assert facts["class_names"] == ["a", "b", "c"]
    assert facts["image_shape"] == [1, 8, 8]
    assert facts["measured"] == {"val/accuracy": 0.625}


def test_export__existing_file(tmp_path):
    path, module = tmp_path / "student.safetensors", Learner()
    path.write_bytes(b"weights of last week")
    with pytest.raises(InputError, match=r"export\.path=") as caught:
        trainer(path, tmp_path).fit(module, loader(), loader())
    assert str(path) in str(caught.value)
    assert module.steps == 0
    # Validation alone neither refuses nor writes.
    trainer(path, tmp_path).validate(Learner(), loader(), verbose=False)
    assert path.read_bytes() == b"weights of last week"


@pytest.fixture
def recorded(tmp_path):
    """The file and the record of a run that was killed after it had written both."""
    path, record = tmp_path / "student.safetensors", tmp_path / "run" / "exported"
    trainer(path, tmp_path, record=record).fit(Learner(), loader(), loader())
    return path, record


def test_export__resumed(recorded, tmp_path):
    path, record = recorded
    module = Learner()
    trainer(path, tmp_path, record=record).fit(module, loader(), loader())
    classifier, _ = load_classifier(path)
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(classifier(images), module.classifier.eval()(images))


@pytest.mark.parametrize("others", [True, False], ids=["written by others since", "no record"])
def test_export__resumed_but_not_own_file(recorded, tmp_path, others):
    path, record = recorded
    if others:
        save_classifier(path, build_classifier(WRN, (0.2,), (0.4,)))
    else:
        record.unlink()
    before, module = path.read_bytes(), Learner()
    with pytest.raises(InputError, match="exists and would be replaced"):
        trainer(path, tmp_path, record=record).fit(module, loader(), loader())
    assert module.steps == 0
    assert path.read_bytes() == before
