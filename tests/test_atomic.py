import errno
import os
from pathlib import Path

import pytest

from mmbert import atomic
from mmbert.atomic import (
    make_folder,
    partial_folder,
    publish_files,
    publish_folder,
    remove,
    remove_leftovers,
    restore_folders,
    write_file,
)


def fail_half_way(target: Path) -> None:
    with partial_folder(target) as partial:
        (partial / "half").write_bytes(b"1")
        raise RuntimeError


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with pytest.raises(RuntimeError):
        fail_half_way(target)
    assert list((tmp_path / "deep").iterdir()) == []
    with partial_folder(target) as partial:
        (partial / "a").write_bytes(b"1")
        assert not target.exists()
        publish_folder(partial, target)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["target"]


def test_publishing_replaces_the_older_folder_as_a_whole(tmp_path: Path) -> None:
    publish_files(tmp_path / "target", {"old": b"1"})
    with partial_folder(tmp_path / "target") as partial:
        (partial / "new").write_bytes(b"2")
        publish_folder(partial, tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["new"]


@pytest.mark.parametrize("other", ["a", "b", "b/c"])
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "target"
    for _ in range(2):
        publish_files(folder, {"a": b"1"})
    path = folder / other
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"2")
    with pytest.raises(FileExistsError, match="exists with other content: remove it, or choose another output folder"):
        publish_files(folder, {"a": b"1"})
    assert path.read_bytes() == b"2"


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".target.partial").mkdir()
    (tmp_path / ".target.partial" / "torn").touch()
    with partial_folder(tmp_path / "target") as partial:
        assert list(partial.iterdir()) == []


def test_when_publishing_fails_the_older_folder_is_back_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target[1]"  # no pattern, but a name
    publish_files(target, {"old": b"1"})
    replace = Path.replace

    def fail_for_the_new_one(path: Path, to: Path) -> None:
        if path.name.endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(path, to)

    monkeypatch.setattr(Path, "replace", fail_for_the_new_one)
    with pytest.raises(OSError, match=r"No space left on device: '.*/target\[1\]'$"), partial_folder(target) as partial:
        publish_folder(partial, target)
    assert list(tmp_path.iterdir()) == [target]
    assert (target / "old").read_bytes() == b"1"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    publish_files(tmp_path / "elsewhere", {"a": b"1"})
    for number, end in enumerate((tmp_path / "elsewhere", tmp_path / "nowhere")):
        target = tmp_path / f"target-{number}"
        target.symlink_to(end)
        with partial_folder(target) as partial:
            publish_folder(partial, target)
        assert not target.is_symlink()
        assert list(target.iterdir()) == []
    assert (tmp_path / "elsewhere" / "a").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "target-0", "target-1"]


def test_what_was_moved_aside_comes_back_unless_its_successor_is_there(tmp_path: Path) -> None:
    for name in (".step-1.old", "step-2", ".step-2.old", ".other.old", ".step-3.partial"):
        publish_files(tmp_path / name, {name: b""})
    restore_folders(tmp_path, "step-*")
    names = [".other.old", ".step-2.old", ".step-3.partial", "step-1", "step-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    remove_leftovers(tmp_path, "step-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.old", "step-1", "step-2"]
    assert [path.name for path in (tmp_path / "step-1").iterdir()] == [".step-1.old"]


def test_a_new_folder_and_its_new_parents_are_on_disk_when_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(atomic, "fsync", synced.append)
    make_folder(tmp_path / "a" / "b")
    assert set(synced) == {tmp_path, tmp_path / "a"}  # the folders that list the new names
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    publish_files(tmp_path / "folder", {"a": b"1"})
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    remove(tmp_path / "link")
    remove(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_publishing_files_again_is_a_no_op_and_never_overwrites(tmp_path: Path) -> None:
    publish_files(tmp_path / "target", {"a": b"1"})
    publish_files(tmp_path / "target", {"a": b"1"})
    for other in ({"a": b"2"}, {"a": b"1", "b": b""}, {}):
        with pytest.raises(FileExistsError, match="exists with other content"):
            publish_files(tmp_path / "target", other)
    assert (tmp_path / "target" / "a").read_bytes() == b"1"


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"old")
    write_file(tmp_path / "file", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"new"}


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_file_that_cannot_be_replaced_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_file(tmp_path / "file", b"old")
    monkeypatch.setattr(os, operation, fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*/file'$"):
        write_file(tmp_path / "file", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_only_a_full_disk_is_told_with_the_name_of_what_is_written(tmp_path: Path) -> None:
    """Anything else may be of what is read for it."""
    with pytest.raises(OSError, match=r"^\[Errno 5\] \w+$"), partial_folder(tmp_path / "target"):
        raise OSError(errno.EIO, "unreadable")
