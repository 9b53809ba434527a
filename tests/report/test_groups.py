import pytest

from nayer_pl.report.groups import sections


@pytest.fixture
def section(make_run):
    """The only section of runs with these options; accuracies fall from one to the next."""

    def make(*options):
        runs = [make_run({"student_accuracy": 0.9 - i / 100}, **o) for i, o in enumerate(options)]
        (found,) = sections(runs)
        return found

    return make


def loss(name, **options):
    return {"model": {"student_loss": {"_target_": name, "_partial_": True, **options}}}


VARIANTS = {
    "one setting": (
        [{"model": {"optimizer": {"lr": lr}}} for lr in (0.1, 0.2)],
        ["model.optimizer.lr=0.1", "model.optimizer.lr=0.2"],
    ),
    "options of a loss": (
        [loss("KL"), loss("DKD", alpha=1, beta=8), loss("DKD", alpha=2, beta=8)],
        [
            "model.student_loss._target_=KL",
            "model.student_loss._target_=DKD, model.student_loss.alpha=1",
            "model.student_loss._target_=DKD, model.student_loss.alpha=2",
        ],
    ),
    "changed together": (
        [{"plan": {"round_size": n}, "model": {"round_size": n}} for n in (8, 9)],
        ["plan.round_size=8", "plan.round_size=9"],
    ),
    "names of an earlier version": (
        [{"model": {"learning_rate": 0.2, "temperature": 20.0}}, {}],
        ["model.learning_rate=0.2", ""],
    ),
    "text": (
        [{"text_encoder": {"path": path}} for path in ("a.npy", "b.npy")],
        ["text_encoder.path=a.npy", "text_encoder.path=b.npy"],
    ),
    "length": (
        [{"trainer": {"max_epochs": n}} for n in (4, 8)],
        ["trainer.max_epochs=4", "trainer.max_epochs=8"],
    ),
    "start": (
        [{"student": {"weights": weights}} for weights in (None, "a.pth")],
        ["student.weights=null", "student.weights=a.pth"],
    ),
}


@pytest.mark.parametrize(("variants", "expected"), VARIANTS.values(), ids=VARIANTS)
def test_sections__variants_of_a_method(section, variants, expected):
    found = section(*variants, {**variants[0], "seed": 1}, {"method": "fast_dfkd"})
    seeds = {method.label: method.seeds for method in found.methods}
    names = [f"nayer, {each}" if each else "nayer" for each in expected]
    assert seeds == {names[0]: [0, 1], **{name: [0] for name in names[1:]}, "fast_dfkd": [0]}


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
