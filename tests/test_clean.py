"""Cleaning: planted near duplicates are found at the rate of the theory, counts add up, kills change no byte."""
import json
import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
import zstandard

from data_prep import clean, clean_language
from data_prep.clean_filters import THRESHOLDS, Cleaning, read_thresholds
from data_prep.documents import Reading
from data_prep.inputs import find_inputs
from tests.data_prep.programs import write_jsonl
from tests.synthetic_corpus import seeded, write_corpus

QUALITY = ("repetition", "gopher", "fineweb")


def read(path: Path) -> list[dict]:
    """The records of a compressed file."""
    text = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def records(folder: Path, pattern: str = "*") -> list[dict]:
    return [record for path in sorted(folder.glob(pattern)) for record in read(path)]


def tree(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of all a run leaves, but for its lock."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def make_jobs(corpus: Path, output: Path, cleaning: Cleaning) -> list[clean_language.Job]:
    return clean.make_jobs(output, cleaning, find_inputs(str(corpus), "clean"))


def run_here(jobs: list[clean_language.Job]) -> None:
    """All stages in this process."""
    for job in jobs:
        for number in range(len(job.parts)):
            clean_language.filter_part(job, number)
        clean_language.finish_language(job)


def run(monkeypatch, corpus: Path, output: Path, *options: str) -> None:
    """The program."""
    monkeypatch.setattr("sys.argv", ["clean", "--input", str(corpus), "--output", str(output), *options])
    clean.main()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.synthetic_corpus.COPY_RATE", 0.2)
        write_corpus(folder, num_languages=6, num_bytes=600_000, seed=3)
    return folder


# ------------------------------------------------------------------------------------------------------------- MinHash
def pair(rng: np.random.Generator, similarity: float, words: int = 104) -> tuple[str, str]:
    """Two texts whose sets of 5-grams have this Jaccard similarity, as nearly as whole words allow."""
    first, second = (["".join(word) for word in rng.choice(list("aeioudfgklmnrst"), (words, 9))] for _ in range(2))
    shingles = words - 4
    shared = round(2 * shingles * similarity / (1 + similarity))
    return " ".join(first), " ".join(first[: shared + 4] + second[shared + 4 :])


@pytest.mark.parametrize("similarity", [0.5, 0.65, 0.75, 0.85, 1.0])
def test_near_duplicates_are_found_as_often_as_the_theory_says(tmp_path, similarity):
    num_pairs = 300
    pairs = [pair(seeded(0, similarity, number), similarity) for number in range(num_pairs)]
    write_jsonl(tmp_path / "in" / "fao" / "a.jsonl", [first for first, _ in pairs])
    write_jsonl(tmp_path / "in" / "fao" / "b.jsonl", [second for _, second in pairs])
    (job,) = make_jobs(tmp_path / "in", tmp_path / "out", Cleaning(minhash=True, keep_dropped=True))
    run_here([job])
    kept = {record["text"] for record in records(tmp_path / "out" / "text" / "fao")}
    dropped = len(records(tmp_path / "out" / "dropped" / "fao"))
    found = 1 - (1 - similarity**8) ** 14
    assert dropped == pytest.approx(num_pairs * found, abs=4 * (num_pairs * found * (1 - found)) ** 0.5 + 1e-9)
    assert all(first in kept or second in kept for first, second in pairs)  # texts of two pairs share nothing


def test_near_duplicates_in_several_parts_leave_one(tmp_path, monkeypatch):
    monkeypatch.setattr(clean, "PART_BYTES", 1)
    first, second = pair(seeded(0), 0.98)
    others = [pair(seeded(number), 0.98)[0] for number in range(1, 9)]
    for number, texts in enumerate([[others[0], first], [second, others[1]], [*others[2:], first]]):
        write_jsonl(tmp_path / "in" / "fao" / f"{number}.jsonl", texts)
    (job,) = make_jobs(tmp_path / "in", tmp_path / "out", Cleaning(minhash=True, keep_dropped=True))
    assert len(job.parts) == 3
    run_here([job])
    kept = [record["text"] for record in records(tmp_path / "out" / "text" / "fao")]
    assert sorted(kept) in (sorted([*others, first]), sorted([*others, second]))
    assert [record["step"] for record in records(tmp_path / "out" / "dropped" / "fao")] == ["minhash", "minhash"]


def test_a_signature_does_not_depend_on_how_many_shingles_are_hashed_at_a_time(tmp_path, monkeypatch):
    block = clean_language.Signature(str(tmp_path), clean_language.CONFIG, clean_language.words_of("fao", "unicode"))
    shingles = block.get_shingles(pair(seeded(0), 0.5, words=1000)[0])
    expected = super(clean_language.Signature, block).get_signature(shingles)
    monkeypatch.setattr(clean_language, "SHINGLES", 7)
    assert block.get_signature(shingles) == expected


# ---------------------------------------------------------------------------------------------------------- the program
def test_counts_add_up_and_every_document_is_kept_or_dropped(corpus, tmp_path, monkeypatch, capsys):
    run(monkeypatch, corpus, tmp_path, "--quality", *QUALITY, "--minhash", "--keep-dropped", "--workers", "2")
    report = json.loads((tmp_path / "clean.json").read_text())["languages"]
    for (_, language), files in find_inputs(str(corpus), "clean").items():
        counts = report[language]
        texts = [text for file in files for text in clean_language.read_texts(file)]
        kept = [record["text"] for record in records(tmp_path / "text" / language)]
        dropped = records(tmp_path / "dropped" / language)
        assert sorted([*kept, *(record["text"] for record in dropped)]) == sorted(texts)
        assert counts["read"] == {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
        assert counts["kept"] == {"documents": len(kept), "bytes": sum(len(text.encode()) for text in kept)}
        for step, drops in counts["dropped"].items():
            of_step = [record for record in dropped if record["step"] == step]
            assert drops["documents"] == len(of_step) == sum(drops["reasons"].values())
            assert drops["bytes"] == sum(len(record["text"].encode()) for record in of_step)
    assert sum(counts["dropped"]["minhash"]["documents"] for counts in report.values()) > 0
    assert sum(counts["dropped"]["gopher"]["documents"] for counts in report.values()) > 0
    assert f"{len(report)} languages" in capsys.readouterr().out


def test_bytes_do_not_depend_on_workers_and_a_second_run_does_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(clean, "PART_BYTES", 50_000)
    for workers in ("1", "3"):
        run(monkeypatch, corpus, tmp_path / workers, "--quality", "repetition", "--minhash", "--workers", workers)
    assert tree(tmp_path / "1") == tree(tmp_path / "3")
    monkeypatch.setattr(clean, "filter_part", partial(pytest.fail, "it was done already"))
    monkeypatch.setattr(clean, "finish_language", partial(pytest.fail, "it was done already"))
    run(monkeypatch, corpus, tmp_path / "1", "--quality", "repetition", "--minhash", "--workers", "1")


def test_a_changed_file_redoes_its_language_alone(tmp_path, monkeypatch):
    for language in ("fao", "isl"):
        write_jsonl(tmp_path / "in" / f"{language}.jsonl", [pair(seeded(language, 1), 0.5)[0]])
    run(monkeypatch, tmp_path / "in", tmp_path / "out", "--minhash", "--workers", "1")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "text").rglob("*.zst")}
    write_jsonl(tmp_path / "in" / "fao.jsonl", list(pair(seeded(2), 0.1)))
    run(monkeypatch, tmp_path / "in", tmp_path / "out", "--minhash", "--workers", "1")
    changed = [path.parent.name for path in before if path.stat().st_mtime_ns != before[path]]
    assert changed == ["fao"]
    assert len(records(tmp_path / "out" / "text" / "fao")) == 2


