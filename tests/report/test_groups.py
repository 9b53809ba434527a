from dataclasses import replace

import pytest

from nayer_pl.report.groups import gaps, sections
from nayer_pl.report.run import Run


def runs_of(config, *options):
    """Runs with these configurations, and accuracies that fall from one to the next."""
    return [
        Run(str(i), config(**each), {"student_accuracy": 0.9 - i / 100, "seconds_synthesis": 1.0})
        for i, each in enumerate(options)
    ]


def labels(section):
    return {method.label: method.seeds for method in section.methods}


def test_seeds_are_replicates_whatever_else_they_change(config):
    runs = runs_of(config, {"seed": 2}, {"seed": 0}, {"method": "zskt"}, {"seed": 1})
    (section,) = sections(runs)
    assert labels(section) == {"nayer": [0, 1, 2], "zskt": [0]}


def test_variants_of_a_method_are_rows_named_by_what_differs(config):
    one, other = {"conditioning": "lte"}, {"conditioning": "onehot"}
    runs = runs_of(
        config, {"model": one}, {"model": other}, {"model": one, "seed": 1}, {"method": "fast"}
    )
    (section,) = sections(runs)
    assert labels(section) == {
        "nayer, model.conditioning=lte": [0, 1],
        "nayer, model.conditioning=onehot": [0],
        "fast": [0],
    }


def test_seeds_that_are_missing_or_there_twice_are_named(config):
    whole = runs_of(config, *({"method": m, "seed": s} for m in ("nayer", "kd") for s in (0, 1, 2)))
    (section,) = sections(whole)
    assert gaps(section) == []
    (section,) = sections([*whole[:4], replace(whole[0], name="again")])
    assert gaps(section) == ["nayer has more than one run of seed 0", "kd lacks seed 1, 2"]


def test_settings_that_change_together_are_named_once(config):
    runs = runs_of(
        config,
        {"plan": {"round_size": 8}, "model": {"round_size": 8}},
        {"plan": {"round_size": 9}, "model": {"round_size": 9}},
    )
    (section,) = sections(runs)
    assert list(labels(section)) == ["nayer, plan.round_size=8", "nayer, plan.round_size=9"]


def test_data_sets_and_pairs_are_sections_of_their_own(config):
    small = {"architecture": {"_target_": "nayer_pl.networks.resnet20"}}
    runs = runs_of(config, {}, {"data": "cifar10"}, {"data": "cifar10", "student": small})
    assert [section.title for section in sections(runs)] == [
        "cifar10, wrn16_1 to resnet20",
        "cifar10, wrn16_1 to wrn16_1",
        "digits, wrn16_1 to wrn16_1",
    ]


def test_settings_are_those_that_all_share_and_those_of_each(config):
    runs = runs_of(config, {"model": {"beta": None}}, {"method": "fast", "plan": {"epochs": 3}})
    (section,) = sections(runs)
    assert section.shared["plan.batch_size"] == "8"
    assert section.shared["model.learning_rate"] == "0.1"
    assert [method.settings for method in section.methods] == [
        {"plan.epochs": "2", "model.beta": "null"},
        {"plan.epochs": "3"},
    ]


def test_the_most_accurate_come_first_and_those_with_real_images_last(config):
    runs = [
        Run("a", config("kd"), {"student_accuracy": 0.99, "seconds_training": 1.0}),
        Run("b", config("zskt"), {"student_accuracy": 0.5, "seconds_synthesis": 1.0}),
        Run("c", config("fast"), {"student_accuracy": 0.7, "seconds_synthesis": 1.0}),
    ]
    (section,) = sections(runs)
    assert [method.name for method in section.methods] == ["fast", "zskt", "kd (real images)"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"text_encoder": {"path": "a.npy"}}, {"text_encoder": {"path": "b.npy"}}),
        ({"student": {"weights": None}}, {"student": {"weights": "a.pth"}}),
        ({"trainer": {"max_epochs": 4}}, {"trainer": {"max_epochs": 8}}),
    ],
)
def test_runs_of_other_texts_starts_or_lengths_are_no_replicates(config, one, other):
    runs = [Run(str(i), config(seed=i, **c), {}) for i, c in enumerate((one, other))]
    (section,) = sections(runs)
    assert len(section.methods) == 2
