"""conf/recipe: which numbers a run takes, and that it says so."""

import functools
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from running import composed

from nayer_pl import InputError
from nayer_pl.app.config_store import log_recipe
from nayer_pl.app.instantiate import build
from nayer_pl.bank import DistillationBatch, MemoryBank
from nayer_pl.bank.plan import EpochPlan

RECIPES = Path(__file__).resolve().parents[2] / "conf" / "recipe"
DATA = "cifar10", "cifar100", "digits", "fashion_mnist"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """As in other files, but a configuration is composed once for all tests."""
    with composed(tmp_path_factory.mktemp("recipes")) as compose_here:
        yield functools.cache(compose_here)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ([], "nayer_cifar10"),
        (["model=zskt", "data=cifar100"], "zskt_cifar100"),
        (["model=scratch", "experiment=digits"], "kd_digits"),
        (["data=folder", "recipe=nayer_tinyimagenet"], "nayer_tinyimagenet"),
        (["data=folder"], None),
        (["model=dafl", "data=tinyimagenet"], None),
    ],
)
def test_log_recipe(config, caplog, typed, name):
    caplog.set_level("INFO")
    cfg = config(*typed)
    log_recipe(cfg)
    expected = f"Recipe: {name}." if name else f"no recipe for {cfg.model_name} on {cfg.data.name}"
    assert expected in caplog.text


def test_log_recipe__whole_file(config):
    with pytest.raises(InputError, match=r"recipe=METHOD_DATA.*cifar10, cifar100"):
        log_recipe(config("recipe=nayer"))


def test_every_recipe_composes(config):
    conf = RECIPES.parent
    for file in RECIPES.glob("*.yaml"):
        assert (conf / "model" / file.name).exists()
        for data in OmegaConf.load(file):
            cfg = config(f"model={file.stem}", f"data={data}")
            assert cfg.recipe_name == f"{file.stem}_{data}"
            build(cfg.datamodule)  # the plan of which can work


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(("method", "steps"), [("dafl", 1), ("dfq", 1), ("dfad", 5), ("zskt", 10)])
def test_online_methods_take_turns(config, method, data, steps):
    """One step of the generator, and then as many of the student as were published."""
    cfg = config(f"model={method}", f"data={data}")
    plan = build(cfg.plan)
    bank = MemoryBank(1, (1, 2, 2))
    bank.add(torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    items = zip(EpochPlan(plan, plan.warmup_epochs, 3, bank), range(3 * (steps + 1)), strict=False)
    kinds = ["RS"[isinstance(item, DistillationBatch)] for item, _ in items]
    assert "".join(kinds) == 3 * ("R" + steps * "S")
    assert cfg.model.generator_steps == 1
    if method == "zskt":  # the student sees all images of a turn
        assert plan.batch_size == plan.round_size
    if method == "dafl":  # the code's 5, which takes logarithms to base 10
        assert cfg.model.balance_weight == pytest.approx(5 / math.log(10), rel=1e-3)
    if method == "dfq":  # the generator alone
        items = zip(EpochPlan(plan, 0, 3, bank), range(6), strict=False)
        assert not any(isinstance(item, DistillationBatch) for item, _ in items)


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    ("method", "images"), [("dfad", 500 * 50 * 6 * 256), ("zskt", 80_000 * 11 * 128)]
)
def test_budgets_are_the_published_ones(config, method, data, images):
    """Images that the generator makes for its own steps and that the student sees."""
    plan = build(config(f"model={method}", f"data={data}").plan)
    assert plan.images + plan.epochs * plan.kd_steps * plan.batch_size == images


PUBLISHED = {
    "nayer": """
        model.bn_weight=10 model.ce_weight=0.5 model.adv_weight=1.33 model.generator_lr=4e-3
        model.generator_betas=[0.5,0.999] model.student_loss.temperature=20
        model.scheduler.eta_min=2e-4 model.optimizer.momentum=0.9 model.optimizer.weight_decay=1e-4
        model.noisy_features=1000 model.generator_life=10 model.bn_momentum=0.9""",
    "fast_dfkd": """
        model.generator_steps=10 model.generator_lr=2e-3 model.latent_lr=0.01 model.meta=fomaml
        model.bn_weight=10 model.ce_weight=0.5 model.adv_weight=1.33 model.first_layer_reset=120
        model.noise_features=256 plan.epochs=200 plan.warmup_epochs=20 plan.kd_steps=400
        plan.warmup_rounds=1 plan.rounds_per_epoch=1 plan.round_size=256 plan.batch_size=256""",
    "cmi": """
        model.generator_steps=200 model.generator_lr=1e-3 model.noise_features=256
        model.bn_weight=1 model.ce_weight=0.5 model.adv_weight=0.5 model.cr_weight=0.8
        model.cr_temperature=0.1 model.embedding_features=256 plan.epochs=40 plan.kd_steps=2000
        plan.batch_size=128 plan.warmup_epochs=20 plan.warmup_rounds=10 plan.round_size=256""",
    "deepinversion": """
        model.image_steps=2000 model.image_lr=0.05 model.tv_weight=2.5e-5 model.l2_weight=3e-8
        model.bn_weight=10 model.adv_weight=10 model.adv_temperature=3
        model.augmentation.jitter=2 model.augmentation.flip=true plan.round_size=256""",
}


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
@pytest.mark.parametrize("method", PUBLISHED)
def test_published_options(config, method, data):
    cfg = config(f"model={method}", f"data={data}")
    assert OmegaConf.merge(cfg, OmegaConf.from_dotlist(PUBLISHED[method].split())) == cfg


def test_digits_are_not_mirrored(config):
    assert config("model=deepinversion", "data=digits").model.augmentation.flip is False
