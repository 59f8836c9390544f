"""The jobs of a chain: what each needs, which are done, and the table that tells where they are."""
import json
import os
import shutil
from pathlib import Path

import pytest

from mmbert import convert_to_hf
from mmbert.checkpoint import newest_checkpoint
from mmbert.config import load_config
from mmbert.evaluation import bits_per_byte
from mmbert.evaluation.run_records import CONVERTED
from mmbert.file_contents import sha256_of
from mmbert.identity import recipe
from mmbert.ledger import last_step, read_ledger
from mmbert.merge import main as merge
from mmbert.stages import Stage, is_newer, stages
from mmbert.status import Job, progress, queued_jobs, table
from mmbert.status import main as status
from tests.conftest import PHASES, Corpus, Finished
from tests.damage import truncate
from tests.tiny_runs import save_run
from tests.training_runs import prepare

VALIDATION = "validation={interval: 5000, root: rows, source: invented, languages: [laa]}"


def yamls(folder: Path, *names: str) -> list[str]:
    return [str(folder / f"{name}.yaml") for name in names]


@pytest.fixture
def untrained(corpus: Corpus, tmp_path: Path) -> Path:
    return prepare(tmp_path / "it", corpus).parent


def test_each_phase_waits_for_its_parent_and_what_reads_a_model_for_the_model(untrained: Path) -> None:
    needs = {stage.name: stage.needs for stage in stages(yamls(untrained, *PHASES), [VALIDATION])}
    assert needs == {
        "phase1": (), "phase2": ("phase1",), "phase3": ("phase2",),
        "phase1-hf": ("phase1",), "phase1-bits": ("phase1-hf",),
        "phase2-hf": ("phase2",), "phase2-bits": ("phase2-hf",),
        "phase3-hf": ("phase3",), "phase3-bits": ("phase3-hf",),
        "report": ("phase1-bits", "phase2-bits", "phase3-bits"),
    }  # fmt: skip


def test_the_papers_decays_all_go_on_from_phase_2() -> None:
    names = ("phase1", "phase2", "phase3-eng", "phase3-cont", "phase3-all")
    found = stages([f"yamls/{name}.yaml" for name in names], train_only=True)
    assert [stage.needs for stage in found] == [(), ("phase1",), *[("phase2",)] * 3]
    assert not any(stage.is_done for stage in found)


def write_merge(folder: Path, method: str) -> str:
    (folder / "merge.yaml").write_text(f"name: merged\nrun_root: {folder / 'runs'}\n{method}\n")
    return str(folder / "merge.yaml")


def test_the_papers_merge_waits_for_the_decays_and_is_converted_and_evaluated_as_a_phase() -> None:
    names = ("phase1", "phase2", "phase3-eng", "phase3-cont", "phase3-all", "merge")
    found = {stage.name: stage for stage in stages([f"yamls/{name}.yaml" for name in names], ["run_root=runs/x"])}
    merged = found["merged"]
    assert merged.needs == ("phase2", "phase3-eng", "phase3-cont", "phase3-all")
    assert merged.arguments == ("-m", "mmbert.merge", "yamls/merge.yaml", "run_root=runs/x")
    assert found["merged-hf"].needs == ("merged",)
    assert found["merged-bits"].needs == ("merged-hf",)
    assert "merged-bits" in found["report"].needs
    assert found["report"].arguments[-3] == "merged"


def test_to_train_only_merges_nothing(untrained: Path) -> None:
    path = write_merge(untrained, "exponential: {run: phase3, ratio: 0.5}")
    assert [stage.name for stage in stages([*yamls(untrained, *PHASES), path], train_only=True)] == list(PHASES)


def test_a_merge_takes_the_overrides_that_it_has_and_no_others_alone(untrained: Path) -> None:
    path = write_merge(untrained, "exponential: {run: phase1, ratio: 0.5}")
    chain = {stage.name: stage for stage in stages([*yamls(untrained, "phase1"), path], ["duration=9K", VALIDATION])}
    assert chain["merged"].arguments == ("-m", "mmbert.merge", path, VALIDATION)
    with pytest.raises(ValueError, match="duration=9K: a merge has no such key; leave it out"):
        stages([path], ["duration=9K"])


