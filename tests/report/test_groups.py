import pytest
from omegaconf import OmegaConf

from nayer_pl.report.groups import sections


@pytest.fixture
def section(make_run):
    """The only section of runs with these options; accuracies fall from one to the next."""

    def make(*options):
        runs = [make_run({"student_accuracy": 0.9 - i / 100}, **o) for i, o in enumerate(options)]
        (found,) = sections(runs)
        return found

    return make


VARIANTS = [  # the settings of each variant; those before the bar are in its label
    ["model.optimizer.lr=0.1 |", "model.optimizer.lr=0.2 |"],
    [
        "model.loss=KL |",
        "model.loss=DKD model.a=1 | model.b=8",
        "model.loss=DKD model.a=2 | model.b=8",
    ],
    ["plan.round_size=8 | model.round_size=8", "plan.round_size=9 | model.round_size=9"],
    ["model.learning_rate=0.2 | model.temperature=20.0", "|"],  # of an earlier version
    ["text_encoder.path=a.npy |", "text_encoder.path=b.npy |"],
    ["trainer.max_epochs=4 |", "trainer.max_epochs=8 |"],
    ["student.weights=null |", "student.weights=a.pth |"],
]


@pytest.mark.parametrize("variants", VARIANTS, ids=lambda variants: variants[0].split("=")[0])
def test_sections__variants_of_a_method(section, variants):
    options = [OmegaConf.from_dotlist(each.replace("|", "").split()) for each in variants]
    labels = [", ".join(["nayer", *each.partition("|")[0].split()]) for each in variants]
    found = section(*options, {**options[0], "seed": 1}, {"method": "fast_dfkd"})
    seeds = {method.label: method.seeds for method in found.methods}
    others = {label: [0] for label in labels[1:]}
    assert seeds == {labels[0]: [0, 1], **others, "fast_dfkd": [0]}


def test_sections__data_sets_and_networks(make_run):
    small = {"architecture": {"_target_": "nayer_pl.networks.resnet20"}}
    options = ({}, {"data": "cifar10"}, {"data": "cifar10", "student": small})
    titles = ["cifar10, wrn16_1 to resnet20", "cifar10, wrn16_1 to wrn16_1"]
    found = sections([make_run(**each) for each in options])
    assert [section.title for section in found] == [*titles, "digits, wrn16_1 to wrn16_1"]


def test_sections__shared_settings(section):
    prompts = {"prompts": ["a {name}", True, 1]}
    found = section(
        {"model": {"beta": None}, **prompts}, {"method": "fast", "plan": {"epochs": 3}, **prompts}
    )
    assert found.shared["model.optimizer.lr"] == "0.1"
    assert found.shared["prompts"] == "[a {name}, true, 1]"
    assert "model.seed" not in found.shared
    own = [method.settings for method in found.methods]
    assert own == [{"plan.epochs": "2", "model.beta": "null"}, {"plan.epochs": "3"}]


def test_sections__baselines_last(make_run):
    baseline = make_run({"student_accuracy": 0.99, "seconds_training": 1.0}, method="kd")
    others = (make_run({"student_accuracy": a}, method=m) for m, a in (("dfq", 0.8), ("cmi", 0.9)))
    (found,) = sections([baseline, *others])
    assert [method.name for method in found.methods] == ["cmi", "dfq", "kd (real images)"]


def test_sections__teacher_of_a_baseline(make_run):
    """A run without a teacher is compared with the teacher of its seed, if others have one."""
    taught = [make_run({"teacher_accuracy": t}, seed=s) for s, t in ((0, 0.8), (1, 0.5))]
    alone = [make_run({"accuracy": 0.4}, method="scratch", seed=s) for s in (1, 2)]
    (found,) = sections([*taught, *alone])
    shares = [run.numbers["share_of_teacher"] for run in found.runs if run.method == "scratch"]
    assert shares == [pytest.approx(0.8), None]


def test_gaps(section):
    whole = [{"method": method, "seed": seed} for method in ("nayer", "kd") for seed in (0, 1, 2)]
    assert section(*whole).gaps() == []
    again = section(*whole[:4], whole[0])
    assert again.gaps() == ["nayer has more than one run of seed 0", "kd lacks seed 1, 2"]
