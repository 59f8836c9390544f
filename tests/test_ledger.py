"""The ledger's file: no kill, restart or full disk makes it wrong."""
import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmbert.ledger import Event, Ledger, RunHistory, Step, StepRecord, last_saved_step, read_ledger

Line = dict[str, Any]


def record(step: int = 1, attempt: int = 1, **changed: Any) -> StepRecord:
    """A step of four rows and ten tokens."""
    whole = StepRecord(
        attempt, step, 4 * (step - 1), 4, 10 * step, (1 << 64) - step, 0.3, {"all": 0.7}, 1e-3, 5.0 / step, None,
        {"web/eng": 7, "web/fao": 3},
    )  # fmt: skip
    return replace(whole, **changed)


def step(number: int = 1, attempt: int = 1, **changed: Any) -> Step:
    """The same, as it is kept in memory."""
    return Step.of(record(number, attempt, **changed))


def test_what_is_flushed_is_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.event("start", {"step": 0, "tokens": 0, "host": "a"})
    records = [record(1), record(2, loss=None, skipped="not finite")]
    for one in records:
        ledger.step(one)
    assert not ledger.path.exists()
    ledger.flush(durable=False)
    ledger.flush(durable=True)
    assert read_ledger(tmp_path) == RunHistory(
        [Step.of(one) for one in records], [Event("start", 1, 0, {"tokens": 0, "host": "a"})]
    )


def test_every_start_is_a_new_attempt_known_from_the_last_line_alone(tmp_path: Path) -> None:
    """The head is no ledger at all, and the last line is longer than one read of the tail."""
    streams = {f"web/language-{number}": 1 for number in range(10_000)}
    line = json.dumps(asdict(record(attempt=41, streams=streams)))
    assert len(line) > 1 << 16
    (tmp_path / "ledger.jsonl").write_bytes(b"\xff no ledger\n" * 10 + line.encode() + b"\n")
    ledger = Ledger(tmp_path)
    assert ledger.attempt == 42
    ledger.step(record(attempt=42))
    ledger.flush(durable=False)
    assert Ledger(tmp_path).attempt == 43


@pytest.mark.fault(2, 30)
def test_a_kill_at_any_byte_costs_only_the_line_that_was_being_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.event("start", {"step": 0})
    for step in (1, 2):
        ledger.step(record(step))
    ledger.flush(durable=False)
    whole = ledger.path.read_bytes()
    for cut in range(len(whole) + 1):
        ledger.path.write_bytes(whole[:cut])
        lines = whole[:cut].count(b"\n")
        history = read_ledger(tmp_path)
        assert len(history.records) + len(history.events) == lines
        again = Ledger(tmp_path)
        assert again.attempt == (2 if lines else 1)
        again.event("start", {"step": max(0, lines - 1)})
        again.flush(durable=False)
        assert ledger.path.read_bytes().startswith(whole[: whole[:cut].rfind(b"\n") + 1])
        assert len(read_ledger(tmp_path).events) == (2 if lines else 1)


@pytest.mark.fault(2)
def test_blocks_that_a_power_cut_kept_from_the_disk_are_cut_off(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.step(record(1))
    ledger.flush(durable=True)
    synced = ledger.path.read_bytes()
    for lost in (b"\0" * 5000, b"\0" * 70_000, b'{"att\0\0\0\0\n{"attempt":1,"step":2}\n'):
        ledger.path.write_bytes(synced + lost)
        assert Ledger(tmp_path).attempt == 2
        assert ledger.path.read_bytes() == synced


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """A disk that is full for whatever would grow beyond `size`; Python ignores SIGXFSZ, so writes fail with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.fault(6)
@pytest.mark.parametrize("room", [0.0, 0.01, 0.5, 0.99], ids=str)
def test_a_full_disk_costs_nothing_once_there_is_room_again(tmp_path: Path, room: float) -> None:
    """There is room for a part of the line, and the disk is still full at the second try."""
    ledger = Ledger(tmp_path)
    ledger.step(record(1))
    ledger.flush(durable=False)
    before = ledger.path.read_bytes()
    ledger.step(record(2))
    for _ in range(2):
        with no_file_larger_than(int(len(before) * (1 + room))), pytest.raises(OSError) as error:
            ledger.flush(durable=True)
        assert error.value.errno == errno.EFBIG
        assert ledger.path.read_bytes() == before
    ledger.step(record(3))
    ledger.flush(durable=True)
    assert read_ledger(tmp_path).records == [step(1), step(2), step(3)]


@pytest.mark.parametrize("call", ["fsync", "close"])
def test_a_disk_that_reports_late_that_it_is_full_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Network file systems take the bytes and refuse them at fsync or close."""
    real = getattr(os, call)

    def refuse(descriptor: int) -> None:
        if call == "close":
            real(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    ledger = Ledger(tmp_path)
    ledger.step(record(1))
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError, match="No space"):
        ledger.flush(durable=call == "fsync")
    monkeypatch.undo()
    ledger.step(record(2))
    ledger.flush(durable=True)
    assert read_ledger(tmp_path).records == [step(1), step(2)]


def test_two_writers_do_not_mix_their_lines(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path), Ledger(tmp_path)
    for ledger in (one, other):
        ledger.step(record(1))
    one.flush(durable=False)
    with pytest.raises(OSError, match=r"ledger\.jsonl holds \d+ bytes .* another process changed it"):
        other.flush(durable=False)
    assert read_ledger(tmp_path).records == [step(1)]


@pytest.mark.parametrize(
    "line, fault",
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", "no JSON object"),
        (b'{"event": "start", "attempt": 1}', "the keys step are missing"),
        (b'{"event": "start", "attempt": 1, "step": -1}', "step = -1 cannot be"),
        (b'{"event": "rolled_back", "attempt": 1, "step": 9}', "to_step = None cannot be"),
        ({"more": 1}, "the keys more are missing or unknown"),
        ({"step": True}, "step = True cannot be"),
        ({"step": 1.5}, "step = 1.5 cannot be"),
        ({"tokens": 1 << 62}, "tokens = 4611686018427387904 cannot be"),
        ({"digest": 1 << 64}, "digest = 18446744073709551616 cannot be"),
        ({"streams": {"web/eng": -1}}, "streams = .* cannot be"),
        ({"taus": {"all": "1"}}, "taus = .* cannot be"),
        ({"loss": float("nan")}, "no JSON"),
    ],
    ids=str,
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes | Line, fault: str) -> None:
    content = line if isinstance(line, bytes) else json.dumps(asdict(record(2)) | line).encode()
    good = json.dumps(asdict(record(1))).encode()
    (tmp_path / "ledger.jsonl").write_bytes(b"\n".join([good, content, good, b""]))
    with pytest.raises(ValueError, match=rf"ledger\.jsonl line 2: .*{fault}.*restore the file"):
        read_ledger(tmp_path)
    (tmp_path / "ledger.jsonl").write_bytes(good + b"\n" + content + b"\n")
    with pytest.raises(ValueError, match=rf"ledger\.jsonl, last line: .*{fault}"):
        Ledger(tmp_path)
    assert (tmp_path / "ledger.jsonl").read_bytes() == good + b"\n" + content + b"\n"


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(ValueError):
        ledger.step(record(1, loss=float("nan")))
    with pytest.raises(ValueError, match="the keys step are missing"):
        ledger.event("saved", {})
    with pytest.raises(TypeError):
        ledger.step(record(1, tokens=np.int64(3)))
    ledger.flush(durable=False)
    assert ledger.path.read_bytes() == b""


