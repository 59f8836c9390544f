"""The launcher and its ranks, seen from outside: exit statuses, messages, and that nobody is left."""
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmbert.launch import SETTINGS, LocalRanks
from mmbert.processes import die_with_parent
from tests.waiting import wait_until

START = """
import os, signal, sys, time
from mmbert.processes import die_with_parent
rank = int(os.environ["RANK"])
def say(line):
    os.write(1, f"{line}\\n".encode())  # print writes the end of a line by itself
def listen(then):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, then)
def stop(number, frame):
    say(f"rank {rank} got {number}")
    sys.exit(85)
def wait():
    say(f"rank {rank} waits")
    time.sleep(60)
def await_go():
    say(f"rank {rank} waits")
    while not os.path.exists(__file__ + ".go"):
        time.sleep(0.01)
"""
LISTEN = "die_with_parent(signal.SIGTERM); listen(stop); wait()"
# the grace as a test needs it; everything else as the program has it
LAUNCH = """
import functools, signal, sys
import mmbert.launch as program
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup, which has it ignored
program.launch = functools.partial(program.launch, grace_seconds={grace})
status = program.main()
sys.exit(status)
"""


class Launched:
    """A launcher at work on a script; its output, and whoever lives of it."""

    def __init__(self, folder: Path, script: str, options: str, grace: float, name: str = "rank") -> None:
        program = folder / f"{name}.py"
        program.write_text(START + script)
        self.stdout, self.stderr, self.mark = folder / f"{name}.out", folder / f"{name}.err", f"{folder}/{name}"
        with self.stdout.open("w") as stdout, self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH.format(grace=grace), *options.split(), str(program), "one", "--two=2"],
                stdout=stdout, stderr=stderr, env={**os.environ, "MARK": self.mark},
            )  # fmt: skip

    def await_lines(self, *lines: str) -> None:
        """Until every one of these lines is in the output."""
        wait_until(lambda: set(lines) <= set(self.stdout.read_text().splitlines()))

    def go(self) -> None:
        """Let ranks go on that wait for it."""
        Path(f"{self.mark}.py.go").touch()

    def living(self) -> list[int]:
        """The processes, of this machine, that have its mark in their environment."""
        mark, found = f"MARK={self.mark}\0".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes():  # empty for a zombie
                    found.append(int(folder.name))
            except OSError:  # it has just ended, or is not ours
                pass
        return found

    def end(self) -> tuple[int, str, str]:
        """Exit status, output and messages, once it has ended; nobody may be left."""
        status = self.process.wait(timeout=60)
        assert self.living() == []
        return status, self.stdout.read_text(), self.stderr.read_text()