def test_a_merge_of_a_run_that_is_nowhere_is_refused(untrained: Path) -> None:
    runs = "{phase2: 1, phase4/step-0000000001: 1}"
    path = write_merge(untrained, f"ties: {{base: phase1, runs: {runs}, density: 1, scale: 1}}")
    wanted = "phase4/step-0000000001, which it merges, is not there; name the YAML of phase4 before it"
    with pytest.raises(ValueError, match=wanted):
        stages([*yamls(untrained, *PHASES), path])


def test_a_merge_of_a_run_that_still_runs_is_refused_but_not_of_a_checkpoint_of_it(
    corpus: Corpus, untrained: Path
) -> None:
    save_run(untrained / "runs", "phase1", 0, corpus.tokenizer)
    save_run(untrained / "runs", "phase2", 1, corpus.tokenizer)
    save_run(untrained / "runs", "phase3", 2, corpus.tokenizer, finished=False)
    method = "ties: {base: phase1, runs: {phase2: 1, phase3: 1}, density: 1, scale: 1}"
    with pytest.raises(ValueError, match="phase3, which it merges, has not run to its end; name the YAML of phase3"):
        stages([write_merge(untrained, method)])
    path = write_merge(untrained, method.replace("phase3", "phase3/step-0000000008"))
    assert stages([path])[0].needs == ()


def test_a_phase_may_go_on_from_a_merge(untrained: Path) -> None:
    path = write_merge(untrained, "exponential: {run: phase2, ratio: 0.5}")
    (untrained / "more.yaml").write_text("extends: [phase3.yaml]\nname: more\nparent: merged\n")
    chain = [*yamls(untrained, "phase1", "phase2"), path, *yamls(untrained, "more")]
    assert {stage.name: stage.needs for stage in stages(chain)}["more"] == ("merged",)
    with pytest.raises(ValueError, match="its parent merged has not run"):
        stages(chain, train_only=True)


