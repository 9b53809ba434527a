"""Which runs belong together: replicates of a method, and methods under the same conditions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nayer_pl.report.run import Run, with_teachers

Settings = dict[str, str]

# What makes a run, in the order in which it names variants of one method.
PARTS = ("plan", "model", "prompts", "text_encoder", "bank", "data", "teacher", "student")
# Where files lie, who trained the teacher, what a seed changes, and how Hydra builds things.
ELSEWHERE = (
    "path", "cache", "cache_dir", "weights", "trained_by", "trust_code", "workers", "seed",
    "check_teacher", "_recursive_", "_convert_", "_partial_",
)  # fmt: skip
# In `model`: what stands elsewhere too.
TWICE = ("teacher", "student", "label_text", "network", "image_shape")
COUNTS = ("text_encoder.path", "student.weights")  # though it is one of ELSEWHERE
OF_THE_TRAINER = (
    "accelerator", "devices", "num_nodes", "precision", "max_epochs", "max_steps",
    "limit_train_batches",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A row of the tables: runs that differ in their seed only."""

    label: str
    runs: Sequence[Run]
    settings: Settings
    """Those that not all runs of the section share."""

    @property
    def name(self) -> str:
        """The label, and whether it needs what data-free methods do without."""
        return f"{self.label} (real images)" if self.sees_real_images else self.label

    @property
    def seeds(self) -> list[int]:
        """Of its runs."""
        return [run.seed for run in self.runs]

    @property
    def sees_real_images(self) -> bool:
        """Whether it is a yardstick rather than a data-free method."""
        return all(run.sees_real_images for run in self.runs)


@dataclass(frozen=True)
class Section:
    """Methods that teach the same student with the same teacher's architecture, on the same data.

    Data-free methods come first; among them, and among those that see real images, the most
    accurate ones.
    """

    title: str
    methods: Sequence[Method]
    shared: Settings

    @property
    def runs(self) -> list[Run]:
        """Of all methods."""
        return [run for method in self.methods for run in method.runs]

    def said_by_all(self, key: str) -> list[str]:
        """The different values of a text in the summaries, such as "machine"."""
        return sorted({str(run.summary[key]) for run in self.runs if run.summary.get(key)})


def sections(runs: Sequence[Run]) -> list[Section]:
    """Group runs by data set, teacher and student; then by method, and by what differs in it."""
    together: dict[str, list[Run]] = {}
    for run in with_teachers(runs):
        together.setdefault(title(run.config), []).append(run)
    return [_section(name, together[name]) for name in sorted(together)]


def gaps(section: Section) -> list[str]:
    """What is uneven about the seeds: means over other seeds, or over one twice, mislead."""
    every = sorted({run.seed for run in section.runs})
    found = []
    for method in section.methods:
        missing = [str(seed) for seed in every if seed not in method.seeds]
        twice = [str(seed) for seed in every if method.seeds.count(seed) > 1]
        if missing:
            found.append(f"{method.label} lacks seed {', '.join(missing)}")
        if twice:
            found.append(f"{method.label} has more than one run of seed {', '.join(twice)}")
    return found


def _section(name: str, runs: Sequence[Run]) -> Section:
    settings = {run.name: settings_of(run.config) for run in runs}
    shared = _shared(list(settings.values()))
    groups: dict[str, list[Run]] = {}
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    for method, members in by_method.items():
        for run, label in zip(
            members, _labels(method, [settings[r.name] for r in members]), strict=True
        ):
            groups.setdefault(label, []).append(run)
    methods = [
        Method(label, sorted(members, key=lambda run: run.seed), _own(settings, members, shared))
        for label, members in groups.items()
    ]
    return Section(name, sorted(methods, key=_rank), shared)


def _own(settings: Mapping[str, Settings], members: Sequence[Run], shared: Settings) -> Settings:
    return {k: v for k, v in settings[members[0].name].items() if k not in shared}


def _rank(method: Method) -> tuple[bool, float, str]:
    known = [run.student_accuracy for run in method.runs if run.student_accuracy is not None]
    return method.sees_real_images, -sum(known) / max(1, len(known)), method.label


def _labels(method: str, settings: Sequence[Settings]) -> list[str]:
    """The method's name, with the settings that tell its variants apart, for each run."""
    names = list(dict.fromkeys(name for each in settings for name in each))
    telling: dict[tuple[str | None, ...], str] = {}
    for name in names:
        values = tuple(each.get(name) for each in settings)
        if len(set(values)) > 1:
            telling.setdefault(values, name)  # one of several that change together
    return [
        ", ".join([method, *(f"{name}={each[name]}" for name in telling.values() if name in each)])
        for each in settings
    ]


def _shared(settings: Sequence[Settings]) -> Settings:
    first = settings[0]
    return {k: v for k, v in first.items() if all(each.get(k) == v for each in settings)}


def title(config: Mapping[str, Any]) -> str:
    """Data set, teacher and student."""
    names = [_network(config.get(part)) for part in ("teacher", "student")]
    return f"{config['data']['name']}, {names[0]} to {names[1]}"


def _network(node: Any) -> str:
    architecture = (node or {}).get("architecture") or {}
    target = str(architecture.get("_target_", "?")).rpartition(".")[2]
    name = architecture.get("name") or (node or {}).get("name")
    return f"{target} {name}" if name else target


def settings_of(config: Mapping[str, Any]) -> Settings:
    """What makes a run, as dotted names and texts as they would be typed."""
    found: Settings = {}
    for part in PARTS:
        found.update(_flat(config.get(part), part))
    trainer = config.get("trainer") or {}
    found.update(_flat({name: trainer.get(name) for name in OF_THE_TRAINER}, "trainer"))
    return found


def _flat(node: Any, name: str) -> Iterator[tuple[str, str]]:
    if not isinstance(node, Mapping):
        yield name, _typed(node)
        return
    for key, value in node.items():
        full = f"{name}.{key}"
        twice = name == "model" and key in TWICE
        if (key not in ELSEWHERE and not twice) or full in COUNTS:
            yield from _flat(value, full)


def _typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_typed, value))}]"
    return str(value)