Launch = Callable[..., Launched]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start launchers; what a failed test leaves of them is killed."""
    started: list[Launched] = []

    def start(script: str, options: str = "--nproc 2", grace: float = 30.0, name: str = "rank") -> Launched:
        started.append(Launched(tmp_path, script, options, grace, name))
        return started[-1]

    yield start
    for launched in started:
        for number in launched.living():
            os.kill(number, signal.SIGKILL)
        launched.process.wait(timeout=60)


@pytest.mark.fault(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=str)
def test_a_signal_reaches_every_rank_as_it_is_and_all_that_stop_end_with_85(
    launch: Launch, number: signal.Signals
) -> None:
    launched = launch(LISTEN, "--nproc 3")
    launched.await_lines("rank 0 waits", "rank 1 waits", "rank 2 waits")
    launched.process.send_signal(number)
    status, output, messages = launched.end()
    assert (status, messages) == (85, "")
    assert {f"rank {rank} got {number.value}" for rank in range(3)} <= set(output.splitlines())


def test_a_program_may_be_a_module(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import os, sys; print(os.environ['RANK'], *sys.argv[1:])")
    command = [sys.executable, "-m", "mmbert.launch", "-m", "module", "--option", "-m"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "0 --option -m\n"), result.stderr


def test_every_further_signal_is_passed_on(launch: Launch) -> None:
    launched = launch("listen(lambda number, frame: say(f'rank {rank} noted {number}')); wait()")
    launched.await_lines("rank 0 waits", "rank 1 waits")
    for number in (15, 10, 2):
        launched.process.send_signal(number)
        launched.await_lines(f"rank 0 noted {number}", f"rank 1 noted {number}")
    assert launched.process.poll() is None


def test_a_signal_after_the_last_rank_does_not_change_the_status(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = LAUNCH.replace("sys.exit", "import os; os.kill(os.getpid(), 15)\nsys.exit")
    monkeypatch.setattr(f"{__name__}.LAUNCH", late)
    status, _, messages = launch("sys.exit(85)").end()
    assert (status, messages) == (85, "")


@pytest.mark.fault(17)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=str)
@pytest.mark.parametrize("script", [LISTEN, "listen(stop); wait()"], ids=["that ask for it", "that do not"])
def test_ranks_are_told_when_the_launcher_dies(launch: Launch, script: str, number: signal.Signals) -> None:
    launched = launch(script)
    launched.await_lines("rank 0 waits", "rank 1 waits")
    launched.process.send_signal(number)
    assert launched.process.wait(timeout=60) == -number
    wait_until(lambda: launched.living() == [])
    launched.await_lines("rank 0 got 15", "rank 1 got 15")


@pytest.mark.fault(15)
def test_a_killed_rank_is_named_and_ends_the_others(launch: Launch) -> None:
    """The status is that of the rank that was killed, not of those that the launcher ended."""
    launched = launch("listen(lambda number, frame: sys.exit(7)); say(f'{os.getpid()} {rank}'); wait()", "--nproc 3")
    launched.await_lines("rank 0 waits", "rank 1 waits", "rank 2 waits")
    numbers = dict(line.split()[::-1] for line in launched.stdout.read_text().splitlines() if "waits" not in line)
    os.kill(int(numbers["1"]), signal.SIGKILL)
    status, _, messages = launched.end()
    assert status == 128 + 9
    assert messages == "launch: rank 1 was killed by signal 9 (SIGKILL: often out of memory); ending the others\n"


@pytest.mark.fault(15)
def test_of_two_that_fail_at_once_the_killed_one_is_named(launch: Launch) -> None:
    """Ranks fail when they lose another, so the one that a signal ended is the cause."""
    launched = launch("say(f'{os.getpid()} {rank}'); listen(lambda *_: sys.exit(7)); wait()")
    launched.await_lines("rank 0 waits", "rank 1 waits")
    numbers = dict(line.split()[::-1] for line in launched.stdout.read_text().splitlines() if "waits" not in line)
    launched.process.send_signal(signal.SIGSTOP)  # it finds both at one look
    os.kill(int(numbers["0"]), signal.SIGTERM)
    os.kill(int(numbers["1"]), signal.SIGKILL)
    wait_until(lambda: launched.living() == [launched.process.pid])
    launched.process.send_signal(signal.SIGCONT)
    status, _, messages = launched.end()
    assert status == 128 + 9
    assert messages.startswith("launch: rank 1 was killed by signal 9 (SIGKILL: often out of memory)")


def test_a_status_is_not_lost_where_the_parent_ignores_its_children(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a daemon may leave it: the kernel then forgets how a child ended, and subprocess says 0."""
    ignore = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    monkeypatch.setattr(f"{__name__}.LAUNCH", ignore + LAUNCH)
    assert launch("sys.exit(3)").end()[0] == 3


def test_an_error_is_seen_at_once_and_not_when_the_others_have_ended(launch: Launch) -> None:
    launched = launch("listen(signal.SIG_IGN)\nif rank == 0: wait()\nawait_go()\nassert rank == 0, 'what went wrong'")
    launched.await_lines("rank 0 waits", "rank 1 waits")
    launched.go()
    wait_until(lambda: "AssertionError: what went wrong\n" in launched.stderr.read_text())
    wait_until(lambda: "launch: rank 1 ended with exit status 1; ending the others\n" in launched.stderr.read_text())
    assert launched.process.poll() is None  # rank 0 has its grace
    for number in set(launched.living()) - {launched.process.pid}:
        os.kill(number, signal.SIGKILL)
    assert launched.end()[0] == 1


