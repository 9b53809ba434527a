from dataclasses import replace

import pytest

from nayer_pl.report.groups import sections
from nayer_pl.report.runs import Run


def runs_of(config, *options):
    """Runs with these configurations, and accuracies that fall from one to the next."""
    return [
        Run(str(i), config(**each), {"student_accuracy": 0.9 - i / 100, "seconds_synthesis": 1.0})
        for i, each in enumerate(options)
    ]


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
def test_sections__variants_of_a_method(config, variants, expected):
    others = [{**variants[0], "seed": 1}, {"method": "fast_dfkd"}]
    (section,) = sections(runs_of(config, *variants, *others))
    found = {method.label: method.seeds for method in section.methods}
    names = [f"nayer, {each}" if each else "nayer" for each in expected]
    assert found == {names[0]: [0, 1], **{name: [0] for name in names[1:]}, "fast_dfkd": [0]}


def test_sections__data_sets_and_networks(config):
    small = {"architecture": {"_target_": "nayer_pl.networks.resnet20"}}
    runs = runs_of(config, {}, {"data": "cifar10"}, {"data": "cifar10", "student": small})
    titles = ["cifar10, wrn16_1 to resnet20", "cifar10, wrn16_1 to wrn16_1"]
    assert [section.title for section in sections(runs)] == [*titles, "digits, wrn16_1 to wrn16_1"]


def test_sections__shared_settings(config):
    runs = runs_of(config, {"model": {"beta": None}}, {"method": "fast", "plan": {"epochs": 3}})
    (section,) = sections(runs)
    assert section.shared["model.optimizer.lr"] == "0.1"
    assert "model.seed" not in section.shared
    own = [method.settings for method in section.methods]
    assert own == [{"plan.epochs": "2", "model.beta": "null"}, {"plan.epochs": "3"}]


def test_sections__baselines_last(config):
    runs = runs_of(config, {"method": "nayer"}, {"method": "dfq"})
    baseline = Run("kd", config("kd"), {"student_accuracy": 0.99, "seconds_training": 1.0})
    (section,) = sections([baseline, *runs[::-1]])
    assert [method.name for method in section.methods] == ["nayer", "dfq", "kd (real images)"]


def test_sections__teacher_of_a_baseline(config):
    """A run without a teacher is compared with the teacher of its seed, if others have one."""
    taught = [Run(str(s), config(seed=s), {"teacher_accuracy": t}) for s, t in ((0, 0.8), (1, 0.5))]
    alone = [Run(f"scratch{s}", config("scratch", s), {"accuracy": 0.4}) for s in (1, 2)]
    (section,) = sections([*taught, *alone])
    first, second = (run for run in section.runs if run.method == "scratch")
    assert first.share_of_teacher() == pytest.approx(0.8)
    assert second.share_of_teacher() is None


def test_gaps(config):
    whole = runs_of(config, *({"method": m, "seed": s} for m in ("nayer", "kd") for s in (0, 1, 2)))
    (section,) = sections(whole)
    assert section.gaps() == []
    (section,) = sections([*whole[:4], replace(whole[0], name="again")])
    assert section.gaps() == ["nayer has more than one run of seed 0", "kd lacks seed 1, 2"]
