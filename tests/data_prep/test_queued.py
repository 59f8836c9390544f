"""Several runs of `prepare` into one folder, of which Slurm still has some to do; its programs are played here."""
import os
from pathlib import Path

import pytest

from data_prep import prepare, work
from data_prep.steps import STAGES
from tests.conftest import Corpus
from tests.data_prep.programs import arguments_of, call, tree

SBATCH = """#!/bin/sh
echo "Submitted batch job $(($(wc -l < {folder}/submitted) + 101))"
echo >> {folder}/submitted
"""
SQUEUE = '#!/bin/sh\n[ "$*" = "--noheader --format=%F" ] && cat {folder}/queue\n'


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ids of the jobs that have not ended, one a line. Arrays get 101, 103 and so on, as each has another behind it
    that gathers datatrove's figures."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, content in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (folder / name).write_text(content.format(folder=folder))
        (folder / name).chmod(0o755)
    for name in ("submitted", "queue"):
        (folder / name).touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "queue"


def plans(output: Path) -> dict[str, Path]:
    """Source -> folder of the plan that makes its streams."""
    folders = (output / work.FOLDER / "plans").iterdir()
    return {work.read_plan(folder).streams[0].source: folder for folder in folders}


def test_runs_for_several_sources_may_wait_in_the_queue_at_a_time(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: Path
):
    for output, *options in ((tmp_path / "alone",), (tmp_path / "rows", "--slurm", "main")):
        for source in ("own", "other"):
            arguments = (*arguments_of(text, corpus, output, *options), "--source", source)
            assert call(monkeypatch, prepare.main, *arguments) == 0
            queue.write_text("101\n103\n")
    waiting = plans(tmp_path / "rows")
    assert waiting.keys() == {"own", "other"}
    assert all((folder / "logs" / "rows" / "executor.pik").exists() for folder in waiting.values())
    for folder in waiting.values():
        for stage in STAGES:
            stage(folder).run(rank=0, world_size=1)
    assert tree(tmp_path / "rows") == tree(tmp_path / "alone")


def test_streams_that_jobs_are_to_make_are_made_by_no_one_else(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: Path
):
    output = tmp_path / "rows"
    arguments = arguments_of(text, corpus, output)
    assert call(monkeypatch, prepare.main, *arguments, "--slurm", "main") == 0
    queue.write_text("7\n101\n")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    for options in ([], ["--slurm", "main"], ["--seed", "5"], ["--languages", "fao"]):
        with pytest.raises(SystemExit, match=r"jobs 101 are making [13] of these streams in .*rows, such as own/fao"):
            call(monkeypatch, prepare.main, *arguments, *options)
        after = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
        assert after == before
    queue.write_text("7\n")
    (first,) = plans(output).values()
    assert call(monkeypatch, prepare.main, *arguments, "--seed", "5") == 0
    assert not first.exists()


def test_without_squeue_jobs_are_not_taken_for_ended(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: Path
):
    output = tmp_path / "rows"
    arguments = arguments_of(text, corpus, output)
    assert call(monkeypatch, prepare.main, *arguments, "--slurm", "main") == 0
    (queue.parent / "squeue").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    with pytest.raises(SystemExit, match="squeue: no controller"):
        call(monkeypatch, prepare.main, *arguments)
    (queue.parent / "squeue").unlink()
    monkeypatch.setenv("PATH", str(queue.parent))
    with pytest.raises(SystemExit, match=r"rows/.prepare/plans tells of jobs of Slurm, and there is no squeue"):
        call(monkeypatch, prepare.main, *arguments)