@pytest.mark.fault(30)
def test_every_step_counts_once_by_its_latest_attempt(tmp_path: Path) -> None:
    again = [step(number, attempt=2) for number in (2, 3, 4)]
    history = RunHistory([step(1), step(2), step(3), *again], [])
    assert history.steps == [step(1), *again]
    assert history.repeated == [(step(2), again[0]), (step(3), again[1])]


def test_a_run_has_come_as_far_as_its_last_attempt(tmp_path: Path) -> None:
    """What was done beyond its checkpoint is to be done again, and does not count before."""
    for start, end in ((0, 5), (2, 4), (3, 3)):
        ledger = Ledger(tmp_path)
        ledger.event("start", {"step": start})
        for number in range(start + 1, end + 1):
            ledger.step(record(number, ledger.attempt, streams={"web/eng": 10**ledger.attempt}))
        ledger.flush(durable=False)
        history = read_ledger(tmp_path)
        assert [one.step for one in history.steps] == list(range(1, end + 1))
        assert all(one.step <= end for pair in history.repeated for one in pair)
    assert [one.attempt for one in history.steps] == [1, 1, 2]
    assert history.tokens_per_stream() == {"web/eng": 10 + 10 + 100}


def test_the_last_saved_step_is_known_without_a_checkpoint(tmp_path: Path) -> None:
    assert last_saved_step(tmp_path) is None
    ledger = Ledger(tmp_path)
    ledger.event("start", {"step": 0})
    ledger.flush(durable=False)
    assert last_saved_step(tmp_path) is None
    ledger.event("saved", {"step": 7})
    ledger.event("stopped", {"step": 9})
    ledger.flush(durable=False)
    assert last_saved_step(tmp_path) == 7


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ledger\.jsonl is missing"):
        read_ledger(tmp_path)


def streams_of_three_attempts(folder: Path) -> RunHistory:
    """Steps 1 to 3; then 2 and 3 again with other tokens; then 3 again. A fourth attempt begins behind it."""
    for start, end, tokens in ((0, 3, 1), (1, 3, 10), (2, 3, 100), (3, 3, 0)):
        ledger = Ledger(folder)
        ledger.event("start", {"step": start})
        for number in range(start + 1, end + 1):
            streams = {"web/eng": tokens, f"web/{number}": tokens}
            ledger.step(record(number, ledger.attempt, streams=streams))
            ledger.event("scores", {"step": number, "streams": {"web/eng": [tokens, 0.5, 1]}})
        ledger.flush(durable=False)
    return read_ledger(folder)


def test_tokens_of_a_stream_are_summed_over_each_step_once(tmp_path: Path) -> None:
    history = streams_of_three_attempts(tmp_path)
    assert history.tokens_per_stream() == {"web/eng": 111, "web/1": 1, "web/2": 10, "web/3": 100}
    assert history.tokens_per_stream(last_step=2) == {"web/eng": 11, "web/1": 1, "web/2": 10}
    assert [record.stream_tokens for record in history.steps] == [2, 20, 200]


def test_streams_stay_in_the_file_and_are_read_again(tmp_path: Path) -> None:
    history = streams_of_three_attempts(tmp_path)
    assert history.streams_of(history.steps[1]) == {"web/eng": 10, "web/2": 10}
    assert all("streams" not in event.values for event in history.events)
    assert history.streams_of(history.standing("scores")[-1]) == {"web/eng": [100, 0.5, 1]}


def test_events_that_a_later_attempt_made_again_do_not_stand(tmp_path: Path) -> None:
    standing = streams_of_three_attempts(tmp_path).standing("scores")
    assert [(event.attempt, event.step) for event in standing] == [(1, 1), (2, 2), (3, 3)]
