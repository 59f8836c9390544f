"""Kills, a full disk and a power cut at every operation of a save: what was whole before stays so."""
import errno
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file

from mmbert import atomic, checkpoint_files
from mmbert.checkpoint import is_valid, newest_checkpoint, prune, save_checkpoint, step_folders, tidy
from tests.tiny_checkpoints import content_of, in_child, save_tiny, state_at, tiny

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.fsync", "half a file"}


def announce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise audit events where Python has none: before a file is synced, and when safetensors wrote half of it."""
    fsync = os.fsync

    def announced_fsync(descriptor: int) -> None:
        sys.audit("os.fsync", descriptor)
        fsync(descriptor)

    def save_in_halves(tensors: Any, path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        sys.audit("half a file", path)
        path.write_bytes(content)

    monkeypatch.setattr(os, "fsync", announced_fsync)
    monkeypatch.setattr(checkpoint_files, "save_file", save_in_halves)


def kill_before(number: int) -> None:
    """End this process with SIGKILL when it begins its operation `number`, from 1 on."""
    left = number

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in OPERATIONS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def killed_everywhere(template: Path, work: Callable[[Path], Any]) -> Iterator[Path]:
    """Copies of `template` in which `work` was killed before its first, second ... operation, to the last."""
    for number in range(1, 1000):
        run = shutil.copytree(template, template.with_name(f"run-{number}"), symlinks=True)

        def until_killed(number: int = number, run: Path = run) -> None:
            kill_before(number)
            work(run)

        status = in_child(until_killed)
        assert status in (0, -signal.SIGKILL)
        yield run
        if status == 0:
            assert number > 5
            return
        shutil.rmtree(run)
    raise AssertionError("it never ends")


@pytest.mark.fault(2)
def test_killed_at_any_operation_of_save_and_prune_the_old_or_the_new_one_is_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(monkeypatch)
    for step in (1, 2, 3, 4):
        save_tiny(tmp_path / "run", step, tokens=10 * step)
    (tmp_path / "run" / "step-0000000001" / "pinned").touch()
    model, optimizer = tiny(5)

    def work(run: Path) -> None:
        save_checkpoint(run, 5, model, optimizer, state_at(5, 50))
        prune(run, keep=2, keep_every=20)

    before, found = content_of(tmp_path / "run"), []
    for run in killed_everywhere(tmp_path / "run", work):
        newest = newest_checkpoint(run)
        found.append(int(newest.name[-1]))
        named = {folder.name for folder in step_folders(run)}
        assert {f"step-000000000{step}" for step in (1, 2, 4)} <= named  # pinned, milestone, kept
        assert all(is_valid(run / name) for name in named - {"step-0000000003"})  # 3 is the one that may be half gone
        after = content_of(run)
        assert all(after[path] == digest for path, digest in before.items() if "0003" not in path)
        assert tidy(run) == newest
        assert {path.name for path in run.iterdir()} == {folder.name for folder in step_folders(run)}
        save_checkpoint(run, 6, model, optimizer, state_at(6, 60))
        prune(run, keep=2, keep_every=20)
        stayed = [1, 2, 4, 5, 6] if found[-1] == 5 else [1, 2, 4, 6]
        assert [int(folder.name[-1]) for folder in step_folders(run)] == stayed[::-1]
        assert all(is_valid(folder) for folder in step_folders(run))
    assert found == sorted(found)
    assert set(found) == {4, 5}


@pytest.mark.fault(2)
def test_killed_at_any_operation_of_saving_a_step_again_its_old_or_new_content_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(monkeypatch)
    old = content_of(save_tiny(tmp_path / "run", 3, seed=1))
    new = content_of(save_tiny(tmp_path / "other", 3, seed=2))
    model, optimizer = tiny(2)
    found = []
    for run in killed_everywhere(
        tmp_path / "run", lambda run: save_checkpoint(run, 3, model, optimizer, state_at(3, 300))
    ):
        newest = tidy(run)
        assert newest == run / "step-0000000003"
        assert [path.name for path in run.iterdir()] == [newest.name]
        content = content_of(newest)
        assert content in (old, new)
        found.append(content == new)
    assert found == sorted(found)
    assert set(found) == {False, True}


@pytest.mark.fault(2)
def test_killed_at_any_operation_of_tidying_the_next_one_ends_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(monkeypatch)
    for step in (1, 2, 3, 4):
        save_tiny(tmp_path / "run", step)
    for step in (3, 4):
        os.truncate(tmp_path / "run" / f"step-000000000{step}" / "model.safetensors", 50)
    (tmp_path / "run" / "step-0000000002").rename(tmp_path / "run" / ".step-0000000002.old")
    shutil.copytree(tmp_path / "run" / "step-0000000001", tmp_path / "run" / ".step-0000000001.old")
    shutil.copytree(tmp_path / "run" / "step-0000000001", tmp_path / "run" / ".step-0000000005.partial")
    shutil.copytree(tmp_path / "run", tmp_path / "unkilled", symlinks=True)
    assert tidy(tmp_path / "unkilled") == tmp_path / "unkilled" / "step-0000000002"
    expected = content_of(tmp_path / "unkilled")
    for run in killed_everywhere(tmp_path / "run", tidy):
        assert tidy(run) == run / "step-0000000002"
        assert content_of(run) == expected


# --------------------------------------------------------------------------------------------------------- full disk
class FullDisk:
    """Fails at operation `number`, from 1 on, of all that need space; a write leaves half of its bytes behind."""

    def __init__(self, number: int) -> None:
        self.left = number

    def is_full(self) -> bool:
        self.left -= 1
        return self.left == 0

    def in_place_of(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def fail_or_do(*arguments: Any, **keywords: Any) -> Any:
            if self.is_full():
                raise OSError(errno.ENOSPC, "No space left on device")
            return operation(*arguments, **keywords)

        return fail_or_do

    def write_text(self, path: Path, text: str) -> None:
        full = self.is_full()
        with path.open("w") as file:
            file.write(text[: len(text) // 2] if full else text)
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def save_file(self, tensors: Any, path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        if self.is_full():
            os.truncate(path, path.stat().st_size // 2)
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("mkdir", "rename", "replace", "fsync", "open"):
            patch.setattr(os, name, self.in_place_of(getattr(os, name)))
        patch.setattr(Path, "write_text", lambda path, text: self.write_text(path, text))
        patch.setattr(checkpoint_files, "save_file", self.save_file)


@pytest.mark.fault(6)
@pytest.mark.parametrize("step", [3, 2], ids=["a new step", "a step again"])
def test_a_disk_that_is_full_at_any_operation_leaves_the_older_ones_whole_and_no_half_one(
    tmp_path: Path, step: int
) -> None:
    run = tmp_path / "run"
    for older in (1, 2):
        save_tiny(run, older)
    before = content_of(run)
    after = {**before, **content_of(save_tiny(tmp_path / "other", step, seed=9).parent)}
    model, optimizer = tiny(9)
    errors = []
    for number in range(1, 1000):
        disk = FullDisk(number)
        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            try:
                save_checkpoint(run, step, model, optimizer, state_at(step, 100 * step))
            except OSError as error:
                errors.append(error.errno)
        if disk.left > 0:
            break
        now = {path: kind for path, kind in content_of(run).items() if ".old" not in path}
        assert now in (before, after)  # after: only the wait for the disk, when all was in place, failed
        if now == after:
            shutil.rmtree(run)
            for older in (1, 2):
                save_tiny(run, older)
    assert set(errors) == {errno.ENOSPC}
    assert len(errors) > 15
    assert content_of(run) == after  # in the end nothing failed


@pytest.mark.fault(6)
def test_a_file_that_may_grow_no_further_is_an_error_of_the_system_and_leaves_nothing(tmp_path: Path) -> None:
    """The kernel's own refusal, at every 40th byte of the largest file, by a limit on the size of files."""
    run = tmp_path / "run"
    largest = max(path.stat().st_size for path in save_tiny(run, 1).iterdir())
    before = content_of(run)
    model, optimizer = tiny(2)

    def fill(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError) as refusal:
            save_checkpoint(run, 2, model, optimizer, state_at(2, 200))
        assert refusal.value.errno == errno.EFBIG

    for limit in range(0, largest, 40):
        assert in_child(lambda limit=limit: fill(limit)) == 0  # type: ignore[misc]
        assert content_of(run) == before
    save_checkpoint(run, 2, model, optimizer, state_at(2, 200))
    assert newest_checkpoint(run).name == "step-0000000002"


