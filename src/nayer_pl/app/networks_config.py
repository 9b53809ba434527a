"""What the command line adds: `teacher=NAME`, `student=NAME`, and `teacher.name=...`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hydra.core.config_store import ConfigStore

from nayer_pl.networks import Classifier, build_classifier, list_models, load_teacher


def register_networks() -> None:
    """Make every network of `list_models()` an entry of the config groups `teacher` and `student`.

    Hydra must know them before it composes a configuration; conf/teacher and conf/student hold the
    other entries.
    """
    store = ConfigStore.instance()
    for name in list_models():
        architecture = {
            "_target_": f"nayer_pl.networks.{name}",
            "num_classes": "${data.num_classes}",
            "channels": "${data.image_shape[0]}",
        }
        student = {"defaults": ["_base"], "architecture": architecture}
        teacher = {
            **student,
            "weights": f"${{paths.teachers}}/${{data.name}}_{name}.safetensors",
            "trained_by": f"model=supervised data=${{data.name}} teacher={name}",
        }
        store.store(name, student, group="student")
        store.store(name, teacher, group="teacher")


def load_external_teacher(
    architecture: Mapping[str, Any],
    weights: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trained_by: str | None = None,
    prefix: str | None = None,
    trust_code: bool = False,
    name: str | None = None,
    pretrained: bool | str = True,
    repo: str | None = None,
    source: Literal["github", "local"] = "github",
) -> Classifier:
    """`load_teacher` for a network of another package.

    The configuration has put `name`, `pretrained`, `repo` and `source` into `architecture`; they
    are options of the teacher so that they are short to type.
    """
    return load_teacher(architecture, weights, mean, std, trained_by, prefix, trust_code)


def build_external_student(
    architecture: Mapping[str, Any],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
    prefix: str | None = None,
    trust_code: bool = False,
    name: str | None = None,
) -> Classifier:
    """`build_classifier` for a network of another package; `architecture` has its `name`."""
    return build_classifier(architecture, mean, std, weights, prefix, trust_code)
