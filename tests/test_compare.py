"""`experiment=compare`: one command, every method, every seed."""

from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from nayer_pl.app.instantiate import build

CONF = Path(__file__).resolve().parents[1] / "conf"
METHODS = {path.stem for path in (CONF / "model").glob("*.yaml")} - {"supervised"}


@pytest.fixture
def sweep(type_command):
    """Type a sweep; what each of its jobs would have run, and where."""

    def run(*arguments):
        jobs = {}

        def training(cfg):
            folder = Path(HydraConfig.get().runtime.output_dir)
            jobs[cfg.model_name, cfg.seed] = (folder.relative_to(Path.cwd()), cfg)
            return 0.5

        # What a sweeper gets is another matter: models differ in what they measure.
        status, printed = type_command(
            training, "-m", "experiment=compare", "objective=student_accuracy", *arguments
        )
        return status, printed, jobs

    return run


@pytest.mark.slow
def test_compare__every_method(sweep):
    status, printed, jobs = sweep("seed=1")
    assert status == 0, printed
    assert jobs.keys() == {(method, 1) for method in METHODS}


def test_compare__three_seeds(sweep):
    """With a teacher and a folder each."""
    status, printed, jobs = sweep("model=fast_dfkd")
    assert status == 0, printed
    assert list(jobs) == [("fast_dfkd", seed) for seed in (0, 1, 2)]
    for (_, seed), (folder, cfg) in jobs.items():
        assert cfg.paths.teachers == f"teachers/seed{seed}"
        assert folder.name == f"fast_dfkd_seed{seed}"
        assert folder.parent.name.startswith("compare_digits_")
        assert cfg.run_dir == str(folder.absolute())


@pytest.mark.parametrize("data", ["digits", "fashion_mnist", "cifar10", "cifar100"])
def test_baselines_have_as_many_student_updates(config, data):
    plan = config(f"data={data}").plan
    for cfg in (config(f"model={method}", f"data={data}") for method in ("kd", "scratch")):
        sizes = cfg.datamodule.epochs, cfg.datamodule.steps, cfg.datamodule.batch_size
        assert sizes == (plan.epochs, plan.kd_steps, plan.batch_size)


@pytest.mark.parametrize(("data", "budget"), [("digits", 120_000), ("fashion_mnist", 570_000)])
@pytest.mark.parametrize("method", sorted(METHODS - {"kd", "scratch"}))
def test_recipes_cost_the_same(config, method, data, budget):
    """An image through the generator and back once, or through the student."""
    cfg = config(f"model={method}", f"data={data}")
    plan = build(cfg.plan)
    (steps,) = (value for name, value in cfg.model.items() if name.endswith("_steps"))
    learned = plan.epochs * plan.kd_steps * plan.batch_size
    assert plan.images * steps + learned == pytest.approx(budget, rel=0.05)


def test_scratch__network(config):
    cfg = config("model=scratch", "teacher=resnet34", "student=wrn16_1")
    assert cfg.model.network.architecture._target_ == "nayer_pl.networks.wrn16_1"
    assert cfg.export.path == f"{cfg.run_dir}/student.safetensors"
