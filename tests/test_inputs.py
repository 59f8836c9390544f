"""Which files hold which language, how each format is read, and how a text is spelled."""
import errno
import gzip
import json
import math
import os
import sys
from pathlib import Path
from unicodedata import normalize

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep import formats
from data_prep.formats import READERS, BrokenInputError, read_texts
from data_prep.inputs import InputFile, find_inputs
from data_prep.normalise import normalise

TEXTS = ["a\n\u2028b", "", "c, \"d\"\r\n", "ééé ნ 中文"]


def write(path: Path, texts: list[str] = TEXTS, key: str = "text") -> InputFile:
    """Write texts in the format that a file's name says."""
    formats = {
        ".jsonl": lambda: "".join(json.dumps({"url": 1, key: text}) + "\n" for text in texts).encode(),
        ".csv": lambda: "".join(f'{number},"{text.replace(chr(34), 2 * chr(34))}"\r\n' for number, text in
                                enumerate(["", *texts])).replace('0,""', f"id,{key}", 1).encode(),
        ".txt": lambda: "\n\n".join(texts).encode(),
        ".parquet": lambda: parquet(texts, key),
    }  # fmt: skip
    suffixes = path.suffixes
    content = formats[suffixes[0]]()
    if ".gz" in suffixes:
        content = gzip.compress(content[:7]) + gzip.compress(content[7:])  # two members, as some tools write them
    if ".zst" in suffixes:
        content = zstandard.compress(content[:7]) + zstandard.compress(content[7:])
    path.write_bytes(content)
    return InputFile(str(path), len(content), "")


def parquet(texts: list[str | None], key: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"n": list(range(len(texts))), key: texts}), sink)
    return sink.getvalue().to_pybytes()


# --- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.csv", "x.csv.zst", "x.parquet"])
def test_every_format_gives_the_same_texts(tmp_path: Path, name: str):
    assert list(read_texts(write(tmp_path / name))) == TEXTS
    assert list(read_texts(write(tmp_path / name, key="content"), "content")) == TEXTS


def test_plain_text_is_cut_at_blank_lines_or_not_at_all(tmp_path: Path):
    file = write(tmp_path / "x.txt", ["a\n\u2028b\r", " \t", "c\n\n\nd"])
    assert list(read_texts(file)) == ["a\n\u2028b", "c", "d"]
    [whole] = read_texts(file, whole_txt=True)
    assert whole.split("\n") == ["a", "\u2028b", "", " \t", "", "c", "", "", "d"]


