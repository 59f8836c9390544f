"""The scripts of slurm/ without a Slurm: what they would submit, and what a linter says of them."""
import os
import shutil
import subprocess
import sys
from pathlib import Path
from pwd import getpwuid

import pytest

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "slurm").glob("*"))
SETTINGS = """
ACCOUNT=mine PARTITION=gpus CPU_PARTITION=cpus TIME=1:00:00 NODES=${{NODES:-1}} GPUS_PER_NODE=8 CPUS_PER_NODE=64
OPTIONS=(--qos=long "--comment2=two words") INTERFACE= CACHE= LOGS={folder} CONTAINER=(env IN_CONTAINER=1)
activate() {{ export PATH={python}:$PATH; }}
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a user with a cluster.env of 8 GPUs a node."""
    (tmp_path / "cluster.env").write_text(SETTINGS.format(folder=tmp_path, python=Path(sys.executable).parent))
    without_slurm = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {**without_slurm, "CLUSTER_ENV": str(tmp_path / "cluster.env")}


@pytest.fixture
def without_slurm(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Of a machine that has no more than the scripts need, in the folder `tools`."""
    (tmp_path / "tools").mkdir()
    for name in ("bash", "env", "mkdir", "awk", "cut", "id"):
        (tmp_path / "tools" / name).symlink_to(str(shutil.which(name)))
    return {**environment, "PATH": str(tmp_path / "tools")}


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_a_dry_run_prints_the_jobs_of_the_papers_phases(environment: dict[str, str]) -> None:
    result = run({**environment, "NODES": "4"}, "slurm/all_phases.sh", "--dry-run")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.replace("'", "").splitlines()
    assert len(lines) == 5 + 1 + 6 + 6 + 1  # train, merge, convert, evaluate, report
    assert all(line.startswith("sbatch --parsable --account=mine --partition=gpus --time=1:00:00") for line in lines)
    assert all("--qos=long --comment2=two words" in line for line in lines)
    assert sum("--gpus-per-node=1 --cpus-per-task=8 slurm/one_task.sbatch" in line for line in lines) == 14
    decays = [line for line in lines if "slurm/train.sbatch yamls/phase3" in line]
    assert len(decays) == 3
    for line in decays:
        assert "--dependency=afterok:NUMBER_OF_phase2 --kill-on-invalid-dep=yes" in line
        assert "--gpus-per-node=8 --cpus-per-task=64 --nodes=4" in line


def test_a_dry_run_needs_no_slurm_and_a_submission_says_that_it_does(without_slurm: dict[str, str]) -> None:
    result = run(without_slurm, "slurm/all_phases.sh", "--dry-run")
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 5 + 1 + 6 + 6 + 1
    result = run(without_slurm, "slurm/all_phases.sh")
    assert (result.returncode, result.stdout) == (1, "")
    remedy = "submit on a login node of the cluster, or look with --dry-run"
    assert result.stderr == f"error: there is no squeue here: {remedy}\n"


def test_cluster_env_may_say_user_where_the_environment_has_none(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with open(environment["CLUSTER_ENV"], "a") as settings:
        settings.write(f"CACHE={tmp_path}/$USER-mmbert\n")
    without_user = {name: value for name, value in environment.items() if name != "USER"}
    result = run(without_user, "slurm/all_phases.sh", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / f"{getpwuid(os.getuid()).pw_name}-mmbert").is_dir()


def test_the_merge_is_one_task_behind_the_decays(environment: dict[str, str]) -> None:
    result = run(environment, "slurm/all_phases.sh", "--dry-run")
    [line] = [line for line in result.stdout.replace("'", "").splitlines() if "mmbert.merge" in line]
    assert line.endswith("--cpus-per-task=8 slurm/one_task.sbatch -m mmbert.merge yamls/merge.yaml")
    needed = ":".join(f"NUMBER_OF_{name}" for name in ("phase2", "phase3-eng", "phase3-cont", "phase3-all"))
    assert f"--dependency=afterok:{needed} " in line
    result = run(environment, "slurm/all_phases.sh", "--dry-run", "--train-only")
    assert "mmbert.merge" not in result.stdout


def test_train_outside_a_job_submits_one(environment: dict[str, str]) -> None:
    result = run(environment, "slurm/train.sbatch", "--dry-run", "yamls/phase1.yaml", "optimizer.lr=1e-3")
    assert result.stdout.count("sbatch --parsable".replace(" ", "' '")) == 1
    assert result.stdout.strip().endswith("'slurm/train.sbatch' 'yamls/phase1.yaml' 'optimizer.lr=1e-3'")


@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("optimizer.lr=1e-3",), ("--dry-run", "optimizer.lr=1e-3")])
def test_train_without_a_yaml_says_what_it_takes(environment: dict[str, str], arguments: tuple[str, ...]) -> None:
    """It would be the paper's five phases: weeks of GPUs."""
    result = run(environment, "slurm/train.sbatch", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no CONFIG; usage: slurm/train.sbatch CONFIG ")
    assert result.stderr.count("\n") == 1


def test_an_override_may_stand_before_the_yaml_that_alone_is_meant(
    without_slurm: dict[str, str], tmp_path: Path
) -> None:
    arguments = (f"run_root={tmp_path}", "yamls/phase1.yaml")
    result = run(without_slurm, "slurm/all_phases.sh", "--dry-run", "--train-only", *arguments)
    assert result.stdout.strip().endswith(f"'slurm/train.sbatch' 'yamls/phase1.yaml' 'run_root={tmp_path}'")
    assert len(result.stdout.splitlines()) == 1
    result = run(without_slurm, "slurm/status.sh", *arguments)
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["stage", "phase1", "phase1-hf", "phase1-bits"]


def test_overrides_alone_are_for_the_papers_phases(environment: dict[str, str], tmp_path: Path) -> None:
    overrides = (f"run_root={tmp_path}", "validation={rows: 3}")
    result = run(environment, "slurm/all_phases.sh", "--dry-run", "--train-only", *overrides)
    assert len(result.stdout.splitlines()) == 5, result.stderr


def test_a_job_that_is_ending_is_neither_queued_nor_gone(without_slurm: dict[str, str], tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    for name, program in (
        ("squeue", f"[ \"$3\" = \"--format=%t %A %k\" ] && cat {queue}"),
        ("sbatch", f"echo x >> {tmp_path}/submitted; echo 100"),
    ):
        (tmp_path / "tools" / name).write_text(f"#!/bin/bash\n{program}\n")
        (tmp_path / "tools" / name).chmod(0o755)
    (tmp_path / "tools" / "cat").symlink_to(str(shutil.which("cat")))
    phases = ("yamls/phase1.yaml", "yamls/phase2.yaml", f"run_root={tmp_path}/my runs")
    command = ("slurm/all_phases.sh", "--train-only", *phases)

    queue.write_text(f"PD 6 {tmp_path}/my runs/phase20\nCG 7 {tmp_path}/my runs/phase2\n")
    result = run(without_slurm, *command)
    told = "error: job 7 of phase2 is ending; run the same command again when it is gone\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", told)
    assert not (tmp_path / "submitted").exists()

    queue.write_text(f"R 7 {tmp_path}/my runs/phase1\n")
    result = run(without_slurm, *command)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["phase1: job 7 is queued already", "phase2: job 100, after 7"]


def test_a_mistake_is_told_before_anything_is_submitted(environment: dict[str, str], tmp_path: Path) -> None:
    result = run(environment, "slurm/all_phases.sh", "--dry-run", "yamls/phase1.yaml", "optimiser.lr=1e-3")
    assert result.returncode == 1
    assert "optimiser" in result.stderr
    result = run({**environment, "CLUSTER_ENV": str(tmp_path / "none")}, "slurm/all_phases.sh", "--dry-run")
    assert result.returncode == 1
    assert "cluster.env.example" in result.stderr


def test_python_is_not_that_of_the_system_where_activate_fails(environment: dict[str, str]) -> None:
    settings = Path(environment["CLUSTER_ENV"])
    text = settings.read_text().replace("activate() { ", "activate() { source none/bin/activate || return; ")
    settings.write_text(text)
    result = run(environment, "slurm/all_phases.sh", "--dry-run")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == f"error: activate, in {settings}, failed; mend it there"


def test_the_linter_of_the_shell_has_nothing_to_say() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck: `apt-get install shellcheck`, as `make slurm-test` does where it may")
    result = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
