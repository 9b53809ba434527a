import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from nayer_pl import InputError, load_classifier, save_classifier
from nayer_pl.app.train import build

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
PROCESSOR = {"do_normalize": True, "image_mean": MEAN, "image_std": STD}


def tiny(labels=10, channels=3):
    torch.manual_seed(0)
    return ResNetConfig(
        num_channels=channels, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1],
        layer_type="basic", num_labels=labels,
    )  # fmt: skip


def saved(folder, processor=PROCESSOR, network=None):
    network = network or ResNetForImageClassification(tiny())
    network.save_pretrained(folder)
    if processor is not None:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(processor))
    return network.eval()


def teacher_of(config, name, *more):
    return build(
        config("data=cifar10", "teacher=transformers", f"teacher.name={name}", *more).teacher
    )


@pytest.mark.parametrize(
    ("processor", "factor"),
    [
        (PROCESSOR, 1 / 255),
        ({**PROCESSOR, "do_rescale": True, "rescale_factor": 0.00392156862745098}, 1 / 255),
        ({**PROCESSOR, "rescale_factor": 1 / 127.5}, 1 / 127.5),
        ({**PROCESSOR, "do_rescale": False}, 1),
        ({**PROCESSOR, "do_normalize": False}, 1 / 255),
        ({"do_normalize": False}, 1 / 255),
    ],
)
def test_teacher_sees_what_its_image_processor_makes(config, tmp_path, processor, factor):
    network = saved(tmp_path / "net", processor)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32))
    seen = pixels * factor
    if processor["do_normalize"]:
        seen = (seen - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    expected = network(torch.from_numpy(seen).float()).logits
    teacher = teacher_of(config, tmp_path / "net")
    logits = teacher(torch.from_numpy(pixels / 255).float())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert not any(module.training for module in teacher.modules())


@pytest.mark.parametrize("processor", [None, {"do_normalize": True}])
def test_normalisation_that_nobody_knows_is_asked_for(config, tmp_path, processor):
    network = saved(tmp_path / "net", processor)
    with pytest.raises(InputError, match=r"teacher\.mean="):
        teacher_of(config, tmp_path / "net")
    teacher = teacher_of(config, tmp_path / "net", "teacher.mean=[0.5]", "teacher.std=[0.25]")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(teacher(images), network((images - 0.5) / 0.25).logits)


@pytest.mark.parametrize("key", ["do_flip_channel_order", "include_top", "rescale_offset"])
def test_preparation_that_mean_and_std_cannot_express_is_refused(config, tmp_path, key):
    saved(tmp_path / "net", {**PROCESSOR, key: True})
    with pytest.raises(InputError, match=key):
        teacher_of(config, tmp_path / "net")


def test_half_precision_weights_make_an_ordinary_teacher(config, tmp_path):
    saved(tmp_path / "net", network=ResNetForImageClassification(tiny()).half())
    assert teacher_of(config, tmp_path / "net")(torch.rand(2, 3, 32, 32)).dtype == torch.float32


def test_published_weights_of_other_classes_are_refused(config, tmp_path):
    saved(tmp_path / "net", network=ResNetForImageClassification(tiny(labels=7)))
    with pytest.raises(InputError, match=r"7 outputs .* 10 outputs"):
        teacher_of(config, tmp_path / "net")


def test_a_network_without_its_last_layer_is_refused(config, tmp_path):
    saved(tmp_path / "net", network=ResNetModel(tiny()))
    with pytest.raises(InputError, match="no trained image classifier"):
        teacher_of(config, tmp_path / "net")


def test_published_weight_file_loads_unchanged(config, tmp_path):
    network = saved(tmp_path / "net")
    other = saved(tmp_path / "other", network=ResNetForImageClassification(tiny(labels=3)))
    assert other.num_labels == 3
    weights = f"teacher.weights={tmp_path}/net/model.safetensors"
    means = ["teacher.mean=[0.5]", "teacher.std=[0.25]"]
    teacher = teacher_of(config, tmp_path / "other", weights, *means)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(teacher(images), network((images - 0.5) / 0.25).logits)


def test_fresh_student_for_the_data_from_a_configuration_alone(config, tmp_path):
    tiny(labels=1000).save_pretrained(tmp_path / "net")  # no weights there
    cfg = config("data=digits", "student=transformers", f"student.name={tmp_path}/net")
    student = build(cfg.student)
    assert student.num_classes(cfg.data.image_shape) == 10
    assert not student.has_normalization
    assert student.network.config.hidden_sizes == [4, 6]
    logits = student.network(torch.rand(2, 1, 16, 16, requires_grad=True))
    assert logits.shape == (2, 10)
    assert logits.requires_grad


def test_student_is_rebuilt_on_your_word_not_on_the_files(config, tmp_path):
    tiny().save_pretrained(tmp_path / "net")
    chosen = ["student.mean=[0.5]", "student.std=[0.25]"]
    student = build(
        config("student=transformers", f"student.name={tmp_path}/net", *chosen).student
    ).freeze()
    save_classifier(tmp_path / "s.safetensors", student)
    with pytest.raises(InputError, match=r"from_transformers.*architecture=\{"):
        load_classifier(tmp_path / "s.safetensors")
    loaded, facts = load_classifier(tmp_path / "s.safetensors", student.description["architecture"])
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(images), student(images))
    assert facts["classifier"]["architecture"]["name"] == f"{tmp_path}/net"


def test_code_beside_a_model_does_not_run(config, tmp_path):
    saved(tmp_path / "net")
    described = json.loads((tmp_path / "net/config.json").read_text())
    described |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (tmp_path / "net/config.json").write_text(json.dumps(described))
    (tmp_path / "net/mine.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be loaded"):
        teacher_of(config, tmp_path / "net")
    assert not (tmp_path / "marker").exists()


def test_unknown_name_says_what_to_set(config, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"'nobody/nothing' cannot be loaded.*local folder"):
        teacher_of(config, "nobody/nothing")
    with pytest.raises(InputError, match=r"student\.name="):
        build(config("student=transformers").student)