def test_a_document_of_plain_text_that_has_no_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As one document a file with one a line would take more memory than there is, and nobody would say why."""
    monkeypatch.setattr(formats, "LONGEST", 9)
    file = write(tmp_path / "x.txt", ["aaaa\nbbbbb", "cccc\nddddd"])
    assert list(read_texts(file)) == ["aaaa\nbbbbb", "cccc\nddddd"]
    file = write(tmp_path / "x.txt", ["aaaa", "bbbb\ncccc\ndddd"])
    with pytest.raises(BrokenInputError, match=r"x.txt has no blank line in 9 characters, .*: if each line is one"):
        list(read_texts(file))
    assert list(read_texts(file, whole_txt=True)) == ["aaaa\n\nbbbb\ncccc\ndddd"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path):
    files = {"x.txt": b"a", "x.csv": b"text\r\na\r\n", "x.jsonl": b'{"text": "a"}'}
    for name, content in ((name, b"\xef\xbb\xbf" + content) for name, content in files.items()):
        (tmp_path / name).write_bytes(content)
        assert list(read_texts(InputFile(str(tmp_path / name), 0, ""))) == ["a"]


def test_blank_lines_between_objects_are_none_and_null_is_an_empty_text(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n\n{"text": null}\r\n \n{"text": "b"}\n\n')
    assert list(read_texts(InputFile(str(tmp_path / "x.jsonl"), 0, ""))) == ["a", "", "b"]


def test_a_missing_value_as_python_writes_it_spoils_no_file(tmp_path: Path):
    """pandas has NaN for a missing text, too."""
    records = [{"text": "a", "date": math.nan}, {"text": math.nan}, {"text": "NaN", "range": [-math.inf, math.inf]}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert list(read_texts(InputFile(str(tmp_path / "x.jsonl"), 0, ""))) == ["a", "", "NaN"]


@pytest.mark.parametrize("error", [TimeoutError("late"), type("ReadTimeout", (OSError,), {})("late")])
def test_a_network_that_fails_does_not_make_a_file_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
):
    """Else the file would be left out for good."""

    def fail(*_: object) -> None:
        raise error

    (tmp_path / "x.txt").write_text("a")
    monkeypatch.setitem(READERS, ".txt", fail)
    with pytest.raises(type(error)):
        list(read_texts(InputFile(str(tmp_path / "x.txt"), 1, "")))


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("x.txt", b"a\n\xff\xfe", r"x.txt:2 is not UTF-8 \(byte 0 of the line\)"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "x.jsonl:2 is not valid JSON"),
        ("x.jsonl", b'{"text": "\xff"}', "x.jsonl:1 is not valid JSON"),
        ("x.jsonl", b'{"text": "\\ud800", "date": NaN}', "x.jsonl:1 is not valid JSON: no low surrogate"),
        ("x.jsonl", b'{"text": "a", "date": NaN', "x.jsonl:1 is not valid JSON"),
        ("x.jsonl", b'{"text": "Infinity\xff"}', "x.jsonl:1 is not valid JSON"),
        ("x.jsonl", b'{"deep": ' + 9999 * b"[" + b"NaN", "x.jsonl:1 is not valid JSON"),
        ("x.jsonl", b'["a"]', "x.jsonl:1 is no JSON object: one object a line"),
        ("x.jsonl", b'{"url": 1, "content": "a"}', r"x.jsonl:1 has no text under 'text' \(keys: url, content\)"),
        ("x.jsonl", b'{"text": 3}', "x.jsonl:1 has no text"),
        ("x.jsonl", b'{"text": [3]}', "x.jsonl:1 has no text under 'text', but what JSON reads as list: make it a str"),
        ("x.json", b'{\n"text": "a"\n}', "x.json:1 is not valid JSON: .*; one object a line is expected"),
        ("x.csv", b"text;id\r\na;1\r\n", r"no column 'text' \(columns: text;id\): give .*; only commas part columns"),
        ("x.csv", b"\r\nid,text\r\n1,a\r\n", "x.csv:1 is blank, and must name the columns: remove this line"),
        ("x.csv", b"", "x.csv has no column 'text', for it is empty: fill it, or remove it"),
        ("x.csv", b"id,text\r\n1,a,b\r\n", "x.csv:2 has another number of fields .*: quote what holds commas"),
        ("x.jsonl", b'{"text": "\\ud800"}', "x.jsonl:1 is not valid JSON"),
        ("x.csv", b"id,content\r\n1,a\r\n", r"x.csv has no column 'text' \(columns: id, content\)"),
        ("x.csv", b"id,text\r\n1\r\n", "x.csv:2 has another number of fields"),
        ("x.csv", b'id,text\r\n1,"a', "x.csv:.* is damaged"),
        ("x.csv", b"id,text\r\n1,\xff\r\n", "x.csv is not UTF-8 behind line 0: convert it, say with iconv"),
        ("x.csv", b"text\r\n" + 9000 * b"a\r\n" + b"\xff\r\n", r"x.csv is not UTF-8 behind line 8\d\d\d: convert it"),
        ("x.csv", b'"first\ndocument",b\r\n', r"x.csv has no column 'text' \(columns: first document, b\)"),
        ("x.csv", b"head" + 500 * b",word", r"x.csv has no column 'text' \(columns: head, word.*\): give --text-key"),
        ("x.csv", b"text,id,text\r\na,1,b\r\n", "x.csv has 2 columns 'text': rename all but one"),
        ("x.jsonl", json.dumps({f"a\n{key}": 0 for key in range(99)}).encode(), "x.jsonl:1 has no .* 0, a 1, .*give"),
        ("x.parquet", b"PAR1 no PAR1", "x.parquet is damaged"),
    ],
)
def test_what_is_broken_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, reason: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenInputError, match=reason) as error:
        list(read_texts(InputFile(str(tmp_path / name), len(content), "")))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.csv.zst", "x.parquet"])
def test_a_file_that_was_cut_off_is_never_taken_for_a_whole_one(tmp_path: Path, name: str):
    texts = [f"text {number}" for number in range(200)]
    content = Path(write(tmp_path / name, texts).path).read_bytes()
    for size in range(1, len(content), 7):
        (tmp_path / name).write_bytes(content[:size])
        with pytest.raises(BrokenInputError, match=name):
            list(read_texts(InputFile(str(tmp_path / name), size, "")))


def test_a_broken_page_of_parquet_is_one_line(tmp_path: Path):
    """Arrow says it in three."""
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["some text"]}), path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + 16 * b"\xff" + content[20:])
    with pytest.raises(BrokenInputError, match=r"x.parquet is damaged: .*thrift") as error:
        list(read_texts(InputFile(str(path), len(content), "")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", [b"column", b"some text"])
def test_what_of_parquet_is_not_utf_8_is_named(tmp_path: Path, what: bytes):
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"column": [0], "text": ["some text"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(what, what[:-1] + b"\xf4"))
    with pytest.raises(BrokenInputError, match=r"x.parquet is damaged: 'utf-8' codec"):
        list(read_texts(InputFile(str(path), 0, "")))


def test_several_columns_of_one_name_are_not_guessed_between(tmp_path: Path):
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array(["a"])], ["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(BrokenInputError, match=r"x.parquet has 2 columns 'text': rename all but one"):
        list(read_texts(InputFile(str(tmp_path / "x.parquet"), 0, "")))


def test_a_column_is_not_taken_for_a_field_of_the_same_path(tmp_path: Path):
    table = pyarrow.table({"doc": [{"text": "a field"}], "doc.text": ["a column"]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert list(read_texts(InputFile(str(tmp_path / "x.parquet"), 1, ""), "doc.text")) == ["a column"]


def test_columns_of_other_types_are_no_text(tmp_path: Path):
    (tmp_path / "x.parquet").write_bytes(parquet(["a", None], "text"))
    assert list(read_texts(InputFile(str(tmp_path / "x.parquet"), 0, ""))) == ["a", ""]
    with pytest.raises(BrokenInputError, match="no column 'n' of strings, but one of int64: write it as strings"):
        list(read_texts(InputFile(str(tmp_path / "x.parquet"), 0, ""), "n"))
    with pytest.raises(BrokenInputError, match=r"no column 'm' of strings \(columns: n, text\): give --text-key"):
        list(read_texts(InputFile(str(tmp_path / "x.parquet"), 0, ""), "m"))


# --- inputs --------------------------------------------------------------------------------------------------------


def names(inputs: dict) -> dict[str, list[str]]:
    return {language: [Path(file.path).name for file in files] for (_, language), files in inputs.items()}


def test_a_tree_names_its_languages_by_files_and_folders(tmp_path: Path):
    hidden = (".git/x", "d/.y")
    for path in ("fao.txt", "fao.jsonl.gz", "lang=isl/a/1.txt", "lang=isl/2.csv", "zh-Hans/x.parquet", *hidden):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    found = find_inputs(str(tmp_path), "web")
    assert names(found) == {"cmn": ["x.parquet"], "fao": ["fao.jsonl.gz", "fao.txt"], "isl": ["2.csv", "1.txt"]}
    assert {source for source, _ in found} == {"web"}
    assert all(file.size == 1 and file.stamp for files in found.values() for file in files)


def test_numbered_parts_of_a_file_are_of_one_language(tmp_path: Path):
    parts = ("isl-00000-of-00002.txt", "isl-00001-of-00002.txt", "srp_cyrl_0_of_1.jsonl.gz", "deu-1996.txt")
    for path in parts:
        (tmp_path / path).write_bytes(b"x")
    assert names(find_inputs(str(tmp_path), "web")) == {
        "deu_1996": ["deu-1996.txt"], "isl": list(parts[:2]), "srp_cyrl": ["srp_cyrl_0_of_1.jsonl.gz"]
    }  # fmt: skip


def test_one_language_may_be_a_file_or_a_folder_of_any_names(tmp_path: Path):
    (tmp_path / "my text.txt").write_bytes(b"x")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.jsonl").write_bytes(b"x")
    assert names(find_inputs(str(tmp_path), "web", "fo")) == {"fao": ["c.jsonl", "my text.txt"]}
    assert names(find_inputs(str(tmp_path / "my text.txt"), "web", "fo")) == {"fao": ["my text.txt"]}
    with pytest.raises(ValueError, match=r"c.jsonl: .*rename it, or give --language for the whole folder"):
        find_inputs(str(tmp_path), "web")


@pytest.mark.parametrize("name", ["FAO.TXT", "fao.JSONL.GZ", "Fao.Jsonl", "fao.CSV"])
def test_an_extension_may_be_upper_case(tmp_path: Path, name: str):
    write(tmp_path / name.lower(), ["a", "b"])
    (tmp_path / name.lower()).rename(tmp_path / name)
    [(stream, [file])] = find_inputs(str(tmp_path), "web").items()
    assert stream == ("web", "fao")
    assert list(read_texts(file)) == ["a", "b"]


def test_what_holds_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"--input nowhere does not exist below {tmp_path} "):
        find_inputs("nowhere", "web")
    with pytest.raises(FileNotFoundError, match="--input is empty: name a file or a folder"):
        find_inputs("", "web")
    with pytest.raises(FileNotFoundError, match=r"--input .*nowhere does not exist"):
        find_inputs(str(tmp_path / "nowhere"), "web")
    with pytest.raises(FileNotFoundError, match="holds no file"):
        find_inputs(str(tmp_path), "web")
    for name in ("fao.doc", "fao.parquet.gz", "fao"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"{name} is of no known format: .*.zst, but for the last"):
            find_inputs(str(tmp_path), "web")
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"--source '\.\./x'"):
        find_inputs(str(tmp_path), "../x")


def test_links_are_what_they_lead_to(tmp_path: Path):
    text, store = tmp_path / "text", tmp_path / "store"
    for path in (text / "nno.txt", store / "a" / "1.txt", store / "b.txt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("some text")
    (text / "fao").symlink_to(store / "a")
    (text / "isl.txt").symlink_to(store / "b.txt")
    (store / "a" / "up").symlink_to(text)  # without an end, were it followed
    (text / ".old.txt").symlink_to(store / "gone.txt")
    (tmp_path / "link").symlink_to(text)
    for location in (text, tmp_path / "link"):
        found = find_inputs(str(location), "web")
        assert names(found) == {"fao": ["1.txt"], "isl": ["isl.txt"], "nno": ["nno.txt"]}
        assert {file.size for files in found.values() for file in files} == {9}
    (store / "b.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"text/isl.txt is a link to nowhere: mend it, or remove it"):
        find_inputs(str(text), "web")


def test_a_folder_that_cannot_be_read_is_named_and_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Root may read all folders, so the system's answer is replaced."""
    for path in ("fao/a.txt", "isl/old/b.txt", ".trash/c.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("some text")
    closed: list[str] = []
    scandir = os.scandir

    def guarded(folder: str):
        if folder in closed:
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    closed.append(str(tmp_path / ".trash"))
    assert names(find_inputs(str(tmp_path), "web")) == {"fao": ["a.txt"], "isl": ["b.txt"]}
    closed.append(str(tmp_path / "isl" / "old"))
    with pytest.raises(PermissionError, match=r"Permission denied: .*isl/old"):
        find_inputs(str(tmp_path), "web")


@pytest.mark.parametrize("name", ["a::b.txt", "a*[1]?.txt", "a#b%20{c}.txt", "~a b'c.txt"])
def test_a_file_of_any_name_is_read(tmp_path: Path, name: str):
    (tmp_path / "fao").mkdir()
    (tmp_path / "fao" / name).write_text("some text")
    [[found]] = find_inputs(str(tmp_path), "web").values()
    assert list(read_texts(found)) == ["some text"]


def test_a_store_that_needs_a_package_or_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"gs://bucket/text cannot be listed: .*gcsfs"):
        find_inputs("gs://bucket/text", "web")
    with pytest.raises(ValueError, match=r"s3x://bucket cannot be listed: Protocol not known: s3x"):
        find_inputs("s3x://bucket", "web")