@pytest.mark.fault(15)
def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace(launch: Launch) -> None:
    launched = launch("listen(signal.SIG_IGN)\nif rank == 0: wait()\nawait_go()\nsys.exit(4)", grace=0.3)
    launched.await_lines("rank 0 waits", "rank 1 waits")
    launched.go()
    status, _, messages = launched.end()
    assert status == 4
    assert messages.splitlines() == [
        "launch: rank 1 ended with exit status 4; ending the others",
        "launch: rank 0 still runs 0.3 s after SIGTERM; sending SIGKILL",
    ]


def test_a_rank_that_does_not_stop_with_the_others_is_ended(launch: Launch) -> None:
    """After the grace by SIGTERM, then by SIGKILL; the run is saved all the same."""
    launched = launch("listen(stop if rank else signal.SIG_IGN)\nwait()", grace=0.3)
    launched.await_lines("rank 0 waits", "rank 1 waits")
    launched.process.send_signal(signal.SIGUSR1)
    status, _, messages = launched.end()
    assert status == 85
    assert messages.splitlines() == [
        "launch: rank 0 still runs 0.3 s after rank 1 stopped; sending SIGTERM",
        "launch: rank 0 still runs 0.3 s after SIGTERM; sending SIGKILL",
    ]


def test_a_failure_after_a_stop_is_not_hidden_by_it(launch: Launch) -> None:
    """Whoever sees 85 queues the run again; one that failed to save must not look like that."""
    note = "note = __file__ + '.0'\nif rank == 0: print(os.getpid(), file=open(note, 'w')); sys.exit(85)\n"
    gone = "while not os.path.exists(note) or os.path.exists('/proc/' + (open(note).read().strip() or '.')):\n"
    launched = launch(note + gone + "    time.sleep(0.01)\nsys.exit(3)")
    status, _, messages = launched.end()
    assert (status, messages) == (3, "launch: rank 1 ended with exit status 3\n")


def test_a_rank_that_finishes_early_is_no_reason_to_end_the_others(launch: Launch) -> None:
    launched = launch("time.sleep(0.4 * rank); say(f'rank {rank} is done')", "--nproc 3", grace=0.1)
    status, output, messages = launched.end()
    assert (status, messages) == (0, "")
    assert sorted(output.splitlines()) == ["rank 0 is done", "rank 1 is done", "rank 2 is done"]


