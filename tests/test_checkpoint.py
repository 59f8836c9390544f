"""Checkpoints: what is saved comes back, what was changed is refused, and what need not stay goes."""
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmbert.checkpoint import (
    FILES,
    checkpoint_bytes,
    is_valid,
    load_moments,
    load_weights,
    newest_checkpoint,
    prune,
    read_state,
    save_checkpoint,
    step_folders,
    tidy,
    why_invalid,
)
from mmbert.file_contents import sha256_of
from tests.damage import flip
from tests.tiny_checkpoints import content_of, save_tiny, state_at, tiny

ALL_FILES = (*FILES, "manifest.json")


def tensors_of(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """Weights, then moments and step counts."""
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    return [*model.parameters(), *moments, *(group["step"] for group in optimizer.param_groups)]


def steps_of(run: Path) -> list[int]:
    return [int(folder.name.removeprefix("step-")) for folder in step_folders(run)]


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved, loaded = tiny(seed=0, steps=5), tiny(seed=1, steps=0)
    checkpoint = save_checkpoint(tmp_path, 5, *saved, state_at(5, 500))
    load_weights(checkpoint, loaded[0])
    load_moments(checkpoint, *loaded)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(*saved), tensors_of(*loaded), strict=True))
    assert {"optimizer_steps": {"0": 5, "1": 5}, **state_at(5, 500)} == read_state(checkpoint)
    assert all(group["lr"] == 1e-2 for group in loaded[1].param_groups)
    assert all(parameter.grad is None for parameter in loaded[0].parameters())


def test_a_checkpoint_from_before_the_first_step_gives_the_state_of_a_fresh_optimizer(tmp_path: Path) -> None:
    saved, loaded, fresh = tiny(seed=0, steps=0), tiny(seed=1, steps=0), tiny(seed=0, steps=0)
    checkpoint = save_checkpoint(tmp_path, 0, *saved, state_at(0, 0))
    load_weights(checkpoint, loaded[0])
    load_moments(checkpoint, *loaded)
    for model, optimizer in (loaded, fresh):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(*loaded), tensors_of(*fresh), strict=True))


def test_going_back_to_a_checkpoint_cures_moments_and_weights_that_are_not_finite(tmp_path: Path) -> None:
    model, optimizer = tiny(seed=0)
    checkpoint = save_checkpoint(tmp_path, 2, model, optimizer, state_at(2, 200))
    before = [tensor.clone() for tensor in tensors_of(model, optimizer)]
    for tensor in tensors_of(model, optimizer)[:-2]:
        tensor.data.fill_(torch.nan)
    load_weights(checkpoint, model)
    load_moments(checkpoint, model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(model, optimizer), strict=True))


@pytest.mark.fault(12)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("moment", [None, "exp_avg", "exp_avg_sq"])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, bad: float, moment: str | None) -> None:
    save_tiny(tmp_path, 1)
    before = content_of(tmp_path)
    model, optimizer = tiny(seed=0)
    weight = list(model.parameters())[2]
    (optimizer.state[weight][moment] if moment else weight.data)[1, 2] = bad
    with pytest.raises(ValueError, match=rf"step-0000000002 is not written: {moment or ''}\.?1.weight holds NaN"):
        save_checkpoint(tmp_path, 2, model, optimizer, state_at(2, 200))
    assert content_of(tmp_path) == before


def test_a_state_that_could_not_be_read_back_is_never_saved(tmp_path: Path) -> None:
    state = state_at(2, 200)
    del state["rows"]
    with pytest.raises(ValueError, match="has no key rows"):
        save_checkpoint(tmp_path, 2, *tiny(0), state)
    assert content_of(tmp_path) == {}


def test_tied_weights_are_saved_once_and_counted_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    model[1].weight = model[0].weight
    optimizer: Any = torch.optim.SGD(model.parameters())
    checkpoint = save_checkpoint(tmp_path, 1, model, optimizer, state_at(1, 1))
    on_disk = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert checkpoint_bytes(model) == 3 * 4 * 64 * 64
    assert 0 < on_disk - checkpoint_bytes(model) < 1000  # two headers


def test_checkpoints_are_as_readable_for_others_as_any_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    modes = {path.stat().st_mode for path in [tmp_path / "any", *save_tiny(tmp_path, 1).iterdir()]}
    assert len(modes) == 1


# ------------------------------------------------------------------------------------------------ changed afterwards
@pytest.mark.fault(10)
def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    """1,000 random ones; the manifest, which no hash protects, has its share, and may mean the same as before."""
    checkpoint = save_tiny(tmp_path, 1)
    generator = random.Random(0)
    bits = {name: 8 * (checkpoint / name).stat().st_size for name in ALL_FILES}
    for name in 250 * ALL_FILES:
        path, bit = checkpoint / name, generator.randrange(bits[name])
        before = flip(path, bit)
        if is_valid(checkpoint):
            assert name == "manifest.json"
            assert json.loads(path.read_bytes()) == json.loads(before), bit
        path.write_bytes(before)
    assert is_valid(checkpoint)


