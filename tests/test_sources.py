"""The paper's corpora as inputs: which files, of which stream, and what is told when they are not there."""
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import GatedRepoError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from requests import ConnectionError, Response

from data_prep.formats import read_texts
from data_prep.inputs import InputFile
from data_prep.sources import corpora, corpus_inputs, hf_inputs, rows
from mmbert.config import load_config
from mmbert.recipe_table import BASE, SMALL, table

FINEWEB2 = "HuggingFaceFW/fineweb-2/data"


def write(folder: Path, *paths: str) -> Path:
    """Files of one document each, that holds their path."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f'{{"text": "{path}", "id": 1}}\n')
    return folder


def of(files: tuple[InputFile, ...], folder: Path | str) -> list[str]:
    """Their paths below a folder."""
    return [file.path.removeprefix(f"{folder}/") for file in files]


@pytest.mark.parametrize("path", BASE + SMALL)
def test_every_source_of_the_recipe_is_a_corpus(path: str) -> None:
    groups = load_config(path).data.groups().values()
    sources = {corpus.source for corpus in corpora().values()}
    assert {group.source for group in groups} <= sources
    english = {name: group.languages for name, group in load_config(path).data.groups().items()}
    for name, corpus in corpora().items():
        if corpus.language and name in english:  # a group of the same name as its source
            assert english[name] == [corpus.language]


def test_the_documented_table_is_up_to_date() -> None:
    written = Path("docs/data.md").read_text()
    assert table(rows()) in written, "docs/data.md: replace its table with the output of python -m data_prep.sources"


def test_shares_of_a_phase_sum_to_one() -> None:
    for phase in ("phase1", "phase2", "phase3-eng", "phase3-cont", "phase3-all"):
        shares = [row[phase] for row in rows() if row[phase].endswith("%")]
        assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=0.05)


def test_all_scripts_of_a_language_are_one_stream_and_removed_text_is_none(tmp_path: Path) -> None:
    mirror = write(
        tmp_path,
        *(f"{FINEWEB2}/{name}/train/000_00000.parquet" for name in ("srp_Cyrl", "srp_Latn", "fao_Latn", "und_Cyrl")),
        f"{FINEWEB2}/srp_Latn_removed/train/000_00000.parquet",
        f"{FINEWEB2}/srp_Cyrl/test/000_00000.parquet",
        f"{FINEWEB2}/srp_Cyrl/train/.cache.parquet",
    )
    inputs = corpus_inputs("fineweb2", mirror=str(mirror))
    assert {stream: of(files, mirror / FINEWEB2) for stream, files in inputs.items()} == {
        ("fineweb2", "fao"): ["fao_Latn/train/000_00000.parquet"],
        ("fineweb2", "srp"): ["srp_Cyrl/train/000_00000.parquet", "srp_Latn/train/000_00000.parquet"],
    }
    path = mirror / FINEWEB2 / "fao_Latn/train/000_00000.parquet"
    size, stamp = path.stat().st_size, str(path.stat().st_mtime_ns)
    assert inputs["fineweb2", "fao"] == (InputFile(str(path), size, stamp),)
    assert list(corpus_inputs("fineweb2", ["sr"], str(mirror))) == [("fineweb2", "srp")]
    with pytest.raises(ValueError, match="has no folder of xho: leave the language out"):
        corpus_inputs("fineweb2", ["fao", "xho"], str(mirror))


def test_fineweb2_hq_makes_streams_of_its_own(tmp_path: Path) -> None:
    names = ("deu_Latn/a.parquet", "cmn_Hani/a.parquet", "README.md")
    mirror = write(tmp_path, *(f"epfml/FineWeb2-HQ/{name}" for name in names))
    assert list(corpus_inputs("fineweb2-hq", mirror=str(mirror))) == [("fineweb2-hq", "cmn"), ("fineweb2-hq", "deu")]


def test_languages_of_wikipedia_are_made_canonical(tmp_path: Path) -> None:
    mirror = write(tmp_path, *(f"jhu-clsp/megawika-2/data/{code}/{code}-0.jsonl" for code in ("ps", "zh", "fa", "no")))
    assert [language for _, language in corpus_inputs("megawika", mirror=str(mirror))] == ["cmn", "fas", "nob", "pbt"]


def test_a_corpus_of_one_language_is_found_at_any_depth_and_read(tmp_path: Path) -> None:
    names = ("gsm8k/train.jsonl", "tulu_math/a/train_0000.json")
    mirror = write(tmp_path, *(f"allenai/dolmino-mix-1124/data/math/{name}" for name in names))
    (files,) = corpus_inputs("dolmino-math", mirror=str(mirror)).values()
    folder = mirror / "allenai/dolmino-mix-1124/data/math"
    assert of(files, folder) == list(names)
    assert [list(read_texts(file)) for file in files] == [[f"allenai/dolmino-mix-1124/data/math/{n}"] for n in names]


def test_the_documented_part_of_dclm_is_15_of_its_100_folders(tmp_path: Path) -> None:
    (pattern,) = re.findall(r"--files '(filtered/[^']+)'", Path("docs/data.md").read_text())
    corpus = corpora()["dclm"].repository
    folders = [f"global-shard_{i:02}_of_10/local-shard_{j}_of_10" for i in range(1, 11) for j in range(10)]
    mirror = write(tmp_path, *(f"{corpus}/filtered/a/b/processed_data/{name}/c.parquet" for name in folders))
    ((stream, files),) = hf_inputs(corpus, "main", pattern, "dclm", "eng", mirror=str(mirror)).items()
    assert (stream, len(files)) == (("dclm", "eng"), 15)


def test_a_numbered_corpus_is_whole_or_refused(tmp_path: Path) -> None:
    mirror = write(tmp_path, *(f"allenai/dolma/books/books-000{number}.json.gz" for number in range(3)))
    (files,) = corpus_inputs("books", mirror=str(mirror)).values()
    assert of(files, mirror / "allenai/dolma/books") == [f"books-000{number}.json.gz" for number in range(3)]
    Path(files[1].path).unlink()
    with pytest.raises(FileNotFoundError, match=r"books-0001.json.gz.*the mirror must hold allenai/dolma/books"):
        corpus_inputs("books", mirror=str(mirror))


def test_links_in_a_mirror_are_what_they_lead_to(tmp_path: Path) -> None:
    store = write(tmp_path / "store", "blob", "fao/train/a.parquet")
    mirror = write(tmp_path / "mirror", f"{FINEWEB2}/isl_Latn/train/b.parquet")
    (mirror / FINEWEB2 / "fao_Latn").symlink_to(store / "fao")
    (mirror / FINEWEB2 / "isl_Latn/train/c.parquet").symlink_to(store / "blob")
    inputs = corpus_inputs("fineweb2", mirror=str(mirror))
    assert {language: of(files, mirror / FINEWEB2) for (_, language), files in inputs.items()} == {
        "fao": ["fao_Latn/train/a.parquet"],
        "isl": ["isl_Latn/train/b.parquet", "isl_Latn/train/c.parquet"],
    }
    assert inputs["fineweb2", "isl"][1].size == (store / "blob").stat().st_size
    (store / "blob").unlink()
    with pytest.raises(FileNotFoundError, match=r"c.parquet is a link to nowhere"):
        corpus_inputs("fineweb2", mirror=str(mirror))


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    math = "allenai/dolmino-mix-1124/data/math"
    mirror = write(tmp_path / "mirror", f"{math}/x/a.jsonl")
    other = write(tmp_path / "other", "b.jsonl")
    (mirror / math / "x/up").symlink_to(mirror)
    (mirror / math / "x/over").symlink_to(other)
    (other / "back").symlink_to(mirror / math / "x")
    (files,) = corpus_inputs("dolmino-math", mirror=str(mirror)).values()
    assert of(files, mirror / math) == ["x/a.jsonl", "x/over/b.jsonl"]


def test_what_is_hidden_is_told_below_the_mirror_alone(tmp_path: Path) -> None:
    names = ("deu_Latn/a.parquet", "deu_Latn/.b.parquet", ".cache/c.parquet")
    mirror = write(tmp_path / ".hidden", *(f"epfml/FineWeb2-HQ/{name}" for name in names))
    (files,) = corpus_inputs("fineweb2-hq", mirror=str(mirror)).values()
    assert of(files, mirror / "epfml/FineWeb2-HQ") == ["deu_Latn/a.parquet"]


def test_a_mirror_may_lie_on_another_file_system() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/mirror/epfml/FineWeb2-HQ/deu_Latn/a.parquet", b"12345")
    try:
        (file,) = corpus_inputs("fineweb2-hq", mirror="memory://mirror")["fineweb2-hq", "deu"]
        assert (file.path, file.size) == ("memory://mirror/epfml/FineWeb2-HQ/deu_Latn/a.parquet", 5)
        with fsspec.open(file.path) as opened:
            assert opened.read() == b"12345"
        memory.pipe("/mirror/epfml/FineWeb2-HQ/deu_Latn/a.parquet", b"54321")
        (changed,) = corpus_inputs("fineweb2-hq", mirror="memory://mirror")["fineweb2-hq", "deu"]
        assert changed.stamp != file.stamp
    finally:
        memory.rm("/mirror", recursive=True)


HUB = [f"data/{name}/train/000_00000.parquet" for name in ("deu_Latn", "fao_Latn", "fao_Latn_removed")]
Listed = list[tuple[str, str, str]]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listed]:
    """A hub whose repositories hold HUB; what was listed there: (repository, revision, folder)."""
    calls: Listed = []

    def list_repo_tree(
        _: HfApi, repo_id: str, path: str, *, recursive: bool, revision: str, **__: object
    ) -> Iterator[RepoFile | RepoFolder]:
        calls.append((repo_id, revision, path))
        below = [name.removeprefix(f"{path}/").split("/") for name in HUB if name.startswith(f"{path}/")]
        for parts in below:
            for depth in range(1, len(parts) + 1 if recursive else 2):
                name = "/".join([path, *parts[:depth]])
                yield RepoFile(path=name, size=7, oid="b10b") if name in HUB else RepoFolder(path=name, oid="7ree")

    monkeypatch.setattr(HfApi, "list_repo_tree", list_repo_tree)
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: SimpleNamespace())
    HfFileSystem.clear_instance_cache()
    yield calls
    HfFileSystem.clear_instance_cache()


def test_files_on_the_hub_are_named_with_their_revision(listed: Listed) -> None:
    inputs = corpus_inputs("fineweb2", ["fao"])
    path = "hf://datasets/HuggingFaceFW/fineweb-2@main/data/fao_Latn/train/000_00000.parquet"
    assert inputs == {("fineweb2", "fao"): (InputFile(path, 7, "blob_id b10b"),)}
    assert listed[0] == ("HuggingFaceFW/fineweb-2", "main", "data")
    assert not any("deu" in folder or "removed" in folder for *_, folder in listed)  # only what is asked for


def test_all_languages_on_the_hub_are_listed_at_once(listed: Listed) -> None:
    inputs = corpus_inputs("fineweb2", revision="fb08250")
    assert [language for _, language in inputs] == ["deu", "fao"]
    assert set(listed) == {("HuggingFaceFW/fineweb-2", "fb08250", "data")}


def test_any_data_set_on_the_hub_can_be_named(listed: Listed) -> None:
    inputs = hf_inputs("some/corpus", "v1", "data/fao_Latn/**/*.parquet", "mine", "fo")
    path = "hf://datasets/some/corpus@v1/data/fao_Latn/train/000_00000.parquet"
    assert inputs == {("mine", "fao"): (InputFile(path, 7, "blob_id b10b"),)}
    inputs = hf_inputs("some/corpus", "v1", "data/{language}/train/*.parquet", "mine", languages=["fao"])
    assert inputs == {("mine", "fao"): (InputFile(path, 7, "blob_id b10b"),)}
    assert {revision for _, revision, _ in listed} == {"v1"}
    for files, language in (("data/*.parquet", ""), ("data/{language}/*.parquet", "fao")):
        with pytest.raises(ValueError, match="give --language, or"):
            hf_inputs("some/corpus", "v1", files, "mine", language)


def gated() -> GatedRepoError:
    response = Response()
    response.status_code = 403
    return GatedRepoError("403 Client Error", response=response)


@pytest.mark.parametrize(("error", "message"), [
    (ConnectionError("no route"), "no route; without network, give --mirror FOLDER that holds HuggingFaceFW/fineweb-2"),
    (RuntimeError("expired"), r"fineweb-2@main cannot be read: expired; look at your network and credentials; without"),
    (gated(), r"accept its terms at https://huggingface.co/datasets/HuggingFaceFW/fineweb-2, then `hf auth login`"),
])  # fmt: skip
def test_a_hub_that_does_not_answer_is_told_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, listed: Listed, error: Exception, message: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(HfApi, "list_repo_tree", refuse)
    with pytest.raises(OSError, match=message):
        corpus_inputs("fineweb2", ["fao"])


@pytest.mark.parametrize(("name", "message"), [
    ("fineweb", r"no corpus is called 'fineweb'; did you mean fineweb2\?"),
    ("code-prolong", "holds token ids of Llama 3, no text"),
])  # fmt: skip
def test_what_is_no_corpus_of_text_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corpus_inputs(name)


def test_a_revision_of_what_has_none_and_a_file_of_no_known_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--revision v1_6: books lies at https://olmo-data.org/dolma-v1_7, which has"):
        corpus_inputs("books", revision="v1_6")
    mirror = write(tmp_path, "allenai/dolmino-mix-1124/data/math/gsm8k.json.bz2")
    with pytest.raises(ValueError, match=r"gsm8k.json.bz2 is of no known format"):
        corpus_inputs("dolmino-math", mirror=str(mirror))


def test_a_mirror_may_lie_below_a_folder_of_any_name(tmp_path: Path) -> None:
    mirror = write(tmp_path / "copies [v1]", f"{FINEWEB2}/fao_Latn/train/000_00000.parquet")
    assert list(corpus_inputs("fineweb2", mirror=str(mirror))) == [("fineweb2", "fao")]


def test_an_empty_mirror_is_told_by_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the mirror must hold HuggingFaceFW/fineweb-2/data/\{lang"):
        corpus_inputs("fineweb2", mirror=str(tmp_path))
    (tmp_path / FINEWEB2 / "fao_Latn/train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"data/fao_Latn/train/\*.parquet: no such file"):
        corpus_inputs("fineweb2", mirror=str(tmp_path))
