"""Hostile and hand-made files in a checkpoint: each is refused by name, runs nothing and writes nothing."""
import io
import json
import os
import pickle
import shutil
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmbert.checkpoint import FILES, is_valid, load_moments, load_weights, newest_checkpoint, read_state
from mmbert.checkpoint_files import MAX_JSON_BYTES
from tests.faults.bad_files import vouch_for
from tests.tiny_checkpoints import content_of, in_child, save_tiny, tiny

RAN = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "ctypes.dlopen"}
WROTE = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
MARKER = "marker"  # in the folder that a case runs in


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (MARKER,)


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    torch.save({"0.weight": Evil()}, buffer)
    return buffer.getvalue()


def zip_with(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x")
    return buffer.getvalue()


def tar_with(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header and what it says is its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


EVIL: dict[str, bytes] = {
    **{f"pickle of protocol {number}": pickle.dumps(Evil(), protocol=number) for number in range(6)},
    "torch.save": torch_zip(),
    "zip that climbs": zip_with(f"../{MARKER}"),
    "absolute zip": zip_with(f"/{MARKER}"),
    "tar that climbs": tar_with(f"../../{MARKER}"),
    "nothing": b"",
    "zeros": bytes(1000),
    "text that is none": b"\xff\xfe\xfd" * 100,
    "offsets beyond the file": tensors({"0.bias": entry(0, 8)}, b""),
    "offsets far beyond the file": tensors({"0.bias": entry(2**40, 2**40 + 8)}, bytes(8)),
    "offsets backwards": tensors({"0.bias": entry(8, 0)}, bytes(8)),
    "overlapping offsets": tensors({"0.bias": entry(0, 8), "1.bias": entry(4, 12)}, bytes(12)),
    "a hole between offsets": tensors({"0.bias": entry(0, 8), "1.bias": entry(12, 20)}, bytes(20)),
    "bytes behind the tensors": tensors({"0.bias": entry(0, 8)}, bytes(8) + pickle.dumps(Evil())),
    "an endless header": tensors({"0.bias": entry(0, 8)}, bytes(8), length=2**64 - 1),
    "a gigantic header": tensors({"0.bias": entry(0, 8)}, bytes(8), length=2**33),
    "a header beyond the file": tensors({"0.bias": entry(0, 8)}, bytes(8), length=10**6),
    "a header of nothing": tensors(b""),
    "a header that is a pickle": tensors(pickle.dumps(Evil())),
    "a nested header": tensors(b'{"a":' * 10**5),
    "a size that overflows": tensors({"0.bias": entry(0, 8, (2**62, 2**62))}, bytes(8)),
    "a negative size": tensors({"0.bias": entry(0, 8, (-2,))}, bytes(8)),
    "a dtype of half bytes": tensors({"0.bias": entry(0, 1, dtype="F4")}, bytes(1)),
    "an unknown dtype": tensors({"0.bias": entry(0, 8, dtype="O")}, bytes(8)),
    "a name of many lines": tensors({"a\n\x1b[31m" * 10**4: entry(0, 8)}, bytes(8)),
    "nested lists": b"[" * 10**6,
    "nested objects": b'{"manifest":' * 10**6,
    "a closed nest": b'{"state":' + b"[" * 10**5 + b"]" * 10**5 + b"}",
    "a list": b"[]",
    "null": b"null",
    "an empty object": b"{}",
    "a number of a million digits": b'{"step":' + b"9" * 10**6 + b"}",
    "a text without end": b'{"name":"' + b"x" * 10**6,
}


def watched(folder: Path, work: Callable[[], Any]) -> dict[str, Any]:
    """Do `work` in a child in `folder`; returns its exit status, its result and its audit events that ran or wrote."""

    def report() -> None:
        events: list[str] = []

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in RAN | WROTE or writes:
                events.append(f"{event} {arguments!r:.200}")

        os.chdir(folder)
        descriptor = os.open(folder / "report", os.O_WRONLY | os.O_CREAT)
        sys.addaudithook(note)
        result = work()
        os.write(descriptor, json.dumps({"result": result, "events": events}).encode())

    status = in_child(report)
    text = (folder / "report").read_text()
    (folder / "report").unlink()
    return {"status": status, **(json.loads(text) if text else {})}


def refusals(checkpoint: Path) -> dict[str, str]:
    """Read a checkpoint in every way; what each said to it, "" where it was content."""
    model, optimizer = tiny(0)
    readers: dict[str, Callable[[], Any]] = {
        "newest": lambda: newest_checkpoint(checkpoint.parent),
        "model.safetensors": lambda: load_weights(checkpoint, model),
        "optimizer.safetensors": lambda: load_moments(checkpoint, model, optimizer),
        "state.json": lambda: read_state(checkpoint),
    }
    said = {}
    for name, read in readers.items():
        before = [parameter.clone() for parameter in model.parameters()]
        try:
            read()
            said[name] = ""
        except ValueError as error:
            said[name] = str(error)
            assert all(map(torch.equal, before, model.parameters()))
    return said


@pytest.mark.fault(26)
@pytest.mark.parametrize("case", EVIL)
def test_a_hostile_file_is_refused_by_name_and_runs_and_writes_nothing(tmp_path: Path, case: str) -> None:
    """In the place of each file, with the manifest that was written and with one that fits."""
    places = [(name, fits) for name in FILES for fits in (False, True)] + [("manifest.json", False)]
    whole = save_tiny(tmp_path / "whole", 1)
    for number, (name, fits) in enumerate(places):
        checkpoint = shutil.copytree(whole, tmp_path / str(number) / whole.name)
        (checkpoint / name).write_bytes(EVIL[case])
        if fits:
            vouch_for(checkpoint)
            assert is_valid(checkpoint)
    before = content_of(tmp_path)
    checkpoints = [tmp_path / str(number) / whole.name for number in range(len(places))]
    outcome = watched(tmp_path, lambda: [refusals(checkpoint) for checkpoint in checkpoints])
    assert outcome["status"] == 0
    assert outcome["events"] == []
    assert content_of(tmp_path) == before  # MARKER among what is not there
    for (name, fits), checkpoint, said in zip(places, checkpoints, outcome["result"], strict=True):
        for reader in {name, "newest"} - ({"newest"} if fits else {"manifest.json"}):
            assert str(checkpoint / name) in said[reader], (name, fits, reader)
        for message in said.values():
            assert message.isprintable()
            assert len(message) < 1000


def test_the_watch_sees_what_the_evil_files_would_do(tmp_path: Path) -> None:
    for case in ("pickle of protocol 0", "pickle of protocol 5"):
        outcome = watched(tmp_path, lambda case=case: pickle.loads(EVIL[case]))  # type: ignore[misc]
        assert [event.partition(" ")[0] for event in outcome["events"]] == ["pickle.find_class", "os.mkdir"]
        (tmp_path / MARKER).rmdir()
    outcome = watched(tmp_path, lambda: (tmp_path / "file").write_text("x"))
    assert outcome["events"][0].startswith("open ")


@pytest.mark.fault(26)
@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "dangling link", "device"])
def test_what_is_no_plain_file_is_refused_and_nobody_waits_for_it(tmp_path: Path, kind: str) -> None:
    """Opening a pipe waits for a writer, and /dev/zero never ends: the child would be ended by its alarm."""
    for name in FILES:
        checkpoint = save_tiny(tmp_path / name, 1)
        path = (checkpoint / name).rename(tmp_path / f"whole-{name}")
        make: dict[str, Callable[[Path], None]] = {
            "folder": Path.mkdir,
            "pipe": os.mkfifo,
            "link": lambda link, target=path: link.symlink_to(target),  # type: ignore[misc]
            "dangling link": lambda link: link.symlink_to("nowhere"),
            "device": lambda link: link.symlink_to("/dev/zero"),
        }
        make[kind](checkpoint / name)
        outcome = watched(tmp_path, lambda checkpoint=checkpoint: refusals(checkpoint))  # type: ignore[misc]
        assert outcome["status"] == 0
        for reader in ("newest", name):
            assert f"{checkpoint / name} is no plain file" in outcome["result"][reader]