def test_any_store_of_fsspec_is_read():
    with fsspec.open("memory://bucket/fao/a.txt", "wb") as file:
        file.write(b"a\n\nb")
    [(stream, [found])] = find_inputs("memory://bucket", "web").items()
    assert stream == ("web", "fao")
    assert found.stamp
    assert list(read_texts(found)) == ["a", "b"]


def test_a_file_whose_size_a_server_does_not_say_is_refused(monkeypatch: pytest.MonkeyPatch):
    """As those of HTTP may that send a page while they make it."""
    with fsspec.open("memory://unsized/fao.txt", "wb") as file:
        file.write(b"a")
    system = type(fsspec.filesystem("memory"))
    info = system.info
    monkeypatch.setattr(system, "info", lambda self, path, **options: info(self, path, **options) | {"size": None})
    with pytest.raises(ValueError, match=r"memory:///unsized/fao.txt: its server does not say how many bytes"):
        find_inputs("memory://unsized/fao.txt", "web")


def test_a_changed_file_has_another_stamp(tmp_path: Path):
    (tmp_path / "fao.txt").write_text("a")
    before = find_inputs(str(tmp_path), "web")
    (tmp_path / "fao.txt").write_text("b")
    assert find_inputs(str(tmp_path), "web") != before


# --- spelling ------------------------------------------------------------------------------------------------------


