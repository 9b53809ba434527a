"""Runs in groups: the sections of a report, and the methods in each with their seeds."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nayer_pl.report.runs import Run

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


@dataclass(frozen=True)
class Method:
    """A row of the tables: runs that differ in their seed only.

    Args:
        label: the method's name, and the settings that tell it from its other variants.
        runs: in the order of seeds.
        settings: those that not all runs of the section share.

    Example:
        >>> Method("nayer", [Run("a", {"seed": 1}, {"seconds_training": 9.0})], {}).name
        'nayer (real images)'
    """

    label: str
    runs: Sequence[Run]
    settings: Settings

    @property
    def name(self) -> str:
        """The label, marked if the method needs real images."""
        return f"{self.label} (real images)" if self.uses_real_images else self.label

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs."""
        return [run.seed for run in self.runs]

    @property
    def uses_real_images(self) -> bool:
        """Whether it is a baseline rather than a data-free method."""
        return all(run.uses_real_images for run in self.runs)


@dataclass(frozen=True)
class Section:
    """Methods with the same data set and the same architectures of teacher and student.

    Args:
        title: data set, teacher and student.
        methods: data-free ones first, then baselines; the most accurate first among either.
        shared: settings that all runs have in common.

    Example:
        >>> config = {"model_name": "nayer", "seed": 0, "data": {"name": "digits"}}
        >>> (section,) = sections([Run("a", config, {})])
        >>> section.methods[0].label, section.gaps()
        ('nayer', [])
    """

    title: str
    methods: Sequence[Method]
    shared: Settings

    @property
    def runs(self) -> list[Run]:
        """The runs of all methods."""
        return [run for method in self.methods for run in method.runs]

    def texts(self, key: str) -> str:
        """The different values of a text in the summaries, such as "machine"."""
        return "; ".join(sorted({str(r.summary[key]) for r in self.runs if r.summary.get(key)}))

    def gaps(self) -> list[str]:
        """Methods without some seed or with one twice: their means are not comparable."""
        every = sorted({run.seed for run in self.runs})
        found = []
        for method in self.methods:
            missing = [str(seed) for seed in every if seed not in method.seeds]
            twice = [str(seed) for seed in every if method.seeds.count(seed) > 1]
            if missing:
                found.append(f"{method.label} lacks seed {', '.join(missing)}")
            if twice:
                found.append(f"{method.label} has more than one run of seed {', '.join(twice)}")
        return found


def sections(runs: Sequence[Run]) -> list[Section]:
    """Group runs by data set, teacher and student; then by method, and by what differs in it."""
    together = defaultdict(list)
    for run in _with_teachers(runs):
        together[_title(run.config)].append(run)
    return [_section(title, members) for title, members in sorted(together.items())]


def _section(title: str, runs: Sequence[Run]) -> Section:
    settings = [settings_of(run.config) for run in runs]
    shared = {k: v for k, v in settings[0].items() if all(s.get(k) == v for s in settings)}
    variants = defaultdict(list)
    for run, own in zip(runs, settings, strict=True):
        variants[run.method].append((run, {k: v for k, v in own.items() if k not in shared}))
    rows = defaultdict(list)
    for name, members in variants.items():
        for label, member in zip(_labels(name, [own for _, own in members]), members, strict=True):
            rows[label].append(member)
    methods = [
        Method(label, sorted((run for run, _ in members), key=lambda run: run.seed), members[0][1])
        for label, members in rows.items()
    ]
    return Section(title, sorted(methods, key=_rank), shared)


def _rank(method: Method) -> tuple[bool, float, str]:
    known = [accuracy for run in method.runs if (accuracy := run.accuracy()) is not None]
    return method.uses_real_images, -statistics.fmean(known or [0.0]), method.label


def _labels(method: str, settings: Sequence[Settings]) -> list[str]:
    """For each run the method's name, with the settings that tell its variants apart.

    Of settings that change together, the first is named. Those that only some variants have, such
    as the options of another loss, are named only if nothing else tells these variants apart.
    """
    names = dict.fromkeys(name for each in settings for name in each)
    columns = {name: tuple(each.get(name) for each in settings) for name in names}
    telling: dict[tuple[str | None, ...], str] = {}
    for name, column in columns.items():
        if len(set(column) - {None}) > 1:
            telling.setdefault(column, name)
    for name, column in columns.items():
        if _count_groups([*telling, column]) > _count_groups([*telling]):
            telling[column] = name
    return [
        ", ".join([method, *(f"{name}={each[name]}" for name in telling.values() if name in each)])
        for each in settings
    ]


def _count_groups(columns: Sequence[tuple[str | None, ...]]) -> int:
    return max(1, len(set(zip(*columns, strict=True))))


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
            yield name, _typed(value)


def _typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_typed, value))}]"
    return str(value)


def _title(config: Mapping[str, Any]) -> str:
    """Data set, teacher and student."""
    names = []
    for node in (config.get("teacher") or {}, config.get("student") or {}):
        architecture = node.get("architecture") or {}
        target = str(architecture.get("_target_", "?")).rpartition(".")[2]
        name = architecture.get("name") or node.get("name")
        names.append(f"{target} {name}" if name else target)
    return f"{config['data']['name']}, {names[0]} to {names[1]}"


def _with_teachers(runs: Sequence[Run]) -> list[Run]:
    """Give runs without a teacher the accuracy of the one that others of their kind had."""

    def teacher(run: Run) -> tuple[str, int, str]:
        weights = (run.config.get("teacher") or {}).get("weights")
        return str(run.config["data"]["name"]), run.seed, str(weights)

    known = {teacher(run): a for run in runs if (a := run.number("teacher_accuracy")) is not None}
    return [
        replace(run, summary={"teacher_accuracy": known.get(teacher(run)), **run.summary})
        for run in runs
    ]