@pytest.mark.fault(9)
@pytest.mark.parametrize("name", ALL_FILES)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_torn_files_are_refused(tmp_path: Path, name: str, kept: float) -> None:
    checkpoint = save_tiny(tmp_path, 1)
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: int(kept * len(content))])
    assert name in why_invalid(checkpoint)
    (checkpoint / name).write_bytes(content + b" " * (name != "manifest.json"))
    assert is_valid(checkpoint) == (name == "manifest.json")
    (checkpoint / name).unlink()
    assert why_invalid(checkpoint) == f"{checkpoint / name} is missing"


@pytest.mark.fault(9)
@pytest.mark.parametrize("name", ALL_FILES)
def test_files_of_another_checkpoint_are_refused(tmp_path: Path, name: str) -> None:
    one, other = save_tiny(tmp_path, 1), save_tiny(tmp_path, 2)
    shutil.copy(other / name, tmp_path / "kept")
    shutil.copy(one / name, other / name)
    shutil.copy(tmp_path / "kept", one / name)
    assert not is_valid(one)
    assert not is_valid(other)


@pytest.mark.fault(9)
def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path: Path) -> None:
    renamed = save_tiny(tmp_path, 1).rename(tmp_path / "step-0000000009")
    with pytest.raises(ValueError, match=r"state.json is of step 1: the folder was renamed"):
        read_state(renamed)


@pytest.mark.fault(26)
@pytest.mark.parametrize("name", ALL_FILES)
def test_linked_files_are_refused(tmp_path: Path, name: str) -> None:
    checkpoint = save_tiny(tmp_path / "run", 1)
    target = (checkpoint / name).rename(tmp_path / "elsewhere")
    (checkpoint / name).symlink_to(target)
    assert why_invalid(checkpoint) == f"{checkpoint / name} is no plain file; copy the file itself to this place"


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    "manifest",
    [{}, {"state.json": {}}, dict.fromkeys(FILES, "0" * 64), {name: {"sha256": ""} for name in FILES}],
    ids=str,
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, manifest: dict[str, Any]) -> None:
    checkpoint = save_tiny(tmp_path, 1)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json does not give sha256 and bytes" in why_invalid(checkpoint)
    whole = json.loads((save_tiny(tmp_path, 2) / "manifest.json").read_text())
    (tmp_path / "step-0000000002" / "manifest.json").write_text(json.dumps({**whole, "pinned": whole["state.json"]}))
    assert not is_valid(tmp_path / "step-0000000002")


# --------------------------------------------------------------------------------------------------------- retention
@pytest.mark.fault(7)
def test_exactly_what_should_stay_stays_after_any_number_of_saves_and_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the rule over all checkpoints that ever were; prune knows nothing but the folder."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    model, optimizer = tiny(0)
    for seed in range(8):
        generator = random.Random(seed)
        run, keep, keep_every = tmp_path / str(seed), generator.randint(1, 4), generator.choice([None, 70, 200, 500])
        ever: list[tuple[int, int]] = []
        pinned: set[int] = set()
        step = tokens = 0
        for _ in range(25):
            step, tokens = step + generator.randint(1, 3), tokens + generator.randint(1, 150)
            save_checkpoint(run, step, model, optimizer, state_at(step, tokens))
            ever.append((step, tokens))
            prune(run, keep, keep_every)
            if generator.random() < 0.1:
                folder = generator.choice(step_folders(run))
                (folder / "pinned").touch()
                pinned.add(int(folder.name.removeprefix("step-")))
            multiples = range(keep_every, tokens + 1, keep_every) if keep_every else ()
            milestones = {min(at for at, count in ever if count >= multiple) for multiple in multiples}
            assert set(steps_of(run)) == {at for at, _ in ever[-keep:]} | pinned | milestones
            assert all(is_valid(folder) for folder in step_folders(run))