def test_a_crash_in_native_code_leaves_a_stack(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONFAULTHANDLER", raising=False)
    status, _, messages = launch("os.kill(os.getpid(), signal.SIGSEGV)", "--nproc 1").end()
    assert status == 128 + signal.SIGSEGV
    assert re.search(r"Segmentation fault\n.*File .* in <module>\n", messages, re.DOTALL), messages
    assert messages.endswith("launch: rank 0 was killed by signal 11 (SIGSEGV)\n")


PRINT = """
import json
names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK MASTER_ADDR MASTER_PORT PYTHONUNBUFFERED"
names += " MALLOC_MMAP_MAX_ MALLOC_TRIM_THRESHOLD_ MALLOC_TOP_PAD_ GOMP_SPINCOUNT PYTHONFAULTHANDLER"
blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
say(json.dumps({name: os.environ[name] for name in names.split()} | {"argv": sys.argv[1:], "blocked": blocked}))
"""


def environments(launched: Launched) -> list[dict[str, str]]:
    status, output, messages = launched.end()
    assert (status, messages) == (0, "")
    return sorted(map(json.loads, output.splitlines()), key=lambda environment: int(environment["RANK"]))


def test_a_rank_gets_its_place_the_settings_and_the_arguments(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "PYTHONFAULTHANDLER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")  # the user's wins
    monkeypatch.setenv("WORLD_SIZE", "512")  # a leftover loses
    found = environments(launch(PRINT))
    port = found[0]["MASTER_PORT"]
    assert 0 < int(port) < 65536
    for rank, environment in enumerate(found):
        assert environment == {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": "2",
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "PYTHONUNBUFFERED": "1",
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": "100000000000",
            "MALLOC_TOP_PAD_": "536870912",
            "GOMP_SPINCOUNT": "77",
            "PYTHONFAULTHANDLER": "1",
            "argv": ["one", "--two=2"],
            "blocked": [],
        }


def test_two_machines_count_their_ranks_as_one_run(launch: Launch) -> None:
    place = "--nproc 2 --nnodes 2 --master-addr 10.0.0.7 --master-port 29512 --node-rank"
    nodes = [launch(PRINT, f"{place} {node}", name=f"node{node}") for node in range(2)]
    found = [environments(node) for node in nodes]
    keys = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    common = ("4", "2", "10.0.0.7", "29512")
    assert [[tuple(environment[key] for key in keys) for environment in node] for node in found] == [
        [("0", "0", "0", *common), ("1", "1", "0", *common)],
        [("2", "0", "1", *common), ("3", "1", "1", *common)],
    ]


@pytest.mark.parametrize(
    "options, words",
    [
        ("--nproc 0", "--nproc 0 must be at least 1"),
        ("--nnodes 0", "--nnodes 0 must be at least 1"),
        ("--node-rank 1", "--node-rank 1 must lie between 0 and 0"),
        ("--nnodes 2", "needs --master-addr and --master-port"),
        ("--nnodes 2 --master-addr here", "needs --master-addr and --master-port"),
        ("--master-port 70000", "--master-port 70000 must lie between 1 and 65535"),
        ("no-such.py", "no such program: no-such.py"),
    ],
)
def test_a_mistake_on_the_command_line_ends_in_one_line(launch: Launch, options: str, words: str) -> None:
    status, output, messages = launch("say('started')", options).end()
    assert (status, output) == (1, "")
    assert messages.startswith("error: ")
    assert words in messages
    assert messages.count("\n") == 1


NO_SECOND_PROCESS = """
import os, subprocess, time
class Refused(subprocess.Popen):
    def __init__(self, *arguments, env, **options):
        if env["RANK"] == "1":
            while not os.path.exists(os.environ["MARK"] + ".up"):
                time.sleep(0.01)
            raise BlockingIOError("no more processes")
        super().__init__(*arguments, env=env, **options)
subprocess.Popen = Refused
"""


def test_ranks_that_run_are_killed_when_another_cannot_be_started(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.LAUNCH", NO_SECOND_PROCESS + LAUNCH)
    launched = launch("listen(signal.SIG_IGN); open(os.environ['MARK'] + '.up', 'w'); wait()")
    assert launched.process.wait(timeout=60) == 1
    wait_until(lambda: launched.living() == [])
    assert launched.stderr.read_text() == "error: no more processes\n"


def test_a_rank_that_even_sigkill_does_not_end_is_left_to_the_kernel(capfd: pytest.CaptureFixture[str]) -> None:
    """As in a read from a dead file server: whoever waits for the launcher must not wait for that."""

    class Stuck(subprocess.Popen[bytes]):
        """Never seen to end."""

        def poll(self) -> None:
            return None

    with Stuck([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        ranks = LocalRanks({0: process}, grace_seconds=0.05)
        ranks.status, ranks.deadline = 3, 0.0
        assert ranks.wait() == 3
    assert "launch: rank 0 cannot be killed: it waits in the kernel" in capfd.readouterr().err


def test_the_launcher_imports_nothing_that_takes_time() -> None:
    script = "import sys, mmbert.launch; print(*{name.partition('.')[0] for name in sys.modules})"
    ended = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, timeout=60,
                           env={"PYTHONPATH": str(Path(die_with_parent.__code__.co_filename).parents[1])})  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    strangers = set(ended.stdout.split()) - set(sys.stdlib_module_names) - {"__main__", "__mp_main__", "mmbert"}
    assert strangers == set()


def test_make_and_the_launcher_give_a_run_the_same_settings() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    exported = dict(re.findall(r"^export (\S+) \?= (\S+)$", makefile, re.MULTILINE))
    assert exported.items() >= SETTINGS.items()
    assert exported.keys() - SETTINGS.keys() == {"TOKENIZERS_PARALLELISM"}
