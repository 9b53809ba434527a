"""A SLURM of one machine: `slurm.py sbatch|srun|sacct ...` runs every task of an array job."""

import os
import re
import subprocess
import sys
from pathlib import Path

JOB = "4242"


def sbatch(script: str) -> None:
    flags = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", Path(script).read_text()))
    last = int(re.fullmatch(r"0-(\d+)%\d+", flags["array"])[1])  # type: ignore[index]
    for element in range(last + 1):
        env = {
            "SLURM_JOB_ID": str(int(JOB) + element), "SLURM_JOB_NAME": flags["job-name"],
            "SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": str(element),
            "SLURM_NTASKS": flags["ntasks-per-node"],
            "SLURM_NTASKS_PER_NODE": flags["ntasks-per-node"],
            "SLURM_NNODES": flags["nodes"], "SLURM_JOB_NUM_NODES": flags["nodes"],
            "SLURM_JOB_NODELIST": "localhost", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0",
        }  # fmt: skip
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # or sbatch would wait
        subprocess.Popen(["bash", script], env={**os.environ, **env}, **quiet)
    print(f"Submitted batch job {JOB}")


def srun(*arguments: str) -> None:
    at = arguments.index("--output")
    pattern, program = arguments[at + 1], arguments[at + 2 :]
    pattern = pattern.replace("%A", JOB).replace("%a", os.environ["SLURM_ARRAY_TASK_ID"])
    tasks = []
    for task in range(int(os.environ["SLURM_NTASKS"])):
        env = {**os.environ, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}
        output = Path(pattern.replace("%t", str(task)))
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("w") as file:
            tasks.append(subprocess.Popen(program, env=env, stdout=file, stderr=file))
    sys.exit(max(task.wait() for task in tasks))


def sacct(*_: str) -> None:
    print("JobID|State|NodeList", *(f"{JOB}_{i}|RUNNING|localhost" for i in range(9)), sep="\n")


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "sacct": sacct}[sys.argv[1]](*sys.argv[2:])
