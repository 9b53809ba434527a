"""What a run's configuration says: data set and networks, and the settings that define the run."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

Settings = dict[str, str]

# The parts of a configuration that define a run, in the order in which they name variants.
PARTS = ("plan", "model", "prompts", "text_encoder", "bank", "data", "teacher", "student")
TRAINER_KEYS = (
    "accelerator", "devices", "num_nodes", "precision", "max_epochs", "max_steps",
    "limit_train_batches",
)  # fmt: skip
# Places of files, the teacher's training, what a seed changes, and instructions to Hydra.
IGNORED_KEYS = (
    "path", "cache", "cache_dir", "weights", "trained_by", "trust_code", "workers", "seed",
    "check_teacher", "_recursive_", "_convert_", "_partial_",
)  # fmt: skip
NOT_IGNORED = ("text_encoder.path", "student.weights")  # although their keys are
# Copies of other parts.
COPIES = (
    "model.teacher", "model.student", "model.label_text", "model.network", "model.image_shape",
)  # fmt: skip


def title_of(config: Mapping[str, Any]) -> str:
    """Data set, teacher and student."""
    networks = []
    for node in (config.get("teacher") or {}, config.get("student") or {}):
        architecture = node.get("architecture") or {}
        target = str(architecture.get("_target_", "?")).rpartition(".")[2]
        name = architecture.get("name") or node.get("name")
        networks.append(f"{target} {name}" if name else target)
    return f"{config['data']['name']}, {' to '.join(networks)}"


def settings_of(config: Mapping[str, Any]) -> Settings:
    """The settings that define a run: dotted names, and values as they would be typed."""
    trainer = config.get("trainer") or {}
    parts = {part: config.get(part) for part in PARTS}
    return dict(_flat({**parts, "trainer": {key: trainer.get(key) for key in TRAINER_KEYS}}))


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if name in COPIES or (key in IGNORED_KEYS and name not in NOT_IGNORED):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value).replace('"', "")
