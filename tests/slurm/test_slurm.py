"""The scripts of slurm/ on a real Slurm of two nodes, each with one rank on a CPU (gloo)."""
import json
import os
import signal
import time
from pathlib import Path

import pytest

from mmbert.checkpoint import newest_checkpoint
from mmbert.ledger import last_step, read_ledger
from mmbert.ledger_audit import audit
from mmbert.manifest import list_languages
from tests.conftest import SEED, Corpus
from tests.faults.oracle import check_same_end
from tests.slurm.cluster import Cluster
from tests.slurm.site import LONG, PATIENCE, Site
from tests.waiting import wait_until

pytestmark = pytest.mark.slurm


def test_a_chain_goes_on_after_a_time_limit_and_a_phase_that_fails_cancels_the_next(
    cluster: Cluster, corpus: Corpus, uninterrupted: Path, tmp_path: Path
) -> None:
    site = Site.make(cluster, corpus, tmp_path, is_slow=True)
    chain = ("--train-only", site.yaml("phase1"), site.yaml("phase2"), site.yaml("phase3"), *LONG)
    lost = tmp_path / "shards-128" / "train" / "invented" / "lac"
    lost.rename(tmp_path / "lac")
    first = site.submit(*chain)

    site.await_step("phase1", first["phase1"], 5)
    assert "running" in site.script("status.sh", *chain[1:])
    limit = time.strftime("%FT%T", time.localtime(time.time() + 50))
    cluster.run("scontrol", "update", f"JobId={first['phase1']}", f"EndTime={limit}")
    wait_until(lambda: site.field(first["phase1"], "Restarts") != "0", PATIENCE, pause=1)
    cluster.run("scontrol", "update", f"JobId={first['phase1']}", "TimeLimit=30")  # or a slow machine meets it again
    site.await_state(first["phase1"], "COMPLETED")
    assert site.field(first["phase1"], "Restarts") == "1"
    assert "start 1: exit status 85, first on n" in site.log("phase1", first["phase1"])
    assert "start 2: exit status 0" in site.log("phase1", first["phase1"])
    check_same_end(site.run_folder("phase1"), uninterrupted)

    site.await_state(first["phase2"], "FAILED")
    assert site.field(first["phase2"], "ExitCode") == "1:0"
    assert f"preflight: n0: {lost} does not exist" in site.log("phase2", first["phase2"])
    site.await_state(first["phase3"], "CANCELLED")

    (tmp_path / "lac").rename(lost)
    second = site.submit(*chain)
    assert second["phase1"] == "done"
    assert int(second["phase3"]) > int(second["phase2"]) > int(first["phase3"])
    queued = {phase: f"{second[phase]} is queued already" for phase in ("phase2", "phase3")}
    assert site.submit(*chain) == {"phase1": "done", **queued}
    cluster.run("scancel", second["phase2"], second["phase3"])


def test_a_site_whose_jobs_get_no_environment_trains_on_two_nodes(
    cluster: Cluster, corpus: Corpus, tmp_path: Path
) -> None:
    """As where SBATCH_EXPORT or OPTIONS say --export=NONE: srun hands on no more of it than sbatch does."""
    site = Site.make(cluster, corpus, tmp_path)
    with (tmp_path / "cluster.env").open("a") as settings:
        settings.write("OPTIONS+=(--export=CLUSTER_ENV,SLURM_CONF,PYTHONPATH)\n")  # what the test needs
    job = site.submit("--train-only", site.yaml("phase1"))["phase1"]
    site.await_state(job, "COMPLETED")
    assert last_step(site.run_folder("phase1")) is not None