def test_a_text_is_spelled_in_one_way():
    assert normalise("e\u0301a\r\nb\rc\x00\x07\ufeff\t ") == "éa\nb\nc"
    assert normalise("\u200cक\u094dष\u200d \u200fa") == "\u200cक\u094dष\u200d \u200fa"
    assert normalise("e\x00\u0301") == "é"
    assert normalise("page\x0cNext\x0bline\x85\x1ca\x1db\x1ec\x1fd") == "page\nNext\nline\n\na\nb\nc d"
    assert normalise("ﬁ ½ Å") == normalize("NFC", "ﬁ ½ Å") == "ﬁ ½ Å"


def test_normalising_twice_changes_nothing_more():
    every = "".join(chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000)
    once = normalise(every)
    assert normalise(once) == once
    assert normalise(every[::-1]) == normalise(normalise(every[::-1]))


class NoCredentialsError(Exception):
    """As botocore's, neither an OSError nor a ValueError."""


@pytest.mark.parametrize("method", ["info", "find", "_open"])
def test_an_error_of_a_stores_client_names_the_place(method: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate\ncredentials")

    with fsspec.open("memory://refused/fao/a.txt", "wb") as file:
        file.write(b"a")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), method, refuse)
    with pytest.raises(OSError, match=r"^memory://.*refused.* cannot be read: Unable to locate credentials; look at "):
        print([list(read_texts(file)) for [file] in find_inputs("memory://refused", "web").values()])
