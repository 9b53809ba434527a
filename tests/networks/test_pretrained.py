import copy
import json
import logging
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nayer_pl import (
    Classifier,
    InputError,
    build_classifier,
    load_classifier,
    load_teacher,
    save_classifier,
)
from nayer_pl.networks import build_network, wrn16_1
from nayer_pl.networks.pretrained import check_no_shared_weights
from nayer_pl.networks.weights import load_weights

WRN = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 5, "channels": 1}
OUTSIDE = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 4, "kernel_size": 3}
MEAN, STD = [0.1307], [0.3081]
IMAGES = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def classifier():
    """A classifier whose BatchNorm statistics are not those of a fresh one."""
    torch.manual_seed(0)
    classifier = build_classifier(WRN, MEAN, STD)
    for _ in range(3):
        classifier(torch.rand(16, 1, 12, 12))
    return classifier.eval()


@pytest.fixture
def file(classifier, tmp_path):
    save_classifier(tmp_path / "s.safetensors", classifier)
    return tmp_path / "s.safetensors"


@pytest.fixture
def bare(classifier, tmp_path):
    """A file without anything but weights."""
    torch.save({"state_dict": classifier.network.state_dict()}, tmp_path / "s.pth")
    return tmp_path / "s.pth"


FRESH = """
import sys, torch
from safetensors.torch import load_file, save_file
from nayer_pl import load_classifier
classifier, facts = load_classifier(sys.argv[1])
images = load_file(sys.argv[2])["images"]
assert facts["class_names"] == ["a", "b", "c", "d", "e"], facts
assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
save_file({"logits": classifier(images)}, sys.argv[3])
"""


def test_classifier__same_logits_in_a_fresh_process(tmp_path, classifier):
    save_classifier(tmp_path / "s.safetensors", classifier, class_names=list("abcde"))
    save_file({"images": IMAGES}, tmp_path / "in.safetensors")
    files = [f"{tmp_path}/{name}.safetensors" for name in ("s", "in", "out")]
    subprocess.run([sys.executable, "-c", FRESH, *files], check=True, cwd=tmp_path)
    with torch.no_grad():
        assert torch.equal(load_file(files[2])["logits"], classifier(IMAGES))


def test_classifier__facts(tmp_path, classifier):
    facts = {"class_names": ["é", "b"], "image_shape": [1, 12, 12], "measured": {"val/x": 0.5}}
    save_classifier(tmp_path / "s.safetensors", classifier, **facts)
    loaded, returned = load_classifier(tmp_path / "s.safetensors")
    assert returned == {"classifier": classifier.description, **facts}
    assert loaded.description == classifier.description


def test_save_classifier__file(classifier, tmp_path, caplog):
    classifier.train()
    before = copy.deepcopy(classifier.state_dict())
    with caplog.at_level(logging.WARNING):
        save_classifier(tmp_path / "s.safetensors", classifier)
    assert not caplog.records
    assert load_file(tmp_path / "s.safetensors").keys() == classifier.network.state_dict().keys()
    with safe_open(tmp_path / "s.safetensors", framework="pt") as file:
        description = json.loads(file.metadata()["classifier"])
    assert description["architecture"] == WRN
    assert description["mean"] == pytest.approx(MEAN)
    assert description["std"] == pytest.approx(STD)
    assert classifier.training
    assert all(p.requires_grad for p in classifier.parameters())
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())


def test_load_classifier__foreign_architecture(tmp_path):
    save_classifier(tmp_path / "s.safetensors", Classifier(build_network(OUTSIDE), [0.5], [0.5]))
    with pytest.raises(InputError, match=r"torch\.nn\.Conv2d.*architecture="):
        load_classifier(tmp_path / "s.safetensors")
    classifier, _ = load_classifier(tmp_path / "s.safetensors", OUTSIDE)
    assert isinstance(classifier.network, nn.Conv2d)


MAKE_FOLDER = {"_target_": "os.mkdir", "path": "marker"}


