"""Are the students the same, bit for bit? SHA-256 of what short runs of every method leave.

python benchmarks/pin.py OUT.json [--root CHECKOUT] [--only nayer kd ...]
python benchmarks/pin.py --compare BEFORE.json AFTER.json

Every run is one process with one thread on the CPU, in float32 and in bfloat16, on digits and with
the plan cut short. All of them have the same teacher, which is trained first, in float32. Records
can be compared only if the same machine made them.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import load_file

BANKED = ["plan.epochs=2", "plan.kd_steps=15", "plan.rounds_per_epoch=1"]
ONLINE = ["plan.epochs=2", "plan.kd_steps=15", "plan.rounds_per_epoch=5"]
REAL = ["plan.epochs=2"]
RUNS = {
    "nayer": ["model=nayer", *BANKED],
    "nayer-onehot": ["model=nayer", "model.conditioning=onehot", *BANKED],
    "nayer-noise": ["model=nayer", "model.conditioning=noise", *BANKED],
    "fast": ["model=fast", *BANKED],
    "fast-reptile": ["model=fast", "model.meta=reptile", *BANKED],
    "cmi": ["model=cmi", "model.generator_steps=20", *BANKED],
    "deepinversion": ["model=deepinversion", "model.image_steps=20", *BANKED],
    "dafl": ["model=dafl", *ONLINE],
    "dfad": ["model=dfad", *ONLINE],
    "dfq": ["model=dfq", "plan.warmup_rounds=5", *ONLINE],
    "zskt": ["model=zskt", *ONLINE],
    "kd": ["model=kd", "plan.kd_steps=15", *REAL],
    "scratch": ["model=scratch", "plan.kd_steps=15", *REAL],
}
PRECISIONS = ("32-true", "bf16-mixed")
RENAMED = {"model=fast": "model=fast_dfkd"}  # where a checkout has no conf/model/fast.yaml


def digest(path: Path) -> str:
    """SHA-256 of the tensors of a file, whatever else it holds."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        found.update(tensor.tobytes())
    return found.hexdigest()


def run(root: Path, folder: Path, options: list[str]) -> None:
    """Run `train.py` of a checkout; its errors are printed.

    Raises:
        CalledProcessError: the run failed.
    """
    old = (root / "conf/model/fast.yaml").exists()
    words = [word if old else RENAMED.get(word, word) for word in options]
    common = ["experiment=digits", "logger=csv", "trainer.accelerator=cpu", f"run_dir={folder}"]
    subprocess.run(
        [sys.executable, "train.py", *common, *words],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "src")},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def record(root: Path, only: list[str]) -> dict[str, str]:
    """Digests by the name of the run; the teacher's is one of them."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        teacher = folder / "teacher.safetensors"
        run(
            root,
            folder / "teacher",
            ["model=supervised", "trainer.precision=32-true", f"teacher.weights={teacher}"],
        )
        found["teacher 32-true"] = digest(teacher)
        for name in only or RUNS:
            for precision in PRECISIONS:
                place = folder / f"{name}-{precision}"
                precise = f"trainer.precision={precision}"
                run(root, place, [*RUNS[name], precise, f"teacher.weights={teacher}"])
                found[f"{name} {precision}"] = digest(place / "student.safetensors")
                print(f"{name} {precision} {found[f'{name} {precision}'][:16]}", flush=True)
    return found


def main() -> None:
    """Record, or compare two records."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--only", nargs="*", default=[], choices=RUNS)
    parser.add_argument("--compare", nargs=2, type=Path)
    given = parser.parse_args()
    if given.compare:
        before, after = (json.loads(path.read_text()) for path in given.compare)
        others = [name for name in after if after[name] != before.get(name)]
        print(f"{len(after) - len(others)} of {len(after)} are equal", *others, sep="\n  ")
        sys.exit(bool(others))
    found = record(given.root.resolve(), given.only)
    given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
