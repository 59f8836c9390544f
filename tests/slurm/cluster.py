"""A Slurm of two nodes on this machine, as plain processes below one folder."""
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mmbert.launch import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n0", "n1")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MinJobAge=3600
KillWait=10
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={port0} CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=n[0-1] Default=YES MaxTime=INFINITE State=UP
"""
# cred_expire=5: a job that is queued again waits for twice this and not for two minutes


def why_not() -> str:
    """What this machine lacks for a Slurm of its own, or the empty string."""
    missing = [name for name in (*DAEMONS, "sbatch") if not program(name)]
    if missing:
        return f"no {', '.join(missing)}: `apt-get install slurm-wlm munge`, as `make slurm-test` does where it may"
    return ""


def program(name: str) -> str | None:
    """Path of a program; daemons lie where the search path of a plain user does not look."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


class Cluster:
    """Runs from its making to `stop`."""

    def __init__(self, folder: Path) -> None:
        """Start it, and come back when both nodes are idle."""
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen[bytes]] = []
        for name in ("munge", "state", "spool/n0", "spool/n1"):
            (folder / name).mkdir(parents=True)
        values = {
            "folder": folder,
            "host": socket.gethostname().partition(".")[0],
            "user": pwd.getpwuid(os.getuid()).pw_name,
            **{name: free_port() for name in ("port", "port0", "port1")},
        }
        (folder / "slurm.conf").write_text(CONF.format(**values))
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        try:
            self._start("munged", "--foreground", "--force", *(f"--{name}={folder}/munge/{name.partition('-')[0]}"
                        for name in ("key-file", "socket", "pid-file", "log-file", "seed-file")))  # fmt: skip
            wait_until(lambda: (folder / "munge" / "socket").exists())
            self._start("slurmctld", "-D", "-c")
            for node in NODES:
                self._start("slurmd", "-D", "-N", node)
            wait_until(lambda: self.idle_nodes() == len(NODES), pause=0.2)
        except BaseException:
            self.stop()
            raise

    def _start(self, name: str, *arguments: str) -> None:
        path = program(name)
        assert path
        with (self.folder / f"{name}.out").open("ab") as file:
            daemon = subprocess.Popen([path, *arguments], env=self.environment, stdout=file, stderr=file)
        self.daemons.append(daemon)

    def run(self, *command: str, variables: Mapping[str, str] | None = None) -> str:
        """What a command of Slurm's, or a script of ours in the repository's root, prints."""
        environment = {**self.environment, **(variables or {})}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def idle_nodes(self) -> int:
        """How many wait for work; none before the controller answers."""
        result = subprocess.run(["sinfo", "-hNo%T"], env=self.environment, capture_output=True, text=True)
        return result.stdout.split().count("idle")

    def stop(self) -> None:
        """End all jobs, and then all that was started."""
        if len(self.daemons) > 1:
            self.run("scancel", "--me")
            wait_until(lambda: not self.run("squeue", "-h").strip(), pause=0.5)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait(60)

    def environments(self) -> list[tuple[int, set[bytes]]]:
        """Every process that knows of this cluster, its daemons and whatever runs in its jobs, and its variables."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                variables = set((process / "environ").read_bytes().split(b"\0"))
                if f"SLURM_CONF={self.environment['SLURM_CONF']}".encode() in variables:
                    found.append((int(process.name), variables))
        return found