@pytest.mark.parametrize(
    "description",
    [
        *(
            {**MAKE_FOLDER, "_target_": target}
            for target in (
                "os.mkdir", "nayer_pl.networks.weights.read_weights", "nayer_pl.networksx.f",
                "mkdir", "",
            )
        ),
        {"_target_": "nayer_pl.networks.build_network", "description": MAKE_FOLDER},
        {"_target_": "nayer_pl.networks.build_classifier", "architecture": MAKE_FOLDER},
    ],
)  # fmt: skip
def test_load_classifier__file_does_not_choose_the_code(
    tmp_path, classifier, description, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    classifier.network.architecture = description
    save_classifier("s.safetensors", classifier)
    with pytest.raises(InputError):
        load_classifier("s.safetensors")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("description", ["text", ["list"], {"architecture": "resnet18"}])
def test_load_classifier__malformed_description(tmp_path, classifier, description):
    metadata = {"classifier": json.dumps(description)}
    save_file(classifier.network.state_dict(), tmp_path / "s.safetensors", metadata)
    with pytest.raises(InputError):
        load_classifier(tmp_path / "s.safetensors")


def test_save_classifier__undescribed_network(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        save_classifier(tmp_path / "s.safetensors", Classifier(nn.Conv2d(1, 4, 3)))
    assert "weights only" in caplog.text
    assert "Conv2d" in caplog.text
    with pytest.raises(InputError, match="architecture="):
        load_classifier(tmp_path / "s.safetensors")
    loaded, _ = load_classifier(tmp_path / "s.safetensors", OUTSIDE, [0.5], [0.5])
    assert loaded.network.out_channels == 4


def test_load_classifier__published_file(classifier, bare):
    with pytest.raises(InputError, match=r"mean=\[\.\.\.\] and std=\[\.\.\.\]"):
        load_classifier(bare, WRN)
    loaded, facts = load_classifier(bare, WRN, mean=MEAN, std=STD)
    assert torch.equal(loaded(IMAGES), classifier(IMAGES))
    assert facts == {}


@pytest.mark.parametrize("load", [load_teacher, lambda *args: load_classifier(*reversed(args))])
def test_weights_of_another_number_of_classes(file, load):
    with pytest.raises(InputError, match=r"WideResNet.*last layer \(fc\) has 5 outputs, 7 are"):
        load({**WRN, "num_classes": 7}, file)


@pytest.mark.parametrize("given", [(), (MEAN, STD)])
def test_load_teacher__same_logits_frozen(classifier, file, given, caplog):
    with caplog.at_level(logging.WARNING):
        teacher = load_teacher(WRN, file, *given)
    assert torch.equal(teacher(IMAGES), classifier(IMAGES))
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not caplog.records


def test_load_teacher__missing_weights(tmp_path):
    path = tmp_path / "teachers" / "none.safetensors"
    with pytest.raises(InputError) as caught:
        load_teacher(WRN, path, trained_by="experiment=teacher data=digits")
    assert f"at '{path}'; give weights=PATH" in str(caught.value)
    assert "python train.py experiment=teacher data=digits" in str(caught.value)
    with pytest.raises(InputError) as caught:
        load_teacher(WRN, tmp_path)  # a folder
    assert str(tmp_path) in str(caught.value)
    assert "train.py" not in str(caught.value)


@pytest.mark.parametrize("more", [{}, {"pretrained": False}])
def test_load_teacher__untrained(more):
    with pytest.raises(InputError, match=r"untrained.*weights="):
        load_teacher({**WRN, **more}, None, MEAN, STD)


def test_load_teacher__normalization_of_the_file_wins(classifier, file, caplog):
    with caplog.at_level(logging.WARNING):
        teacher = load_teacher(WRN, file, (0.5,), (0.25,))
    assert torch.equal(teacher(IMAGES), classifier(IMAGES))
    assert "0.13" in caplog.text
    assert "(0.5,)" in caplog.text


def test_load_teacher__one_value_for_all_channels_is_the_same_normalization(tmp_path, caplog):
    color = {**WRN, "channels": 3}
    save_classifier(tmp_path / "t.safetensors", build_classifier(color, [0.5] * 3, [0.25] * 3))
    with caplog.at_level(logging.WARNING):
        load_teacher(color, tmp_path / "t.safetensors", (0.5,), (0.25,))
    assert not caplog.records


def test_load_teacher__file_without_normalization(classifier, bare, caplog):
    with caplog.at_level(logging.WARNING):
        teacher = load_teacher(WRN, bare, (0.5,), (0.25,))
    assert torch.equal(teacher(IMAGES), classifier.network((IMAGES - 0.5) / 0.25))
    assert not caplog.records
    with pytest.raises(InputError, match=r"mean=.*std="):
        load_teacher(WRN, bare)


def test_student_of_a_lightning_checkpoint_can_teach(tmp_path, tiny_method, tiny_data, fit):
    method = tiny_method()
    trainer = fit(method, tiny_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.manual_seed(1)
    network = type(method.student.network)()
    load_weights(network, tmp_path / "last.ckpt")
    trained = method.student.network.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in network.state_dict().items())


def test_check_no_shared_weights():
    teacher, student = Classifier(wrn16_1(3)), Classifier(wrn16_1(3))
    check_no_shared_weights(teacher, student)
    for shared in (teacher, Classifier(teacher.network)):
        with pytest.raises(InputError, match="build two"):
            check_no_shared_weights(teacher, shared)
    student.network.fc.weight = teacher.network.fc.weight
    with pytest.raises(InputError, match="build two"):
        check_no_shared_weights(teacher, student)