@pytest.mark.fault(26)
def test_json_that_is_too_large_is_not_even_read(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path, 1)
    for name in ("state.json", "manifest.json"):
        os.truncate(checkpoint / name, MAX_JSON_BYTES + 1)  # takes no space on disk
    with pytest.raises(ValueError, match=rf"state.json holds {MAX_JSON_BYTES + 1} bytes, more than"):
        read_state(checkpoint)
    assert not is_valid(checkpoint)


WRONG: dict[str, list[Any]] = {
    "step": [None, -1, 1.0, True, "1", 2**63, 2],  # the folder is of step 1
    "rows": [None, -1, 1.5, False, "1"],
    "tokens": [None, -1, 1e9, True, "1", 10**4000],
    "seconds": [None, -1.0, True, "1", float("nan"), float("inf"), 1e300],
    "finished": [None, 0, 1, "true"],
    "callbacks": [None, [], "x"],
    "config": [None, [], "x"],
    "identity": [None, [], "x"],
    "tokens_per_stream": [None, [], {"a": -1}, {"a": 1.0}, {"a": True}, {"a": None}, {"a": {}}],
    "optimizer_steps": [None, [], {"0": -1, "1": 1}, {"0": 1.0, "1": 1}, {"0": 2**31, "1": 1}],
}


