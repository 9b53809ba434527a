"""Runs in groups: the sections of a report, and the methods in each with their seeds."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nayer_pl.report.configs import Settings
from nayer_pl.report.runs import Run


@dataclass(frozen=True)
class Method:
    """A row of the tables: runs that differ in their seed only, in the order of seeds.

    The label is the method's name, with the settings that tell it from its other variants.
    """

    label: str
    runs: Sequence[Run]

    @property
    def name(self) -> str:
        """The label, marked if the method needs real images."""
        return f"{self.label} (real images)" if self.uses_real_images else self.label

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs."""
        return [run.seed for run in self.runs]

    @property
    def settings(self) -> Settings:
        """Those that not all runs of the section share."""
        return self.runs[0].settings

    @property
    def uses_real_images(self) -> bool:
        """Whether it is a baseline, whose students learn from real images."""
        return all(run.summary.get("seconds_training") for run in self.runs)


@dataclass(frozen=True)
class Section:
    """Methods with the same data set and the same architectures of teacher and student.

    Data-free ones come first, then baselines; the most accurate first among either.
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
    """Group runs by data set, teacher and student; then by method, and by what differs in it.

    A run without a teacher is compared with the one that others of its kind had.
    """
    numbers = ((run.teacher, run.numbers.get("teacher_accuracy")) for run in runs)
    teachers = {teacher: accuracy for teacher, accuracy in numbers if accuracy is not None}
    together = defaultdict(list)
    for run in runs:
        summary = {"teacher_accuracy": teachers.get(run.teacher), **run.summary}
        together[run.title].append(replace(run, summary=summary))
    return [_section(title, members) for title, members in sorted(together.items())]


def _section(title: str, runs: Sequence[Run]) -> Section:
    first, *others = (run.settings.items() for run in runs)
    shared = dict(item for item in first if all(item in each for each in others))
    variants: dict[str, list[Run]] = defaultdict(list)
    rows: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        own = {name: value for name, value in run.settings.items() if name not in shared}
        variants[run.method].append(replace(run, settings=own))
    for members in variants.values():
        telling = _telling(members)
        for run in members:
            texts = [f"{name}={run.settings[name]}" for name in telling if name in run.settings]
            rows[", ".join([run.method, *texts])].append(run)
    methods = [Method(name, sorted(rows[name], key=lambda run: run.seed)) for name in rows]
    return Section(title, sorted(methods, key=_rank), shared)


def _rank(method: Method) -> tuple[bool, float, str]:
    every = [run.numbers.get("student_accuracy") for run in method.runs]
    known = [accuracy for accuracy in every if accuracy is not None]
    return method.uses_real_images, -statistics.fmean(known or [0.0]), method.label


def _telling(runs: Sequence[Run]) -> list[str]:
    """The settings that tell the variants of a method apart.

    Of settings that change together, the first is named. Those that only some variants have, such
    as the options of another loss, are named only if nothing else tells these variants apart.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)
    columns = {name: tuple(run.settings.get(name) for run in runs) for name in names}
    telling: dict[tuple[str | None, ...], str] = {}
    for name, column in columns.items():
        if len({*column} - {None}) > 1:
            telling.setdefault(column, name)
    for name, column in columns.items():
        told_apart = len({*zip(*telling, strict=True)}) or 1
        if len({*zip(*telling, column, strict=True)}) > told_apart:
            telling[column] = name
    return list(telling.values())
