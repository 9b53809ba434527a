import logging

import pytest
import torch

from nayer_pl import InputError, build_classifier, load_teacher, save_classifier
from nayer_pl.networks import wrn16_1
from nayer_pl.networks.weights import load_weights

WRN = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 5}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def trained(path, mean=MEAN, std=STD):
    torch.manual_seed(0)
    classifier = build_classifier(WRN, mean, std)
    save_classifier(path, classifier)
    return classifier.eval()


def test_missing_weights_name_the_path_and_the_command(tmp_path):
    path = tmp_path / "teachers" / "none.safetensors"
    with pytest.raises(InputError) as caught:
        load_teacher(WRN, path, trained_by="experiment=teacher data=digits")
    assert str(path) in str(caught.value)
    assert "python train.py experiment=teacher data=digits" in str(caught.value)
    assert "teacher.weights=" in str(caught.value)


def test_missing_weights_without_a_recipe_name_the_path_only(tmp_path):
    with pytest.raises(InputError) as caught:
        load_teacher(WRN, tmp_path)  # a folder is no file
    assert str(tmp_path) in str(caught.value)
    assert "train.py" not in str(caught.value)


def test_teacher_gives_the_logits_it_was_trained_to_give(tmp_path):
    classifier = trained(tmp_path / "t.safetensors")
    teacher = load_teacher(WRN, tmp_path / "t.safetensors", MEAN, STD)
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(teacher(images), classifier(images))


def test_teacher_is_frozen_and_in_evaluation_mode(tmp_path):
    trained(tmp_path / "t.safetensors")
    teacher = load_teacher(WRN, tmp_path / "t.safetensors", MEAN, STD)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_normalisation_of_the_file_wins_with_a_warning(tmp_path, caplog):
    classifier = trained(tmp_path / "t.safetensors")
    with caplog.at_level(logging.WARNING):
        teacher = load_teacher(WRN, tmp_path / "t.safetensors", (0.5,), (0.5,))
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(teacher(images), classifier(images))
    assert "0.49" in caplog.text
    assert "(0.5,)" in caplog.text


def test_same_normalisation_is_no_reason_to_warn(tmp_path, caplog):
    trained(tmp_path / "t.safetensors")
    with caplog.at_level(logging.WARNING):
        load_teacher(WRN, tmp_path / "t.safetensors", list(MEAN), list(STD))
    assert not caplog.records


def test_one_value_for_all_channels_is_the_same_normalisation(tmp_path, caplog):
    trained(tmp_path / "t.safetensors", (0.5,) * 3, (0.5,) * 3)
    with caplog.at_level(logging.WARNING):
        load_teacher(WRN, tmp_path / "t.safetensors", (0.5,), (0.5,))
    assert not caplog.records


def test_file_without_normalisation_takes_the_given_one(tmp_path, caplog):
    network = wrn16_1(5).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "t.pth")
    with caplog.at_level(logging.WARNING):
        teacher = load_teacher(WRN, tmp_path / "t.pth", MEAN, STD)
    images = torch.rand(3, 3, 16, 16)
    normalized = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.equal(teacher(images), network(normalized))
    assert not caplog.records


def test_normalisation_that_nobody_knows_is_asked_for(tmp_path):
    torch.save({"state_dict": wrn16_1(5).state_dict()}, tmp_path / "t.pth")
    with pytest.raises(InputError, match=r"teacher\.mean=.*teacher\.std="):
        load_teacher(WRN, tmp_path / "t.pth")


def test_normalisation_of_the_file_is_enough(tmp_path):
    classifier = trained(tmp_path / "t.safetensors")
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(load_teacher(WRN, tmp_path / "t.safetensors")(images), classifier(images))


@pytest.mark.parametrize("more", [{}, {"pretrained": False}])
def test_an_untrained_teacher_is_refused(more):
    with pytest.raises(InputError, match=r"untrained.*teacher\.weights="):
        load_teacher({**WRN, **more}, None, MEAN, STD)


def test_student_of_a_lightning_checkpoint_can_teach(tmp_path, tiny_method, tiny_data, fit):
    method = tiny_method()
    trainer = fit(method, tiny_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.manual_seed(1)
    network = type(method.student.network)()
    load_weights(network, tmp_path / "last.ckpt")
    trained = method.student.network.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in network.state_dict().items())


def test_weights_of_another_number_of_classes_are_refused(tmp_path):
    trained(tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=r"last layer \(fc\) has 5 outputs, 7 are wanted"):
        load_teacher({**WRN, "num_classes": 7}, tmp_path / "t.safetensors", MEAN, STD)
