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
    with pytest.raises(InputError, match=f"'{path}' exists and would be replaced.* path=PATH"):
        trainer(path, tmp_path).fit(module, loader(), loader())
    assert module.steps == 0
    # Validation alone neither refuses nor writes.
    trainer(path, tmp_path).validate(Learner(), loader(), verbose=False)
    assert path.read_bytes() == b"weights of last week"


def test_export__resumed(tmp_path):
    """After it was killed behind its export a run replaces the file, unless that is another's."""
    path, record = tmp_path / "student.safetensors", tmp_path / "run" / "exported"
    for module in (Learner(), Learner()):
        trainer(path, tmp_path, record=record).fit(module, loader(), loader())
        classifier, _ = load_classifier(path)
        images = torch.rand(4, 1, 8, 8)
        assert torch.equal(classifier(images), module.classifier.eval()(images))

    def refused():
        before = path.read_bytes()
        with pytest.raises(InputError, match="exists and would be replaced"):
            trainer(path, tmp_path, record=record).fit(Learner(), loader(), loader())
        return path.read_bytes() == before

    written = record.read_text()
    record.unlink()
    assert refused()
    record.write_text(written)
    save_classifier(path, build_classifier(WRN, (0.2,), (0.4,)))
    assert refused()


@pytest.mark.parametrize(
    ("path", "answer"),
    [(None, "no file to write .* path=PATH"), ("a.pth", r"^path must be a \.safetensors file")],
)
def test_export__path(path, answer):
    with pytest.raises(InputError, match=answer):
        Export(path, ("a", "b"), (1, 8, 8))
