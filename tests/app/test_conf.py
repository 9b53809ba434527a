"""Every choice of conf/ can be built, and the paper's numbers are the paper's."""

from pathlib import Path

import pytest
from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import nayer_pl as npl
from nayer_pl import InputError, Plan
from nayer_pl.app.instantiate import build, check
from nayer_pl.app.run_dir import resolve_class_names
from nayer_pl.networks import list_models

CONF = Path(__file__).resolve().parents[2] / "conf"
# Jobs for each seed.
ABLATIONS = {
    "conditioning": 3, "noisy_layer": 2, "labels_per_layer": 2, "text_encoder": 2, "prompt": 3,
    "generator_life": 3, "bank_size": 3,
}  # fmt: skip
LOSSES = {
    "kl": npl.KLDivergence(20), "kl_ce": npl.KLCrossEntropy(4, 0.9), "mse": npl.MSELogits(),
    "dkd": npl.DecoupledKD(4, 1, 8), "logit_std": npl.LogitStandardization(2, 9),
    "dist": npl.DIST(4, 2, 2), "l1": npl.L1Logits(),
}  # fmt: skip


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if not p.stem.startswith("_"))


@pytest.mark.parametrize("data", options("data"))
def test_data_set(config, data, tmp_path):
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
def test_networks(config, name):
    """As a student; as a teacher whose weights are missing; and as what is trained for them."""
    cfg = config(f"student={name}", f"teacher={name}", "data=fashion_mnist")
    student = build(cfg.student)
    assert student.num_classes((1, 32, 32)) == 10
    assert student.description["architecture"]["_target_"] == f"nayer_pl.networks.{name}"
    with pytest.raises(InputError) as error:
        build(cfg.teacher)
    assert f"'teachers/fashion_mnist_{name}.safetensors'" in str(error.value)
    assert cfg.teacher.trained_by == f"model=supervised data=fashion_mnist teacher={name}"


def test_imagenet_teacher_from_file(config):
    """As one of torchvision's is, without torchvision."""
    published = config("data=imagenet", "teacher=torchvision_resnet50").teacher
    check(published)
    assert published.name == "resnet50"
    teacher = config("data=imagenet", "teacher=resnet50_imagenet", "teacher.weights=f.pth").teacher
    assert teacher.architecture._target_ == "nayer_pl.networks.resnet50_imagenet"
    assert teacher.weights == "f.pth"


@pytest.mark.parametrize("name", options("text_encoder"))
def test_text_encoder(config, name):
    extra = ["text_encoder.path=x.npy"] if name == "file" else []
    assert hasattr(build(config(f"text_encoder={name}", *extra).text_encoder), "embed")


@pytest.mark.parametrize("name", options("logger"))
def test_logger(config, name):
    made = {name: build(node) for name, node in config(f"logger={name}").logger.items()}
    if "csv" in made:  # ours survives a full disk
        assert type(made["csv"]).__module__ == "nayer_pl.callbacks.loggers"


@pytest.mark.parametrize("name", options("student_loss"))
def test_student_loss(config, name):
    """With the published constants."""
    assert build(config(f"student_loss={name}").model.student_loss) == LOSSES[name]


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation(config, name):
    """A sweep whose jobs differ in the one thing that it is about."""
    chosen = ["experiment=digits", f"ablation={name}"]
    sweep = compose("train", chosen, return_hydra_config=True).hydra.sweeper.params
    typed = [f"{key}={values}" for key, values in sweep.items()]
    parsed = OverridesParser.create().parse_overrides(typed)
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    assert len(jobs) == 3 * ABLATIONS[name]
    of_one_seed = [job for job in jobs if "seed=0" in job]
    found = {OmegaConf.to_yaml(config(*chosen, *job), resolve=False) for job in of_one_seed}
    assert len(found) == len(of_one_seed) == ABLATIONS[name]


def test_ablation__all_are_known():
    assert options("ablation") == sorted(ABLATIONS)


@pytest.mark.parametrize(
    ("data", "steps", "rounds", "warm_up_rounds", "kd_steps", "sizes", "rate"),
    [
        ("cifar10", 30, 2, 10, 400, (400, 512), 0.2),
        ("cifar100", 40, 2, 10, 400, (400, 512), 0.2),
        ("tinyimagenet", 60, 4, 20, 1000, (200, 256), 0.1),
    ],
)
def test_nayer_recipes_are_the_papers(
    config, data, steps, rounds, warm_up_rounds, kd_steps, sizes, rate
):
    cfg = config("model=nayer", f"data={data}")
    assert cfg.model.generator_steps == steps
    assert cfg.model.optimizer.lr == rate
    plan = build(cfg.plan)
    assert plan == Plan(100, 20, warm_up_rounds, rounds, kd_steps, *sizes)
    assert plan.images == 160_000


def test_default_is_the_papers_headline(config):
    cfg = config()
    assert cfg.data.name == "cifar10"
    assert cfg.teacher.architecture._target_.endswith("resnet34")
    assert cfg.student.architecture._target_.endswith("resnet18")
    assert cfg.text_encoder.model == "openai/clip-vit-base-patch32"
