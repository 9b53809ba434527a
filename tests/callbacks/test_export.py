import pytest
import torch
from lightning import Trainer

from nayer_pl import InputError, Supervised, build_classifier, load_classifier, save_classifier
from nayer_pl.callbacks import Export
from nayer_pl.networks.weights import fingerprint

WRN = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 3, "channels": 1}
NAMES, SHAPE = ["a", "b", "c"], [1, 8, 8]


@pytest.fixture
def run(tiny_real_data, fit):
    """Train a network and export it; returns it."""

    def start(path, **options):
        method = Supervised(build_classifier(WRN, (0.2,), (0.4,)))
        fit(method, tiny_real_data(), callbacks=[Export(path, NAMES, SHAPE, **options)])
        return method.exported_classifier.eval()

    return start


def test_export__content(run, tiny_real_data, tmp_path):
    path = tmp_path / "new" / "student.safetensors"
    trained = run(path)
    classifier, facts = load_classifier(path)
    images, labels = tiny_real_data().source.load("evaluation")
    logits = classifier(images / 255)
    torch.testing.assert_close(logits, trained(images / 255))
    assert facts["class_names"] == NAMES
    assert facts["image_shape"] == SHAPE
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    assert facts["measured"]["val/accuracy"] == pytest.approx(accuracy)


def test_export__existing_file(run, tiny_real_data, tmp_path, monkeypatch):
    monkeypatch.setattr(Supervised, "training_step", lambda *_: pytest.fail("trained"))
    path = tmp_path / "student.safetensors"
    path.write_bytes(b"weights of last week")
    with pytest.raises(InputError, match=f"'{path}' exists and would be replaced.* path=PATH"):
        run(path)
    # Validation alone neither refuses nor writes.
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[Export(path, NAMES, SHAPE)])
    method = Supervised(build_classifier(WRN, (0.2,), (0.4,)))
    trainer.validate(method, tiny_real_data(), verbose=False)
    assert path.read_bytes() == b"weights of last week"


def test_export__resumed(run, tmp_path):
    """After it was killed behind its export a run replaces the file, unless that is another's."""
    path, record = tmp_path / "student.safetensors", tmp_path / "run" / "exported"
    for _ in range(2):
        trained = run(path, record=record)
        assert fingerprint(load_classifier(path)[0]) == fingerprint(trained)

    def refused():
        before = path.read_bytes()
        with pytest.raises(InputError, match="exists and would be replaced"):
            run(path, record=record)
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
        Export(path, NAMES, SHAPE)
