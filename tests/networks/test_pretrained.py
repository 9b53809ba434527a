import json
import logging
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nayer_pl import Classifier, InputError, build_classifier, load_classifier, save_classifier
from nayer_pl.networks import build_network

WRN = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 5, "channels": 1}
OUTSIDE = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 4, "kernel_size": 3}


def trained(mean=(0.1307,), std=(0.3081,)):
    """A classifier whose BatchNorm statistics are not those of a fresh one."""
    torch.manual_seed(0)
    classifier = build_classifier(WRN, mean, std)
    for _ in range(3):
        classifier(torch.rand(16, 1, 12, 12))
    return classifier.eval()


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


def test_fresh_process_gives_the_same_logits_bit_for_bit(tmp_path):
    torch.manual_seed(1)
    images = torch.rand(8, 1, 12, 12)
    classifier = trained()
    save_classifier(tmp_path / "s.safetensors", classifier, class_names=list("abcde"))
    save_file({"images": images}, tmp_path / "in.safetensors")
    files = [f"{tmp_path}/{name}.safetensors" for name in ("s", "in", "out")]
    subprocess.run([sys.executable, "-c", FRESH, *files], check=True, cwd=tmp_path)
    with torch.no_grad():
        assert torch.equal(load_file(files[2])["logits"], classifier(images))


def test_facts_come_back_beside_the_description(tmp_path):
    facts = {"class_names": ["é", "b"], "image_shape": [1, 12, 12], "measured": {"val/x": 0.5}}
    classifier = trained()
    save_classifier(tmp_path / "s.safetensors", classifier, **facts)
    loaded, returned = load_classifier(tmp_path / "s.safetensors")
    assert returned == {"classifier": classifier.description, **facts}
    assert loaded.description == classifier.description


def test_file_holds_the_networks_own_keys_and_readable_json(tmp_path):
    classifier = trained()
    save_classifier(tmp_path / "s.safetensors", classifier)
    assert load_file(tmp_path / "s.safetensors").keys() == classifier.network.state_dict().keys()
    with safe_open(tmp_path / "s.safetensors", framework="pt") as file:
        described = json.loads(file.metadata()["classifier"])
    assert described["architecture"] == WRN
    assert described["mean"] == pytest.approx([0.1307])
    assert described["std"] == pytest.approx([0.3081])


def test_foreign_architecture_is_refused_on_the_files_word_and_taken_on_yours(tmp_path):
    save_classifier(tmp_path / "s.safetensors", Classifier(build_network(OUTSIDE), [0.5], [0.5]))
    with pytest.raises(InputError, match=r"torch\.nn\.Conv2d.*architecture="):
        load_classifier(tmp_path / "s.safetensors")
    classifier, _ = load_classifier(tmp_path / "s.safetensors", OUTSIDE)
    assert isinstance(classifier.network, nn.Conv2d)


@pytest.mark.parametrize(
    "target",
    ["os.mkdir", "nayer_pl.networks.weights.read_weights", "nayer_pl.networksx.f", "mkdir", ""],
)
def test_file_does_not_choose_what_code_runs(tmp_path, target):
    classifier = trained()
    classifier.network.architecture = {"_target_": target, "path": str(tmp_path / "marker")}
    save_classifier(tmp_path / "s.safetensors", classifier)
    with pytest.raises(InputError):
        load_classifier(tmp_path / "s.safetensors")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("helper", "argument"),
    [("build_network", "description"), ("build_classifier", "architecture")],
)
def test_file_does_not_reach_foreign_code_through_the_package(tmp_path, helper, argument):
    marker = {"_target_": "os.mkdir", "path": str(tmp_path / "marker")}
    classifier = trained()
    classifier.network.architecture = {"_target_": f"nayer_pl.networks.{helper}", argument: marker}
    save_classifier(tmp_path / "s.safetensors", classifier)
    error = None
    try:
        load_classifier(tmp_path / "s.safetensors")
    except Exception as caught:
        error = caught
    assert not (tmp_path / "marker").exists()
    assert isinstance(error, InputError)


def test_undescribed_network_is_saved_with_a_warning_and_needs_its_architecture(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        save_classifier(tmp_path / "s.safetensors", Classifier(nn.Conv2d(1, 4, 3)))
    assert "weights only" in caplog.text
    assert "Conv2d" in caplog.text
    with pytest.raises(InputError, match="architecture="):
        load_classifier(tmp_path / "s.safetensors")
    loaded, _ = load_classifier(tmp_path / "s.safetensors", OUTSIDE, [0.5], [0.5])
    assert loaded.network.out_channels == 4


def test_published_file_needs_a_normalisation_and_is_given_one(tmp_path):
    classifier = trained()
    torch.save({"state_dict": classifier.network.state_dict()}, tmp_path / "s.pth")
    with pytest.raises(InputError, match=r"mean=\[\.\.\.\] and std=\[\.\.\.\]"):
        load_classifier(tmp_path / "s.pth", WRN)
    loaded, facts = load_classifier(tmp_path / "s.pth", WRN, mean=[0.1307], std=[0.3081])
    images = torch.rand(4, 1, 12, 12)
    assert torch.equal(loaded(images), classifier(images))
    assert facts == {}


def test_described_network_is_saved_without_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        save_classifier(tmp_path / "s.safetensors", trained())
    assert not caplog.records


def test_architecture_that_does_not_fit_the_weights_is_refused(tmp_path):
    save_classifier(tmp_path / "s.safetensors", trained())
    with pytest.raises(InputError, match="WideResNet"):
        load_classifier(tmp_path / "s.safetensors", {**WRN, "num_classes": 6})


def test_saving_does_not_change_the_classifier(tmp_path):
    classifier = trained().train()
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    save_classifier(tmp_path / "s.safetensors", classifier)
    assert classifier.training
    assert all(p.requires_grad for p in classifier.parameters())
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())


@pytest.mark.parametrize("described", ["text", ["list"], {"architecture": "resnet18"}])
def test_malformed_description_is_an_input_error(tmp_path, described):
    save_file(
        trained().network.state_dict(),
        tmp_path / "s.safetensors",
        {"classifier": json.dumps(described)},
    )
    with pytest.raises(InputError):
        load_classifier(tmp_path / "s.safetensors")
