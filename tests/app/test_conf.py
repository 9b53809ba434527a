from pathlib import Path

import pytest

from nayer_pl import InputError, NoisyLayer, Plan
from nayer_pl.app.checks import resolve_class_names
from nayer_pl.app.instantiate import build
from nayer_pl.networks import list_models

CONF = Path(__file__).resolve().parents[2] / "conf"


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if not p.stem.startswith("_"))


def test_metrics_survive_a_full_disk(config):
    """And the loggers of every choice are ours."""
    for choice in ("csv", "default"):
        logger = config(f"logger={choice}").logger.csv
        assert logger._target_ == "nayer_pl.callbacks.metrics_file.MetricsFile"


@pytest.mark.parametrize("data", options("data"))
def test_every_data_set_composes_and_builds(config, data, tmp_path):
    for name in ("cat", "dog"):  # what data=folder needs to know its classes
        (tmp_path / "pictures" / name).mkdir(parents=True)
    cfg = config(f"data={data}", *(["data.path=pictures"] if data == "folder" else []))
    resolve_class_names(cfg)
    assert len(cfg.class_names) == len(set(cfg.class_names)) == cfg.data.num_classes
    datamodule = build(cfg.datamodule)
    assert datamodule.image_shape == tuple(cfg.data.image_shape)
    assert len(cfg.data.mean) == len(cfg.data.std)
    assert len(cfg.data.mean) in (1, cfg.data.image_shape[0])


@pytest.mark.parametrize("name", list_models())
def test_every_student_builds_for_its_data(config, name):
    cfg = config(f"student={name}", "data=cifar100")
    student = build(cfg.student)
    assert student.num_classes(cfg.data.image_shape) == 100
    assert student.description["architecture"]["_target_"] == f"nayer_pl.networks.{name}"


@pytest.mark.parametrize("student", ["resnet18", "resnet50", "mobilenetv2"])
def test_the_teacher_of_imagenets_rows_may_come_from_a_file(config, student):
    experiment = f"experiment=imagenet_resnet50_{student}"
    assert config(experiment).teacher.name == "resnet50"
    own = config("teacher=resnet50_imagenet", "teacher.weights=f.pth", "data=imagenet").teacher
    assert config(experiment, "teacher=resnet50_imagenet", "teacher.weights=f.pth").teacher == own


@pytest.mark.parametrize("name", list_models())
def test_every_teacher_asks_for_its_weights_by_path_and_command(config, name):
    cfg = config(f"teacher={name}", "data=fashion_mnist")
    with pytest.raises(InputError) as error:
        build(cfg.teacher)
    assert f"'teachers/fashion_mnist_{name}.safetensors'" in str(error.value)
    assert f"train.py model=supervised data=fashion_mnist teacher={name}" in str(error.value)
    assert build(config("model=supervised", f"teacher={name}").model).network is not None


@pytest.mark.parametrize("name", options("text_encoder"))
def test_every_text_encoder_builds_without_loading_anything(config, name):
    extra = ["text_encoder.path=x.npy"] if name == "file" else []
    assert hasattr(build(config(f"text_encoder={name}", *extra).text_encoder), "embed")


@pytest.mark.parametrize("name", options("logger"))
def test_every_logger_builds(config, name, tmp_path):
    cfg = config(f"logger={name}")
    assert all(build(node) is not None for node in cfg.logger.values())


@pytest.mark.parametrize("name", options("callbacks"))
def test_every_callback_builds(config, name):
    assert all(build(node) is not None for node in config(f"callbacks={name}").callbacks.values())


def test_trainer_builds(config):
    assert build(config("trainer.accelerator=cpu").trainer, logger=False).num_devices == 1


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes(config, name):
    cfg = config(f"experiment={name}")
    assert build(cfg.datamodule).num_classes == cfg.data.num_classes


@pytest.mark.parametrize(
    ("data", "steps", "rounds", "warm_up_rounds", "kd_steps", "sizes", "rate"),
    [
        ("cifar10", 30, 2, 10, 400, (400, 512), 0.2),
        ("cifar100", 40, 2, 10, 400, (400, 512), 0.2),
        ("tinyimagenet", 60, 4, 20, 1000, (200, 256), 0.1),
    ],
)
def test_recipes_are_the_papers(config, data, steps, rounds, warm_up_rounds, kd_steps, sizes, rate):
    cfg = config("model=nayer", f"data={data}")
    assert cfg.model.generator_steps == steps
    assert cfg.model.learning_rate == rate
    plan = build(cfg.plan)
    assert plan == Plan(100, 20, warm_up_rounds, rounds, kd_steps, *sizes)
    assert plan.images == 160_000
    # What is typed wins over the recipe.
    assert config(f"data={data}", "model.generator_steps=7").model.generator_steps == 7


def test_constants_of_the_method_are_the_papers(config):
    model = config().model
    assert (model.bn_weight, model.ce_weight, model.adv_weight) == (10.0, 0.5, 1.33)
    assert (model.generator_lr, list(model.generator_betas)) == (4e-3, [0.5, 0.999])
    assert (model.temperature, model.min_learning_rate, model.weight_decay) == (20.0, 2e-4, 1e-4)
    assert (model.noisy_features, model.generator_life, model.bn_momentum) == (1000, 10, 0.9)
    # CIFAR-10: 40 layers for a round of 400 images.
    assert NoisyLayer(8, 4, 10, 400).weight.shape[0] == 40


def test_the_default_is_the_papers_headline(config):
    cfg = config()
    assert cfg.data.name == "cifar10"
    assert cfg.teacher.architecture._target_.endswith("resnet34")
    assert cfg.student.architecture._target_.endswith("resnet18")
    assert cfg.text_encoder.model == "openai/clip-vit-base-patch32"