def test_a_merge_is_done_until_a_run_of_it_changes(corpus: Corpus, tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        save_run(tmp_path / "runs", name, seed, corpus.tokenizer, config={"parent": "base"})
    path = write_merge(tmp_path, "ties: {base: base, runs: {a: 1, b: 1}, density: 1, scale: 1}")

    def states() -> list[bool]:
        return [stage.is_done for stage in stages([path])]

    assert states() == [False, False]
    merge([path])
    assert states() == [True, False]
    lines = table(stages([path]), {}, {}).splitlines()
    assert [line.split() for line in lines[1:]] == [["merged", "done", "-"], ["merged-hf", "not", "queued", "-"]]
    other = write_merge(tmp_path, "ties: {base: base, runs: {a: 1, b: 1}, density: 0.5, scale: 1}")
    with pytest.raises(ValueError, match=r"merged from other inputs or settings: settings was .*'density': 0"):
        stages([other])
    write_merge(tmp_path, "ties: {base: base, runs: {a: 1, b: 1}, density: 1, scale: 1}")
    save_run(tmp_path / "runs", "b", 7, corpus.tokenizer, config={"parent": "base"})
    with pytest.raises(ValueError, match=r"merged from other inputs .*: b/step-0000000008 was changed; give"):
        states()
    save_run(tmp_path / "runs", "b", 7, corpus.tokenizer, finished=False)
    with pytest.raises(ValueError, match="b, which it merges, has not run to its end"):
        states()
    (tmp_path / "runs" / "merged" / "merge.json").unlink()
    save_run(tmp_path / "runs", "b", 2, corpus.tokenizer, config={"parent": "base"})
    with pytest.raises(FileExistsError, match="merged exists and is no merge; give this merge another `name`"):
        states()


def test_the_status_of_a_chain_with_a_merge_tells_it_as_what_reads_a_model(
    untrained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_merge(untrained, "exponential: {run: phase1, ratio: 0.5}")
    monkeypatch.setattr("sys.argv", ["status", *yamls(untrained, "phase1"), path])
    monkeypatch.setattr("mmbert.status.queued_jobs", dict)
    status()
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [[name, "not", "queued"] for name in ("phase1", "merged", "phase1-hf", "merged-hf")]


def test_a_slurm_that_does_not_answer_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\nprintf 'no controller\\nfatal\\n' >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(OSError, match=r"^squeue: no controller fatal$"):
        queued_jobs()


def test_stages_stand_behind_what_they_need(untrained: Path) -> None:
    seen: set[str] = set()
    for stage in stages(yamls(untrained, *PHASES), [VALIDATION]):
        assert set(stage.needs) <= seen
        seen.add(stage.name)


def test_as_much_is_evaluated_as_the_validation_reads(untrained: Path) -> None:
    for rows, expected in (("", ()), (", rows: 3", ("--rows", "3"))):
        *_, bits = stages(yamls(untrained, "phase1"), [VALIDATION.replace("}", rows + "}")])
        assert bits.name == "phase1-bits"
        place = bits.arguments.index("--source") + 2
        assert bits.arguments[place : place + len(expected) + 1] == (*expected, "--output")


def test_one_evaluation_has_nothing_to_be_compared_with_and_no_report(untrained: Path) -> None:
    names = [stage.name for stage in stages(yamls(untrained, "phase1"), [VALIDATION])]
    assert names == ["phase1", "phase1-hf", "phase1-bits"]


def test_held_out_rows_in_an_object_store_are_refused_before_anything_is_queued(untrained: Path) -> None:
    remote = [VALIDATION.replace("rows,", "s3://bucket/rows,"), f"data.cache={untrained / 'cache'}"]
    with pytest.raises(ValueError, match=r"phase1: validation.root = s3://bucket/rows .* or give --train-only"):
        stages(yamls(untrained, "phase1"), remote)
    assert [stage.name for stage in stages(yamls(untrained, "phase1"), remote, train_only=True)] == ["phase1"]


@pytest.mark.parametrize("change", ["rows: 3", "root: others", "source: others"])
def test_phases_that_are_evaluated_on_different_text_are_refused_before_anything_is_queued(
    untrained: Path, change: str
) -> None:
    (untrained / "other.yaml").write_text(f"extends: [phase2.yaml]\nvalidation: {{{change}}}\n")
    for name in ("phase1", "phase2"):
        with (untrained / f"{name}.yaml").open("a") as file:
            file.write(f"validation: {VALIDATION.partition('=')[2]}\n")
    chain = yamls(untrained, "phase1", "other")
    with pytest.raises(ValueError, match=rf"^validation\.{change[:4]}.* of phase2 is .* in phase1.*or --train-only$"):
        stages(chain)
    assert len(stages(chain, train_only=True)) == 2
    assert stages(chain, ["validation={root: rows, source: invented, rows: 5}"])[-1].name == "report"


def test_without_validation_nothing_is_evaluated(untrained: Path) -> None:
    assert [stage.name for stage in stages(yamls(untrained, "phase1"))] == ["phase1", "phase1-hf"]


def test_a_phase_whose_parent_is_nowhere_is_refused(untrained: Path) -> None:
    with pytest.raises(ValueError, match="parent phase1 has not run to its end; name the YAML of phase1 before it"):
        stages(yamls(untrained, "phase2", "phase1"))


def test_a_phase_whose_parent_still_runs_is_refused(corpus: Corpus, untrained: Path) -> None:
    save_run(untrained / "runs", "phase1", 0, corpus.tokenizer, finished=False)
    with pytest.raises(ValueError, match="parent phase1 has not run to its end; name the YAML of phase1 before it"):
        stages(yamls(untrained, "phase2"))
    save_run(untrained / "runs", "phase1", 0, corpus.tokenizer)
    assert [stage.needs for stage in stages(yamls(untrained, "phase2"), train_only=True)] == [()]


def begin(folder: Path, name: str, corpus: Corpus, steps: tuple[int, ...] = (8,)) -> Path:
    """A phase that has trained as its YAML says, and is not finished."""
    run_folder = save_run(folder / "runs", name, 0, corpus.tokenizer, steps, finished=False)
    for path in run_folder.glob("step-*/state.json"):
        state = json.loads(path.read_text())
        state["identity"] |= recipe(load_config(folder / f"{name}.yaml"))
        path.write_text(json.dumps(state))
    return run_folder


def test_a_phase_that_has_begun_is_refused_with_another_recipe_before_anything_is_queued(
    corpus: Corpus, untrained: Path
) -> None:
    run_folder, free = begin(untrained, "phase1", corpus, (4, 8)), ["data.num_workers=1", "max_minutes=5"]
    assert not stages(yamls(untrained, "phase1"), free, train_only=True)[0].is_done
    told = r"phase1 was trained with another recipe: optimizer\.lr was 0\.003, is 0\.004; restore it"
    with pytest.raises(ValueError, match=told):
        stages(yamls(untrained, "phase1"), ["optimizer.lr=4e-3"], train_only=True)
    truncate(run_folder / "step-0000000008" / "state.json", 0.5)  # training goes on from the one before
    with pytest.raises(ValueError, match=told):
        stages(yamls(untrained, "phase1"), ["optimizer.lr=4e-3"], train_only=True)
    truncate(run_folder / "step-0000000004" / "state.json", 0.5)  # of which it will say so
    assert not stages(yamls(untrained, "phase1"), ["optimizer.lr=4e-3"], train_only=True)[0].is_done


def test_a_phase_that_has_begun_is_refused_where_its_parent_is_another_now(corpus: Corpus, untrained: Path) -> None:
    path = begin(untrained, "phase2", corpus) / "step-0000000008" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "callbacks": {"Checkpointing": {"parent_weights": "of another"}}}))
    save_run(untrained / "runs", "phase1", 1, corpus.tokenizer)
    with pytest.raises(ValueError, match="phase2 began with other weights than phase1 has now"):
        stages(yamls(untrained, "phase2"), train_only=True)


