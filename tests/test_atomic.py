from pathlib import Path

import pytest

from mmbert.atomic import partial_folder, publish_files, publish_folder, write_file


def fail_half_way(target: Path) -> None:
    with partial_folder(target) as partial:
        (partial / "half").write_bytes(b"1")
        raise RuntimeError


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "deep" / "target"
    with pytest.raises(RuntimeError):
        fail_half_way(target)
    assert list((tmp_path / "deep").iterdir()) == []
    with partial_folder(target) as partial:
        (partial / "a").write_bytes(b"1")
        assert not target.exists()
        publish_folder(partial, target)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["target"]


def test_publishing_replaces_the_older_folder_as_a_whole(tmp_path: Path):
    publish_files(tmp_path / "target", {"old": b"1"})
    with partial_folder(tmp_path / "target") as partial:
        (partial / "new").write_bytes(b"2")
        publish_folder(partial, tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["new"]


def test_what_a_killed_run_left_is_cleared(tmp_path: Path):
    (tmp_path / ".target.partial").mkdir()
    (tmp_path / ".target.partial" / "torn").touch()
    with partial_folder(tmp_path / "target") as partial:
        assert list(partial.iterdir()) == []


def test_publishing_files_again_is_a_no_op_and_never_overwrites(tmp_path: Path):
    publish_files(tmp_path / "target", {"a": b"1"})
    publish_files(tmp_path / "target", {"a": b"1"})
    for other in ({"a": b"2"}, {"a": b"1", "b": b""}, {}):
        with pytest.raises(FileExistsError, match="exists with other content"):
            publish_files(tmp_path / "target", other)
    assert (tmp_path / "target" / "a").read_bytes() == b"1"


def test_a_file_is_replaced_as_a_whole(tmp_path: Path):
    write_file(tmp_path / "file", b"old")
    write_file(tmp_path / "file", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"new"}
