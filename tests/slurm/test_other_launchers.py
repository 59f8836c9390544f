"""Two nodes without Slurm, under the launchers that docs/operations.md names; both nodes are this machine."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmbert.launch import free_port
from tests.conftest import Corpus
from tests.faults.oracle import check_same_end
from tests.slurm.site import LONG
from tests.training_runs import prepare

ROOT = Path(__file__).parents[2]
LAUNCHERS = {
    "ours": "-m mmbert.launch --nproc 1 --nnodes 2 --node-rank {node} --master-addr 127.0.0.1 --master-port {port}",
    "torchrun": "-m torch.distributed.run --nproc-per-node 1 --nnodes 2 --node-rank {node} --master-addr 127.0.0.1 "
    "--master-port {port}",
    "composer": "-m composer.cli.launcher -n 1 --world_size 2 --node_rank {node} --base_rank {node} "
    "--master_addr 127.0.0.1 --master_port {port}",
}

pytestmark = [pytest.mark.slurm, pytest.mark.long]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_nodes_train_as_two_ranks_do(launcher: str, corpus: Corpus, uninterrupted: Path, tmp_path: Path) -> None:
    yaml, port = prepare(tmp_path / "it", corpus), free_port()
    nodes = [
        subprocess.Popen(
            [sys.executable, *LAUNCHERS[launcher].format(node=node, port=port).split(), "main.py", str(yaml), *LONG],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "NODE_RANK": str(node)},
        )
        for node in range(2)
    ]  # fmt: skip
    try:
        assert [node.wait(300) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    check_same_end(tmp_path / "it" / "runs" / "phase1", uninterrupted)