def test_a_phase_that_has_begun_needs_no_parent_any_more(corpus: Corpus, untrained: Path) -> None:
    begin(untrained, "phase2", corpus)
    assert [stage.name for stage in stages(yamls(untrained, "phase2"), train_only=True)] == ["phase2"]


def test_a_phase_that_has_begun_is_refused_beside_a_parent_that_would_be_trained_anew(
    corpus: Corpus, untrained: Path
) -> None:
    begin(untrained, "phase2", corpus)
    wanted = r"runs/phase2 has trained, and its parent phase1 .* leave the YAML of phase1 out, or move .*phase2 away"
    with pytest.raises(ValueError, match=wanted):
        stages(yamls(untrained, "phase1", "phase2"))
    path = write_merge(untrained, "exponential: {run: phase2, ratio: 0.5}")
    (untrained / "more.yaml").write_text("extends: [phase3.yaml]\nname: more\nparent: merged\n")
    save_run(untrained / "runs", "more", 0, corpus.tokenizer, finished=False)
    with pytest.raises(ValueError, match="runs/more has trained, and its parent merged"):
        stages([*yamls(untrained, "phase2"), path, *yamls(untrained, "more")])


def test_two_phases_of_one_name_are_refused(untrained: Path) -> None:
    (untrained / "other.yaml").write_text("extends: [phase1.yaml]\nduration: 9K\n")
    with pytest.raises(ValueError, match=r"phase1\.yaml and .*other\.yaml have the same name, .* each its own `name`"):
        stages(yamls(untrained, "phase1", "other"))


@pytest.mark.parametrize("name", ["two words", "a,b", "größer"])
def test_a_name_that_the_shell_would_split_is_refused_before_anything_is_queued(untrained: Path, name: str) -> None:
    (untrained / "odd.yaml").write_text(f"extends: [phase1.yaml]\nname: {name}\n")
    Path(write_merge(untrained, "exponential: {run: phase1, ratio: 0.5}")).write_text(
        f"name: {name}\nrun_root: {untrained / 'runs'}\nexponential: {{run: phase1, ratio: 0.5}}\n"
    )
    told = rf"^name = '{name}' cannot be that of a job: take letters, digits and \._\+=- alone$"
    for yaml in ("odd", "merge"):
        with pytest.raises(ValueError, match=told):
            [stage.line() for stage in stages(yamls(untrained, "phase1", yaml))]