@pytest.mark.long
def test_a_run_that_is_requeued_loses_a_rank_and_is_cancelled_ends_with_the_same_bits(
    cluster: Cluster, corpus: Corpus, uninterrupted: Path, tmp_path: Path
) -> None:
    site = Site.make(cluster, corpus, tmp_path, is_slow=True)
    run_folder, phase = site.run_folder("phase1"), ("--train-only", site.yaml("phase1"), *LONG)
    job = site.submit(*phase)["phase1"]
    site.await_step("phase1", job, 10)
    cluster.run("scontrol", "requeue", job)
    wait_until(lambda: "start 2: 2 nodes" in site.log("phase1", job), PATIENCE, pause=1)
    saved = last_step(run_folder)
    assert saved is not None
    assert newest_checkpoint(run_folder).name == f"step-{saved.step:010d}"  # Slurm's SIGTERM was answered

    site.await_step("phase1", job, saved.step + 10)
    os.kill(rank_on(cluster, "n1"), signal.SIGKILL)
    site.await_state(job, "FAILED")
    assert site.field(job, "ExitCode") == f"{128 + signal.SIGKILL}:0"
    assert "rank 1 was killed by signal 9" in site.log("phase1", job)
    assert "start 2: exit status 137, first on n1" in site.log("phase1", job)

    done = last_step(run_folder)
    assert done is not None
    job = site.submit(*phase)["phase1"]
    site.await_step("phase1", job, done.step + 10)
    cluster.run("scancel", job)
    site.await_state(job, "CANCELLED")
    job = site.submit(*phase)["phase1"]
    site.await_state(job, "COMPLETED")
    assert len(read_ledger(run_folder).attempts) == 4
    check_same_end(run_folder, uninterrupted)


@pytest.mark.long
def test_the_whole_chain_with_a_merge_also_where_a_phase_goes_on_with_fewer_nodes(
    cluster: Cluster, corpus: Corpus, tmp_path: Path
) -> None:
    site = Site.make(cluster, corpus, tmp_path)
    validation = f"validation={{interval: 5000, root: {tmp_path}/shards-64, source: invented, languages: [laa, lab]}}"
    site.write_merge("exponential: {run: phase3, ratio: 0.5}")
    yamls = map(site.yaml, ("phase1", "phase2", "phase3", "merge"))
    chain = (*yamls, validation, "duration=30K", "logging.interval_batches=1")
    first = site.submit(*chain)
    site.await_step("phase1", first["phase1"], 5)
    cluster.run("scancel", first["phase1"])
    site.await_state(first["report"], "CANCELLED")

    second = site.submit(*chain, nodes=1)
    site.await_state(second["report"], "COMPLETED")
    history = read_ledger(site.run_folder("phase1"))
    assert [event.values["world_size"] for event in history.events if event.name == "start"] == [2, 1]
    for phase in ("phase1", "phase2", "phase3"):
        assert audit(site.run_folder(phase)).faults == []
    for name in ("phase1", "phase2", "phase3", "merged"):
        assert (site.run_folder(name) / "hf" / "model.safetensors").is_file()
    assert json.loads((site.run_folder("merged") / "merge.json").read_text())["method"] == "exponential"
    report = json.loads((site.run_folder("report.json")).read_text())
    assert report["bits_per_byte"].keys() == {"phase1", "phase2", "phase3", "merged"}
    assert set(site.submit(*chain).values()) == {"done"}
    assert site.script("status.sh", *chain).count("100.0%") == 3


@pytest.mark.long
def test_an_array_prepares_the_rows_that_one_machine_prepares(
    cluster: Cluster, corpus: Corpus, tmp_path: Path
) -> None:
    """Two sources are submitted into one folder, one right after the other."""
    site = Site.make(cluster, corpus, tmp_path)
    options = ("--input", str(corpus.shards[64].parent / "text"), "--row-length", "64",
               "--tokenizer", str(corpus.tokenizer), "--output", str(tmp_path / "rows"),
               "--seed", str(SEED))  # fmt: skip
    for source in ("other", "invented"):
        told = site.script("data_prep.sh", *options, "--source", source, "--tasks", "2", "--memory", "1")
    site.await_state(told.split()[-1], "COMPLETED")
    made = {path.relative_to(tmp_path / "rows"): path for path in (tmp_path / "rows").glob("*/invented/*/*.json")}
    alone = {path.relative_to(corpus.shards[64]): path for path in corpus.shards[64].glob("*/invented/*/*.json")}
    assert made.keys() == alone.keys()
    assert all(made[name].read_bytes() == alone[name].read_bytes() for name in made)
    for split in ("train", "heldout"):
        languages = {source: list_languages(tmp_path / "rows", split, source) for source in ("other", "invented")}
        assert languages["other"] == languages["invented"] != []


def rank_on(cluster: Cluster, node: str) -> int:
    """The process of the rank on a node."""
    wanted = {f"SLURMD_NODENAME={node}".encode(), b"LOCAL_RANK=0"}
    for process, variables in cluster.environments():
        if wanted <= variables:
            return process
    raise AssertionError(f"there is no rank on {node}")