@pytest.mark.fault(7)
def test_a_removal_that_was_cut_short_is_finished_and_counts_as_none(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_tiny(tmp_path, step)
    (tmp_path / "step-0000000003" / "manifest.json").unlink()
    prune(tmp_path, 2)
    assert steps_of(tmp_path) == [4, 2]


def test_a_newer_folder_without_manifest_is_left_for_tidy(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_tiny(tmp_path, step)
    (tmp_path / "step-0000000003" / "manifest.json").unlink()
    prune(tmp_path, 1)
    assert steps_of(tmp_path) == [3, 2]


def test_a_checkpoint_whose_tokens_cannot_be_read_is_set_aside_not_lost(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_tiny(tmp_path, step)
    (tmp_path / "step-0000000001" / "state.json").write_text("{")
    (tmp_path / "step-0000000002" / "state.json").unlink()
    prune(tmp_path, 1, keep_every=10)
    names = ["broken-step-0000000001", "broken-step-0000000002", "step-0000000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_saving_a_step_again_keeps_its_pin(tmp_path: Path) -> None:
    (save_tiny(tmp_path, 1) / "pinned").touch()
    save_tiny(tmp_path, 1, seed=9)
    save_tiny(tmp_path, 2)
    prune(tmp_path, 1)
    assert steps_of(tmp_path) == [2, 1]


def test_a_checkpoint_that_is_a_link_loses_the_link_and_nothing_else(tmp_path: Path) -> None:
    save_tiny(tmp_path / "elsewhere", 1)
    save_tiny(tmp_path / "run", 2)
    (tmp_path / "run" / "step-0000000001").symlink_to(tmp_path / "elsewhere" / "step-0000000001")
    (tmp_path / "run" / "step-0000000000").symlink_to(tmp_path / "nowhere")
    assert is_valid(tmp_path / "run" / "step-0000000001")
    before = content_of(tmp_path / "elsewhere")
    prune(tmp_path / "run", 1)
    assert steps_of(tmp_path / "run") == [2]
    assert content_of(tmp_path / "elsewhere") == before


# -------------------------------------------------------------------------------------------------------------- tidy
def spoil(checkpoint: Path) -> None:
    flip(checkpoint / "model.safetensors", 8 * 200)


def test_nothing_is_there_to_tidy(tmp_path: Path) -> None:
    assert tidy(tmp_path) is None
    assert tidy(tmp_path / "new") is None
    (tmp_path / "runs" / "phase1" / "step-0000000003").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"runs holds no checkpoint; name one of the runs in it: phase1$"):
        newest_checkpoint(tmp_path / "runs")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; train that phase first"):
        newest_checkpoint(tmp_path)


@pytest.mark.fault(9)
@pytest.mark.parametrize("num_broken", [0, 1, 2])
def test_broken_checkpoints_newer_than_the_newest_whole_one_are_set_aside(
    tmp_path: Path, num_broken: int, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [save_tiny(tmp_path, step) for step in (1, 2, 3, 4)]
    for folder in [folders[0], *folders[4 - num_broken :]]:  # the oldest is broken too, and of no interest
        spoil(folder)
    before = content_of(tmp_path)
    assert newest_checkpoint(tmp_path) == tidy(tmp_path) == folders[3 - num_broken]
    aside = [folder.name for folder in folders[4 - num_broken :]]
    assert sorted(path.name for path in tmp_path.glob("broken-*")) == [f"broken-{name}" for name in aside]
    for name in aside:
        assert f"{name}/model.safetensors was changed after it was written: its sha256 does not fit" in caplog.text
    renamed = {path.removeprefix("broken-"): digest for path, digest in content_of(tmp_path).items()}
    assert renamed == before  # nothing was lost


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's, say: it is neither set aside nor passed over for an older one."""
    for step in (1, 2):
        save_tiny(tmp_path, step)

    def refuse(path: Path) -> str:
        if path.parent.name == "step-0000000002":
            raise PermissionError(13, "Permission denied", str(path))  # root may read anything
        return sha256_of(path)

    monkeypatch.setattr("mmbert.checkpoint.sha256_of", refuse)
    for look in (tidy, newest_checkpoint):
        with pytest.raises(PermissionError, match=r"step-0000000002/model\.safetensors"):
            look(tmp_path)
    assert steps_of(tmp_path) == [2, 1]


def test_a_broken_checkpoint_gets_a_free_name(tmp_path: Path) -> None:
    save_tiny(tmp_path, 1)
    for number in range(3):
        spoil(save_tiny(tmp_path, 2, seed=number))
        tidy(tmp_path)
    names = [f"broken-step-0000000002{end}" for end in ("", "-2", "-3")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "step-0000000001"]


@pytest.mark.fault(8)
def test_when_all_are_broken_none_is_touched_and_the_run_does_not_start_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        spoil(save_tiny(tmp_path, step))
    (tmp_path / ".step-0000000003.partial").mkdir()
    before = content_of(tmp_path)
    for find in (tidy, newest_checkpoint):
        with pytest.raises(ValueError, match=r"none of its 2 checkpoints is whole \(.*02/model.safetensors was"):
            find(tmp_path)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("make", ["file", "link"])
def test_a_name_that_no_folder_bears_is_a_broken_checkpoint_not_none(tmp_path: Path, make: str) -> None:
    path = tmp_path / "step-0000000007"
    path.touch() if make == "file" else path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="none of its 1 checkpoints is whole"):
        tidy(tmp_path)
    save_tiny(tmp_path, 1)
    assert tidy(tmp_path) == tmp_path / "step-0000000001"
    assert (tmp_path / "broken-step-0000000007").is_symlink() == (make == "link")


@pytest.mark.fault(2, 7)
def test_what_kills_left_goes_and_what_they_moved_aside_comes_back(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_tiny(tmp_path, step)
    before = content_of(tmp_path)
    (tmp_path / "step-0000000003").rename(tmp_path / ".step-0000000003.old")  # before its successor came
    shutil.copytree(tmp_path / "step-0000000001", tmp_path / ".step-0000000002.old")  # and after
    shutil.copytree(tmp_path / "step-0000000001", tmp_path / ".step-0000000004.partial")
    others = [tmp_path / name for name in ("lock", "ledger.jsonl", ".hidden.partial", "step-12", "step-123456789x")]
    for path in others:
        path.touch()
    assert tidy(tmp_path) == tmp_path / "step-0000000003"
    for path in others:
        path.unlink()
    assert content_of(tmp_path) == before