def test_phases_in_two_run_roots_are_no_chain(untrained: Path) -> None:
    other = untrained / "other.yaml"
    other.write_text("extends: [phase1.yaml]\nname: other\nrun_root: elsewhere\n")
    with pytest.raises(ValueError, match=r"share one run_root, not .*elsewhere"):
        stages([*yamls(untrained, "phase1"), str(other)])


def test_a_line_for_the_shell_has_no_empty_part(untrained: Path) -> None:
    for stage in stages(yamls(untrained, *PHASES), [VALIDATION]):
        parts = stage.line().split("\t")
        assert all(parts)
        assert parts[:4] == [stage.name, str(stage.result), "todo", ",".join(stage.needs) or "-"]
        assert tuple(parts[4:]) == stage.arguments


def write_converted(folder: Path) -> None:
    """All files of a converted model but its record; nobody reads them here."""
    folder.mkdir()
    for name in CONVERTED:
        (folder / name).touch()


def test_a_finished_phase_is_done_and_a_converted_one_until_it_is_another(
    corpus: Corpus, tmp_path: Path, finished: Finished
) -> None:
    run_folder = finished[0] / "runs" / "phase1"
    folder = prepare(tmp_path / "it", corpus, copied={"phase1": run_folder}).parent
    run_folder = folder / "runs" / "phase1"

    def done() -> list[str]:
        return [stage.name for stage in stages(yamls(folder, "phase1", "phase2"), [VALIDATION]) if stage.is_done]

    assert done() == ["phase1"]
    write_converted(run_folder / "hf")
    record, manifest = run_folder / "hf" / "conversion.json", newest_checkpoint(run_folder) / "manifest.json"
    conversion = {"checkpoint_sha256": sha256_of(manifest), "model_sha256": "of its weights"}
    record.write_text(json.dumps(conversion))
    assert done() == ["phase1", "phase1-hf"]
    inputs = {"model": {"model.safetensors": "of its weights"}, "rows": None, "shards": {}}
    (run_folder / "bits_per_byte.json").write_text(json.dumps({"source": "invented", "inputs": inputs}))
    assert done() == ["phase1", "phase1-hf", "phase1-bits"]
    os.utime(record, (2e9, 2e9))  # copied, say
    assert done() == ["phase1", "phase1-hf", "phase1-bits"]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (run_folder / "hf" / name).unlink()  # as a purge of old files does
        assert done() == ["phase1"]
        (run_folder / "hf" / name).touch()
    record.write_text(json.dumps({**conversion, "model_sha256": "of others"}))
    assert done() == ["phase1", "phase1-hf"]
    record.write_text(json.dumps({"checkpoint_sha256": "of another"}))
    assert done() == ["phase1"]
    shutil.rmtree(newest_checkpoint(run_folder))
    assert done() == []


def test_an_evaluation_is_done_until_other_held_out_rows_are_asked_for(
    corpus: Corpus, tmp_path: Path, finished: Finished
) -> None:
    folder = prepare(tmp_path / "it", corpus, copied={"phase1": finished[0] / "runs" / "phase1"}).parent
    run_folder, rows = folder / "runs" / "phase1", shutil.copytree(corpus.shards[64], tmp_path / "rows")
    convert_to_hf.main(["--checkpoint", str(run_folder), "--output", str(run_folder / "hf")])

    def bits(validation: str) -> Stage:
        wanted = f"validation={{interval: 5000, languages: [laa], root: {validation}}}"
        return stages(yamls(folder, "phase1"), [wanted])[-1]

    asked = f"{rows}, source: invented, rows: 1"
    bits_per_byte.main(bits(asked).arguments[2:])
    assert bits(asked).is_done
    assert not bits(f"{rows}, source: invented, rows: 2").is_done
    assert not bits(f"{rows}, source: invented").is_done
    assert not bits(f"{rows}, source: other, rows: 1").is_done
    assert not bits(f"{corpus.shards[128]}, source: invented, rows: 1").is_done
    shutil.rmtree(rows / "heldout" / "invented" / "laa")
    assert not bits(asked).is_done
    shutil.rmtree(rows)  # on the nodes alone
    assert bits(asked).is_done


