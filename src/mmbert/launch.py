"""Starts the ranks of one machine and ends them together: python -m mmbert.launch --nproc 8 main.py yamls/phase1.yaml.

Exit status: 0 when every rank finished, 85 when they were asked to stop and have saved, otherwise that of the first
rank that failed, with 128 + n for one that signal n ended. SIGTERM, SIGINT and SIGUSR1 are passed on to the ranks; if
the launcher dies, however it dies, they get SIGTERM. On several machines start one launcher on each.

Composer's own launcher also starts main.py, but it dies at SIGUSR1 and leaves its ranks running, and it returns the
status of a rank that it ended itself, so that nobody can tell out of memory from a stop.
"""
import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from mmbert.command import errors_in_one_line
from mmbert.processes import STOPPED, die_with_parent
from mmbert.stop_request import ASKED_BY

GRACE_SECONDS = 15.0  # Slurm kills a job 30 s after it asked it to end

# They change no number: speed on a CPU (docs/operations.md), and a crash in native code leaves Python's stack. What the
# environment already has wins.
SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "536870912",
    "GOMP_SPINCOUNT": "2000",
    "PYTHONFAULTHANDLER": "1",
}


@dataclass(frozen=True)
class Layout:
    """The ranks of this machine among those of all, and where they meet."""

    nproc: int
    nnodes: int
    node_rank: int
    master_addr: str
    master_port: int

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> "Layout":
        """Check the command line; one machine alone finds its own address and a free port.

        Raises:
            ValueError: names the option, its value and the remedy.
        """
        for name in ("nproc", "nnodes"):
            if getattr(options, name) < 1:
                raise ValueError(f"--{name} {getattr(options, name)} must be at least 1")
        if not 0 <= options.node_rank < options.nnodes:
            raise ValueError(
                f"--node-rank {options.node_rank} must lie between 0 and {options.nnodes - 1}, for --nnodes is "
                f"{options.nnodes}"
            )
        address, port = options.master_addr, options.master_port
        if port is not None and not 0 < port < 65536:
            raise ValueError(f"--master-port {port} must lie between 1 and 65535")
        if options.nnodes == 1:
            return cls(options.nproc, 1, 0, address or "127.0.0.1", port or free_port())
        if address is None or port is None:
            raise ValueError("--nnodes above 1 needs --master-addr and --master-port: where node 0 listens")
        return cls(options.nproc, options.nnodes, options.node_rank, address, port)

    def rank(self, local_rank: int) -> int:
        """Number among all ranks."""
        return self.node_rank * self.nproc + local_rank

    def environment(self, local_rank: int) -> dict[str, str]:
        """What Composer reads in a rank, over the environment of the launcher."""
        return SETTINGS | dict(os.environ) | {
            "RANK": str(self.rank(local_rank)),
            "WORLD_SIZE": str(self.nnodes * self.nproc),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(self.nproc),
            "NODE_RANK": str(self.node_rank),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class LocalRanks:
    """Running ranks, until all have ended; signals to the launcher must be blocked, so that they wait to be taken."""

    def __init__(self, running: dict[int, subprocess.Popen[bytes]], grace_seconds: float) -> None:
        self.running, self.grace_seconds = running, grace_seconds
        self.status = 0
        self.means = [signal.SIGTERM, signal.SIGKILL]  # what those that still run get, one a deadline
        self.deadline, self.waits_since = inf, ""

    def wait(self) -> int:
        """Pass on signals, end all once one has failed or stopped, and return the exit status."""
        while self.running:
            self._pass_on()
            self._collect()
            if self.running and time.monotonic() >= self.deadline:
                self._press()
        return self.status

    def _pass_on(self) -> None:
        """Sleep until a rank has ended, a signal has come, or the deadline."""
        numbers = {*ASKED_BY, signal.SIGCHLD}
        if self.deadline == inf:
            taken: signal.struct_siginfo | None = signal.sigwaitinfo(numbers)
        else:
            taken = signal.sigtimedwait(numbers, max(0.0, self.deadline - time.monotonic()))
        if taken and taken.si_signo != signal.SIGCHLD:
            self._send(taken.si_signo)

    def _collect(self) -> None:
        """Take note of ranks that have ended; first those killed by a signal, for the others fail at losing them."""
        ended = {rank: code for rank, process in self.running.items() if (code := process.poll()) is not None}
        self.running = {rank: process for rank, process in self.running.items() if rank not in ended}
        for rank, code in sorted(ended.items(), key=lambda end: (end[1] >= 0, end[0])):
            if code == 0 or self.status not in (0, STOPPED) or signal.SIGTERM not in self.means:
                continue  # it finished, or the launcher made it end
            if code != STOPPED:
                tell(f"rank {rank} {describe(code)}" + ("; ending the others" if self.running else ""))
                self.status = code if code > 0 else 128 - code
                self.deadline, self.waits_since = time.monotonic(), ""
            elif self.status == 0:
                self.status = STOPPED
                self._give_grace(f"rank {rank} stopped")

    def _press(self) -> None:
        """At the deadline: SIGTERM, then SIGKILL, then leave them to the kernel."""
        left = "rank " + ", ".join(map(str, self.running))
        if not self.means:
            tell(f"{left} cannot be killed: it waits in the kernel, often for a file system")
            self.running = {}
            return
        number = self.means.pop(0)
        if self.waits_since:
            tell(f"{left} still runs {self.grace_seconds:g} s after {self.waits_since}; sending {number.name}")
        self._send(number)
        self._give_grace(number.name)

    def _send(self, number: int) -> None:
        for process in self.running.values():
            process.send_signal(number)

    def _give_grace(self, since: str) -> None:
        self.deadline, self.waits_since = time.monotonic() + self.grace_seconds, since


def describe(code: int) -> str:
    """How a process ended, from what `subprocess` returns."""
    if code >= 0:
        return f"ended with exit status {code}"
    name = next((number.name for number in signal.Signals if number == -code), "unnamed")
    return f"was killed by signal {-code} ({name}{': often out of memory' if name == 'SIGKILL' else ''})"


def tell(line: str) -> None:
    """One line to stderr, in one piece: the ranks write there too."""
    os.write(2, f"launch: {line}\n".encode())


def launch(command: Sequence[str], layout: Layout, grace_seconds: float = GRACE_SECONDS) -> int:
    """Run `command` once a rank, and return the exit status.

    Signals to the caller stay blocked at the end: a late one must not change the exit status.

    Args:
        grace_seconds: what ranks get to end, first after another rank's end, then after SIGTERM.

    Raises:
        OSError: a process cannot be started; those that were are killed.
    """
    launcher = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, as some parents leave it, statuses are lost
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*ASKED_BY, signal.SIGCHLD})

    def begin() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        die_with_parent(signal.SIGTERM, launcher)  # from the first instant; main.py asks again, for other launchers

    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for local_rank in range(layout.nproc):
            running[layout.rank(local_rank)] = subprocess.Popen(
                command, env=layout.environment(local_rank), preexec_fn=begin
            )
        return LocalRanks(running, grace_seconds).wait()
    except BaseException:
        for process in running.values():
            process.kill()
        raise


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of the program."""
    parser = argparse.ArgumentParser(
        prog="python -m mmbert.launch", description="Run a program once a rank, and end all ranks together."
    )
    parser.add_argument("--nproc", type=int, default=1, help="ranks on this machine, one a GPU; default 1")
    parser.add_argument("--nnodes", type=int, default=1, help="machines, each with a launcher of its own; default 1")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--master-addr", help="address of machine 0; default 127.0.0.1 for one machine")
    parser.add_argument("--master-port", type=int, help="a free port there; default any for one machine")
    parser.add_argument("-m", "--module", action="store_true", help="the program is a module, as for python -m")
    parser.add_argument("program", help="main.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the program")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    options = parse_arguments(arguments)
    with errors_in_one_line():
        if not options.module and not Path(options.program).is_file():
            raise FileNotFoundError(f"no such program: {options.program}")
        program = ["-m", options.program] if options.module else [options.program]
        return launch([sys.executable, *program, *options.arguments], Layout.from_options(options))


if __name__ == "__main__":
    sys.exit(main())
