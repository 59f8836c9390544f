"""Data preparation that is killed, runs out of disk, or is started twice: the rows are the same bytes in the end."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Corpus
from tests.data_prep.programs import tree
from tests.faults.resources import may_mount

# Small buckets, so that files of some hundred kilobytes take part in all stages.
PROGRAM = """
from data_prep import partition, prepare, work
work.BUCKET_BYTES, work.VOLUME_BYTES, partition.RUN_BYTES = 60_000, 300_000, 40_000
prepare.main()
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small languages, and a large one in four files."""
    folder = tmp_path_factory.mktemp("text")
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("aeioubdgklmnprst"), size=random.integers(2, 7))) for _ in range(300)]

    def write(path: Path, documents: int) -> None:
        path.parent.mkdir(exist_ok=True)
        lines = [json.dumps({"text": " ".join(random.choice(words, size=60))}) for _ in range(documents)]
        path.write_text("\n".join(lines) + "\n")

    for language in ("fao", "isl", "nno", "nob", "dan", "swe", "fin", "est", "lav", "lit", "pol", "ces"):
        write(folder / f"{language}.jsonl", 30)
    for number in range(4):
        write(folder / "eng" / f"{number}.jsonl", 400)
    return folder


def command(text: Path, corpus: Corpus, output: Path) -> list[str | Path]:
    return [
        *(sys.executable, "-c", PROGRAM, "--input", text, "--output", output, "--tokenizer", corpus.tokenizer),
        *("--row-length", "64", "--workers", "2"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(text: Path, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    output = tmp_path_factory.mktemp("whole") / "shards"
    subprocess.run(command(text, corpus, output), check=True, capture_output=True)
    return tree(output)


def processes_below(output: Path) -> list[int]:
    """Processes that were started with this folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(output).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [process for process in found if process != os.getpid()]


@pytest.mark.long
@pytest.mark.fault(2)
def test_a_preparation_killed_at_any_moment_ends_in_the_same_bytes(
    text: Path, corpus: Corpus, whole: dict[str, bytes], tmp_path: Path, request: pytest.FixtureRequest
):
    kills = max(3, request.config.option.kills // 10)
    random = np.random.default_rng(0)
    output, number = tmp_path / "shards", 0
    while number < kills:
        process = subprocess.Popen(command(text, corpus, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(output.glob(".prepare/plans/*/plan.json")):
            time.sleep(0.02)
        time.sleep(random.uniform(0, 1.5))
        if process.poll() is not None:
            assert tree(output) == whole
            shutil.rmtree(output)
            continue
        process.kill()
        process.wait()
        number += 1
        end = time.monotonic() + 20
        while processes_below(output) and time.monotonic() < end:
            time.sleep(0.05)
        assert not processes_below(output), "workers outlive the program"
    subprocess.run(command(text, corpus, output), check=True, capture_output=True)
    assert tree(output) == whole


@pytest.mark.fault(6)
@pytest.mark.skipif(not may_mount(), reason="this user may not mount a small disk")
def test_a_full_disk_leaves_finished_streams_whole(
    text: Path, corpus: Corpus, whole: dict[str, bytes], tmp_path: Path
):
    output, copy = tmp_path / "shards", tmp_path / "copy"
    output.mkdir()
    script = """
        set -u
        mount -t tmpfs -o size=2m tmpfs "$1"; shift
        out=$1 copy=$2; shift 2
        "$@" 2> "$copy.first"; echo $?
        cp -r "$out" "$copy-full"
        mount -o remount,size=200m "$out"
        "$@" > "$copy.second" 2>&1; echo $?
        cp -r "$out" "$copy"
    """
    arguments = ["unshare", "-m", "bash", "-c", script, "bash", output, output, copy, *command(text, corpus, output)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    first, second = (int(line) for line in done.stdout.split() if line.isdecimal() and len(line) < 3)
    said = (tmp_path / "copy.first").read_text()
    assert first == 1, said
    assert "error: " in said.splitlines()[-1]
    assert "No space left on device" in said
    full = tree(tmp_path / "copy-full")
    finished = {name.rpartition("/")[0] for name in full if name.endswith("manifest.json") and "/." not in name}
    assert all(whole[name] == content for name, content in full.items() if name.rpartition("/")[0] in finished)
    assert second == 0, (tmp_path / "copy.second").read_text()
    assert tree(copy) == whole


@pytest.mark.fault(17)
def test_a_worker_that_is_killed_ends_the_run_with_one_line(
    text: Path, corpus: Corpus, whole: dict[str, bytes], tmp_path: Path
):
    output = tmp_path / "shards"
    process = subprocess.Popen(
        command(text, corpus, output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    children: list[int] = []
    while process.poll() is None and not children:
        children = [child for child in processes_below(output) if child != process.pid]
        time.sleep(0.01)
    os.kill(children[0], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "error: " in said.splitlines()[-1]
    assert not processes_below(output)
    subprocess.run(command(text, corpus, output), check=True, capture_output=True)
    assert tree(output) == whole