@pytest.mark.fault(26)
@pytest.mark.parametrize("key", WRONG)
def test_a_state_without_a_key_or_with_a_value_of_another_kind_is_refused(tmp_path: Path, key: str) -> None:
    checkpoint = save_tiny(tmp_path, 1)
    path = checkpoint / "state.json"
    state = read_state(checkpoint)
    for wrong in WRONG[key]:
        path.write_text(json.dumps({**state, key: wrong}))
        with pytest.raises(ValueError, match=rf"state.json.* {key}|state.json is of step 2") as refusal:
            read_state(checkpoint)
        assert len(str(refusal.value)) < 500
    del state[key]
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=rf"state.json has no key {key}"):
        read_state(checkpoint)


@pytest.mark.parametrize("steps", [{}, {"0": 1}, {"0": 1, "2": 1}, {"0": 1, "1": 1, "2": 1}], ids=str)
def test_step_counts_of_another_optimizer_are_refused(tmp_path: Path, steps: dict[str, int]) -> None:
    checkpoint = save_tiny(tmp_path, 1)
    state = read_state(checkpoint)
    (checkpoint / "state.json").write_text(json.dumps({**state, "optimizer_steps": steps}))
    with pytest.raises(ValueError, match=r"state.json: optimizer_steps has \d keys, must have one for each"):
        load_moments(checkpoint, *tiny(0, steps=0))


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    "name, tensor", [("model.safetensors", "1.weight"), ("optimizer.safetensors", "exp_avg_sq.1.weight")]
)
@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype", "nan", "inf"])
def test_tensors_that_do_not_fit_are_refused_and_change_nothing(
    tmp_path: Path, name: str, tensor: str, change: str
) -> None:
    checkpoint = save_tiny(tmp_path, 1)
    saved = load_file(checkpoint / name)
    first = saved[tensor]
    changes = {
        "missing": {},
        "extra": {tensor: first, "more": first.clone()},
        "shape": {tensor: first.T.contiguous()},
        "dtype": {tensor: first.double()},
        "nan": {tensor: first.index_fill(0, torch.tensor([1]), torch.nan)},
        "inf": {tensor: first.index_fill(0, torch.tensor([1]), -torch.inf)},
    }
    del saved[tensor]
    save_file({**saved, **changes[change]}, checkpoint / name)
    model, optimizer = tiny(0)
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    before = [value.clone() for value in [*model.parameters(), *moments]]
    message = f"{tensor} holds NaN or infinity" if change in ("nan", "inf") else "does not fit the model"
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        load_weights(checkpoint, model) if "model" in name else load_moments(checkpoint, model, optimizer)
    assert all(map(torch.equal, before, [*model.parameters(), *moments]))