def test_a_failed_save_says_which_file_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, words in ((28, "No space left on device"), (122, "Disk quota exceeded"), (None, "worn out")):
        text = f"Error while serializing: I/O error: {words}" + (f" (os error {number})" if number else "")

        def fail(*arguments: Any, text: str = text, **keywords: Any) -> None:
            raise SafetensorError(text)

        monkeypatch.setattr(checkpoint_files, "save_file", fail)
        with pytest.raises(OSError, match=rf"(?s)({words}.*)?model.safetensors(.*{words})?") as refusal:
            save_tiny(tmp_path, 1)
        assert words in str(refusal.value)
        assert refusal.value.errno == number


# --------------------------------------------------------------------------------------------------------- power cut
@pytest.mark.fault(2)
def test_everything_is_on_disk_before_it_gets_its_name_and_the_name_before_save_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a file holds what was synced and a folder lists what it listed when it was synced."""
    happened: list[tuple[str, str]] = []

    def note(operation: str, path: Path) -> None:
        happened.append((operation, str(path.relative_to(tmp_path.parent))))

    fsync, replace = atomic.fsync, Path.replace

    def noted_fsync(path: Path) -> None:
        fsync(path)
        note("synced", path)

    def noted_replace(path: Path, target: Path) -> None:
        replace(path, target)
        note("named", target)

    monkeypatch.setattr(atomic, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    run = tmp_path / "runs" / "demo" / "phase1"
    save_tiny(run, 1)
    base = tmp_path.name
    named = happened.index(("named", f"{base}/runs/demo/phase1/step-0000000001"))
    partial = f"{base}/runs/demo/phase1/.step-0000000001.partial"
    names = ("", "/model.safetensors", "/optimizer.safetensors", "/state.json", "/manifest.json")
    assert {("synced", partial + name) for name in names} <= set(happened[:named])
    assert {("synced", base + parent) for parent in ("", "/runs", "/runs/demo")} <= set(happened[:named])  # new folders
    assert happened[named + 1 :] == [("synced", f"{base}/runs/demo/phase1")]
