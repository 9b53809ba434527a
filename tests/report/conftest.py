"""Small runs, written by hand, whose reports can be computed by hand."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from omegaconf import OmegaConf

from nayer_pl.report.runs import configured, read_curve

METRICS = ["student_updates", "val/student_accuracy", "time/synthesis", "time/distillation"]


@pytest.fixture(scope="session")
def config():
    def make(method="nayer", seed=0, data="digits", **more):
        network = {"architecture": {"_target_": "nayer_pl.networks.wrn16_1"}}
        made = {
            "model_name": method,
            "seed": seed,
            "data": {"name": data, "path": f"somewhere/{seed}"},
            "teacher": {**network, "weights": f"teachers/seed{seed}/t.safetensors"},
            "student": network,
            "plan": {"epochs": 2, "batch_size": 8},
            "model": {"optimizer": {"_target_": "SGD", "_partial_": True, "lr": 0.1}, "seed": seed},
        }
        return OmegaConf.to_container(OmegaConf.merge(made, more))

    return make


@pytest.fixture(scope="session")
def make_run(config):
    """A run in memory: `curve` is (updates, accuracy, seconds, synthesis steps)."""
    names = [*METRICS[:3], "synthesis/steps"]

    def make(summary=None, curve=(), picture=None, **options):
        rows = [dict(zip(names, each, strict=True)) for each in curve]
        results = {"summary": summary or {}, "curve": read_curve(rows), "picture": picture}
        return replace(configured("run", config(**options)), **results)

    return make


@pytest.fixture
def write_run(tmp_path, config):
    """A run's directory: `curve` is (updates, accuracy, seconds of synthesis, of distillation)."""

    def write(folder, curve=(), summary=None, picture=None, **options):
        path = tmp_path / folder
        path.mkdir(parents=True)
        OmegaConf.save(config(**options), path / "config.yaml")
        if curve:
            table = pd.DataFrame(curve, columns=METRICS)
            table["synthesis/steps"] = 10 * table["student_updates"]
            table.to_csv(path / "metrics.csv", index=False)
        if summary is not None:
            (path / "summary.json").write_text(json.dumps(summary))
        if picture is not None:
            (path / "samples.png").write_bytes(picture)
        return path

    return write


@pytest.fixture(scope="session")
def distilled():
    def make(student, teacher=0.9, **more):
        return {
            "versions": "nayer_pl 9",
            "teacher_accuracy": teacher, "student_accuracy": student, "agreement": 0.5,
            "student_updates": 20, "seconds_synthesis": 30.0, "seconds_distillation": 10.0,
            "synthesis_steps": 200, "images_banked": 1200, "images_kept": 1200, **more,
        }  # fmt: skip

    return make