def test_a_finished_phase_is_hashed_once(
    corpus: Corpus, tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(tmp_path / "it", corpus, copied={"phase1": finished[0] / "runs" / "phase1"}).parent
    run_folder = folder / "runs" / "phase1"
    manifest = newest_checkpoint(run_folder) / "manifest.json"
    write_converted(run_folder / "hf")
    (run_folder / "hf" / "conversion.json").write_text(json.dumps({"checkpoint_sha256": sha256_of(manifest)}))
    hashed: list[str] = []
    monkeypatch.setattr("mmbert.checkpoint.sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    assert all(stage.is_done for stage in stages(yamls(folder, "phase1")))
    assert hashed.count("model.safetensors") == 1


def test_what_is_missing_is_not_newer(tmp_path: Path) -> None:
    assert not is_newer(tmp_path / "result", [])


def test_the_last_step_is_the_ledgers(finished: Finished, tmp_path: Path) -> None:
    run_folder = finished[0] / "runs" / "phase3"
    last, step = last_step(run_folder), read_ledger(run_folder).steps[-1]
    assert last is not None
    assert (last.step, last.tokens, last.attempt) == (step.step, step.tokens, step.attempt)
    assert last_step(tmp_path) is None


def test_the_last_step_is_found_behind_long_events_and_before_a_torn_line(finished: Finished, tmp_path: Path) -> None:
    run_folder = finished[0] / "runs" / "phase1"
    content, step = (run_folder / "ledger.jsonl").read_bytes(), read_ledger(run_folder).steps[-1]
    long = json.dumps({"event": "scores", "attempt": 1, "step": 1, "streams": {"a": [1] * 200_000}}).encode()
    (tmp_path / "ledger.jsonl").write_bytes(content + long + b"\n" + content[:40])
    last = last_step(tmp_path)
    assert last is not None
    assert (last.step, last.tokens, last.attempt) == (step.step, step.tokens, step.attempt)
    (tmp_path / "ledger.jsonl").write_bytes(long + b"\n")
    assert last_step(tmp_path) is None


def test_the_table_tells_state_progress_and_restarts(finished: Finished) -> None:
    folder = finished[0]
    config = load_config(folder / "phase1.yaml")
    assert progress(config)[2:] == ("100.0%", "0:00:00", "0")
    chain = [
        Stage("phase1", config.run_folder, (), (), True),
        Stage("phase4", folder / "runs" / "phase4", ("phase1",), (), False),
        Stage("phase5", folder / "runs" / "phase5", ("phase4",), (), False),
    ]
    jobs = {str(folder / "runs" / "phase4"): Job("17", "PENDING", "Dependency")}
    lines = table(chain, {"phase1": config}, jobs).splitlines()
    assert lines[1].split()[:2] == ["phase1", "done"]
    assert lines[2].split() == ["phase4", "pending", "(Dependency)", "17"]
    assert lines[3].split() == ["phase5", "not", "queued", "-"]


def test_the_table_is_told_beside_a_damaged_checkpoint(
    corpus: Corpus, tmp_path: Path, finished: Finished,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = prepare(tmp_path / "it", corpus, copied={"phase1": finished[0] / "runs" / "phase1"}).parent
    truncate(newest_checkpoint(folder / "runs" / "phase1") / "state.json", 0.5)
    monkeypatch.setattr("sys.argv", ["status", *yamls(folder, "phase1", "phase2")])
    monkeypatch.setattr("mmbert.status.queued_jobs", dict)
    status()
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0].split()[-3:] == ["100.0%", "-", "0"]
    assert [line.split()[0] for line in lines] == ["phase1", "phase2", "phase1-hf", "phase2-hf"]
