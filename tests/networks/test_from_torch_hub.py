import pytest
import torch

from nayer_pl import InputError
from nayer_pl.app.train import build

HUBCONF = """
from pathlib import Path
import torch

Path(__file__).with_name("marker").touch()

def tiny(num_classes=4, pretrained=False):
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, num_classes))
    if not pretrained:
        torch.nn.init.zeros_(net[1].weight)
    return net

def broken():
    raise KeyError("no such file")
"""
CHOSEN = ["teacher=torch_hub", "teacher.name=tiny", "teacher.source=local"]
MEANS = ["teacher.mean=[0.5]", "teacher.std=[0.25]"]


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "hubconf.py").write_text(HUBCONF)
    return folder


def reference(classes):
    torch.manual_seed(3)
    return torch.nn.Linear(3 * 8 * 8, classes)


@pytest.mark.parametrize("classes", [4, 7])
def test_teacher_by_configuration(config, repo, classes):
    arguments = ["+teacher.architecture.pretrained=true"]
    if classes != 4:
        arguments.append(f"+teacher.architecture.num_classes={classes}")
    cfg = config(*CHOSEN, f"teacher.repo={repo}", "teacher.trust_code=true", *MEANS, *arguments)
    images = torch.rand(2, 3, 8, 8)
    expected = reference(classes)(((images - 0.5) / 0.25).flatten(1))
    torch.testing.assert_close(build(cfg.teacher)(images), expected)


def test_weights_of_your_own_replace_the_published_ones(config, repo, tmp_path):
    mine = torch.nn.Linear(3 * 8 * 8, 4)
    torch.save({f"1.{key}": value for key, value in mine.state_dict().items()}, "my.pth")
    cfg = config(
        *CHOSEN, f"teacher.repo={repo}", "teacher.trust_code=true", "teacher.weights=my.pth",
        "+teacher.architecture.pretrained=true", *MEANS,
    )  # fmt: skip
    images = torch.rand(2, 3, 8, 8)
    expected = mine(((images - 0.5) / 0.25).flatten(1))
    torch.testing.assert_close(build(cfg.teacher)(images), expected)


def test_nothing_runs_without_trust(config, repo):
    with pytest.raises(InputError, match=rf"code of '{repo}'.*teacher\.trust_code=true"):
        build(config(*CHOSEN, f"teacher.repo={repo}", *MEANS).teacher)
    assert not (repo / "marker").exists()
    build(config(*CHOSEN, f"teacher.repo={repo}", *MEANS, "teacher.trust_code=true").teacher)
    assert (repo / "marker").exists()


def test_normalisation_is_asked_for(config, repo):
    with pytest.raises(InputError, match=r"teacher\.mean="):
        build(config(*CHOSEN, f"teacher.repo={repo}", "teacher.trust_code=true").teacher)


@pytest.mark.parametrize("name", ["broken", "nothing"])
def test_what_the_code_raises_is_said_in_a_sentence(config, repo, name):
    chosen = [*CHOSEN, f"teacher.repo={repo}", f"teacher.name={name}", "teacher.trust_code=true"]
    with pytest.raises(InputError, match=rf"'{name}' of '{repo}'.*teacher\.source=local"):
        build(config(*chosen).teacher)


def test_github_is_asked_without_a_prompt_and_its_absence_is_explained(config, monkeypatch):
    asked = {}

    def load(repo, name, **options):
        asked.update(options, repo=repo, name=name)
        raise ConnectionError("no route")

    monkeypatch.setattr(torch.hub, "load", load)
    chosen = ["teacher=torch_hub", "teacher.name=net", "teacher.trust_code=true"]
    with pytest.raises(InputError, match=r"no route.*teacher\.repo.*teacher\.source=local"):
        build(config(*chosen, "teacher.repo=owner/name").teacher)
    assert asked == {"repo": "owner/name", "name": "net", "source": "github", "trust_repo": True}
    with pytest.raises(InputError, match=r"teacher\.repo=OWNER/NAME"):
        build(config(*chosen).teacher)