def test_a_record_that_was_edited_redoes_its_language(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "in" / "fao.jsonl", [pair(seeded(1), 0.5)[0]])
    record = tmp_path / "out" / clean_language.WORK / "finished" / "fao.json"
    for _ in range(2):
        run(monkeypatch, tmp_path / "in", tmp_path / "out", "--minhash", "--workers", "1")
        written = json.loads(record.read_text())
        del written["kept"]
        record.write_text(json.dumps(written))


def test_a_large_txt_without_blank_lines_and_a_language_that_is_emptied_are_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "fao.txt").write_text("\n".join(f"beda gola {'suna ' * 9} {number}" for number in range(2000)))
    write_jsonl(tmp_path / "in" / "isl.jsonl", ["short"])
    for _ in range(2):  # it is told again when nothing is left to do
        run(monkeypatch, tmp_path / "in", tmp_path / "out", "--quality", "gopher", "--workers", "1")
        said = capsys.readouterr().out
        assert "nothing was kept of isl\n" in said
        assert f"each was taken as one document: {tmp_path / 'in' / 'fao.txt'}; blank lines tell" in said


def test_changed_thresholds_redo_their_language_alone_and_a_moved_folder_none(tmp_path):
    def digests(folder: str, **thresholds: int) -> dict[str, str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        for language, value in thresholds.items():
            (tmp_path / folder / f"{language}.yml").write_text(yaml.safe_dump(dict.fromkeys(THRESHOLDS, value)))
        read_thresholds.cache_clear()  # as in another process
        cleaning = Cleaning(("gopher",), thresholds=str(tmp_path / folder), skip_unknown=True)
        return {job.language: job.digest for job in make_jobs(tmp_path / "in", tmp_path / "out", cleaning)}

    for language in ("fao", "isl", "nob"):
        write_jsonl(tmp_path / "in" / f"{language}.jsonl", ["a"])
    before = digests("configs", fao=1, isl=1)
    assert digests("moved", fao=1, isl=1) == before
    after = digests("configs", fao=2, isl=1)
    assert [language for language in before if before[language] != after[language]] == ["fao"]
    without = make_jobs(tmp_path / "in", tmp_path / "out", Cleaning(("gopher",), skip_unknown=True))
    assert not {job.digest for job in without} & set(before.values())  # nob is skipped with them, and not without


def test_another_cut_of_txt_files_is_another_result(corpus, tmp_path):
    readings = [Reading(whole_txt=whole, normalise=False) for whole in (False, True)]
    cut, whole = (make_jobs(corpus, tmp_path, Cleaning(minhash=True, reading=reading)) for reading in readings)
    assert not {job.digest for job in cut} & {job.digest for job in whole}


def test_a_part_that_is_done_is_not_read_again(tmp_path):
    write_jsonl(tmp_path / "in" / "fao.jsonl", [pair(seeded(1), 0.5)[0]])
    (job,) = make_jobs(tmp_path / "in", tmp_path / "out", Cleaning(minhash=True))
    clean_language.filter_part(job, 0)
    (tmp_path / "in" / "fao.jsonl").unlink()
    run_here([job])
    assert len(records(tmp_path / "out" / "text" / "fao")) == 1


def test_a_broken_file_is_named_and_the_other_languages_are_cleaned(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "in" / "fao.jsonl", [pair(seeded(1), 0.5)[0]])
    (tmp_path / "in" / "isl.jsonl").write_text('{"text": "halló"}\n{"text": "hall\n')
    with pytest.raises(SystemExit, match=r"isl was not cleaned: .*isl\.jsonl:2"):
        run(monkeypatch, tmp_path / "in", tmp_path / "out", "--minhash", "--workers", "1")
    assert [path.name for path in (tmp_path / "out" / "text").iterdir()] == ["fao"]
    assert list(json.loads((tmp_path / "out" / "clean.json").read_text())["failed"]) == ["isl"]


def test_a_broken_file_whose_name_is_not_utf_8_is_named(tmp_path, monkeypatch):
    (tmp_path / "in" / "isl").mkdir(parents=True)
    (tmp_path / "in" / "isl" / "caf\udce9.jsonl").write_text("{broken\n")
    write_jsonl(tmp_path / "in" / "fao.jsonl", [pair(seeded(1), 0.5)[0]])
    with pytest.raises(SystemExit, match=r"isl was not cleaned: .*caf.*\.jsonl:1"):
        run(monkeypatch, tmp_path / "in", tmp_path / "out", "--minhash", "--workers", "1")
    assert "caf\udce9.jsonl" in json.loads((tmp_path / "out" / "clean.json").read_text())["failed"]["isl"]


@pytest.mark.parametrize(
    "corpus, output, reason",
    [
        ("in", "in/clean", r"--output .*in/clean lies in the input, .*in, .*: choose one outside"),
        ("out/text", "out", r"--input .*out/text is text of --output .*out, and would be replaced: choose another"),
        ("out/text/fao", "out", r"--input .*out/text/fao is text of --output .*out"),
    ],
)
def test_what_is_read_and_what_is_written_lie_apart(tmp_path, monkeypatch, corpus, output, reason):
    write_jsonl(tmp_path / "in" / "fao" / "x.jsonl", ["góður texti", "góður texti"])
    run(monkeypatch, tmp_path / "in", tmp_path / "out", "--quality", "repetition", "--workers", "1")
    before = tree(tmp_path)
    with pytest.raises(SystemExit, match=reason):
        run(monkeypatch, tmp_path / corpus, tmp_path / output, "--language", "fao", "--minhash", "--workers", "1")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("theirs", ["text", "dropped", "train"])
def test_nothing_is_written_into_a_folder_of_someone_else(tmp_path, monkeypatch, theirs):
    for folder in ("in", f"out/{theirs}"):
        write_jsonl(tmp_path / folder / "fao" / "x.jsonl", [f"góður texti í {folder}"])
    before = tree(tmp_path)
    with pytest.raises(SystemExit, match=rf"error: .*out/{theirs} is not of data_prep.clean: choose another --output"):
        run(monkeypatch, tmp_path / "in", tmp_path / "out", "--minhash", "--workers", "1")
    assert tree(tmp_path) == before


def test_its_own_folder_with_files_of_another_program_is_refused(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "in" / "fao" / "x.jsonl", ["góður texti"])
    run(monkeypatch, tmp_path / "in", tmp_path / "out", "--minhash", "--workers", "1")
    (tmp_path / "out" / ".DS_Store").touch()
    run(monkeypatch, tmp_path / "in", tmp_path / "out", "--minhash", "--workers", "1")
    (tmp_path / "out" / "train").mkdir()
    with pytest.raises(SystemExit, match=r"error: .*out/train is not of data_prep.clean: choose another --output"):
        run(monkeypatch, tmp_path / "in", tmp_path / "out", "--minhash", "--workers", "1")


def test_a_language_without_a_good_document_has_no_text(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "in" / "fao.jsonl", ["stutt", " \n"])
    run(monkeypatch, tmp_path / "in", tmp_path / "out", "--quality", "gopher", "--workers", "1")
    assert not (tmp_path / "out" / "text" / "fao").exists()
    dropped = json.loads((tmp_path / "out" / "clean.json").read_text())["languages"]["fao"]["dropped"]
    assert dropped["empty"]["documents"] == 1
    assert dropped["gopher"]["reasons"] == {"gopher_short_doc": 1}


# --------------------------------------------------------------------------------------------------------------- kills
POINTS = ["publish_folder", "write_json", "write_signatures", "find_duplicates", "finish_part", "remove"]


def run_and_die(jobs: list[clean_language.Job], deaths: int) -> None:
    """Run, and be killed by SIGKILL where one of POINTS is about to be called for the `deaths`-th time, from 0."""
    calls = iter(range(10**9))

    def guarded(function):
        def call(*arguments, **options):
            if next(calls) == deaths:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in POINTS:
        setattr(clean_language, name, guarded(getattr(clean_language, name)))
    run_here(jobs)


def test_a_kill_between_any_two_steps_changes_no_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(clean, "PART_BYTES", 1)
    texts = [text for number in range(5) for text in pair(seeded(number), 0.95)]
    for number in range(2):
        write_jsonl(tmp_path / "in" / "fao" / f"{number}.jsonl", [*texts[number::2], "stutt"])
    cleaning = Cleaning(quality=("gopher",), minhash=True, keep_dropped=True)
    run_here(make_jobs(tmp_path / "in", tmp_path / "whole", cleaning))
    expected = tree(tmp_path / "whole")
    context = multiprocessing.get_context("fork")
    for deaths in range(100):
        jobs = make_jobs(tmp_path / "in", tmp_path / "killed", cleaning)
        process = context.Process(target=run_and_die, args=(jobs, deaths))
        process.start()
        process.join(60)
        killed = process.exitcode == -signal.SIGKILL
        run_here(clean.unfinished(jobs))
        assert tree(tmp_path / "killed") == expected, f"killed before call {deaths}"
        clean_language.remove(tmp_path / "killed")
        if not killed:
            break
    assert process.exitcode == 0
    assert deaths > 8
