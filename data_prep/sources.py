"""The paper's corpora, and any data set on Hugging Face: their files, as inputs of data_prep.prepare.

    python -m data_prep.sources      # the table of sources.yaml that docs/data.md holds

Files are listed here, with size and stamp, and later read piece by piece, where they lie: on Hugging Face, at another
URL, or below a mirror, a folder (or URL of fsspec) that holds `<repository>/<path in the repository>`.
"""
import difflib
import glob
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
from omegaconf import OmegaConf

from data_prep.inputs import (
    InputFile,
    Inputs,
    Stream,
    file_system,
    files_alone,
    format_of,
    size_of,
    stamp_of,
    store_errors,
)
from data_prep.language_codes import canonical, input_language
from mmbert.config import RunConfig, load_config
from mmbert.recipe_table import BASE, table
from mmbert.typed import build

LANGUAGE, NUMBER = "{language}", "{number"
FEW = 20  # languages: for more of them, the whole corpus is listed at once


@dataclass(frozen=True)
class Corpus:
    """An entry of sources.yaml, which says what each key means."""

    title: str
    source: str
    repository: str
    revision: str
    licence: str
    files: str
    url: str = ""
    number: int = 0
    language: str = ""
    leave_out: list[str] = field(default_factory=list)
    join_scripts: bool = False
    tokens_of: str = ""
    unverified: str = ""

    def root(self, mirror: str | None) -> str:
        """The URL or folder that `files` lie below; fsspec reads Hugging Face's data sets as hf://datasets."""
        if mirror:
            return f"{mirror.rstrip('/')}/{self.repository}"
        return self.url or f"hf://datasets/{self.repository}@{self.revision}"


@cache
def corpora() -> dict[str, Corpus]:
    """All of sources.yaml, by name."""
    entries: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("sources.yaml")))
    return {name: build(Corpus, entry, name) for name, entry in entries.items()}


def corpus_inputs(
    name: str, languages: Sequence[str] | None = None, mirror: str | None = None, revision: str | None = None
) -> Inputs:
    """The input files of one of the paper's corpora.

    Args:
        name: as in sources.yaml.
        languages: of these alone, written in any way that `canonical` knows.
        mirror: read them below it, and not where they were published.
        revision: another than that of sources.yaml: a commit, to pin what `main` is today.

    Raises:
        ValueError: no such corpus, or what it publishes is no text.
        OSError: there are no files, no text in one of the languages, or no way to list them; names the remedy.
    """
    if name not in corpora():
        near = difflib.get_close_matches(name, corpora(), n=1) or sorted(corpora())
        raise ValueError(f"no corpus is called {name!r}; did you mean {' or '.join(near)}?")
    corpus = corpora()[name]
    if corpus.tokens_of and not mirror:
        raise ValueError(
            f"{corpus.repository} holds token ids of {corpus.tokens_of}, no text: decode them, "
            f"write {corpus.repository}/{corpus.files} below a folder, and give it as --mirror"
        )
    if revision and corpus.url:
        raise ValueError(f"--revision {revision}: {name} lies at {corpus.url}, which has none; leave it out")
    corpus = replace(corpus, revision=revision or corpus.revision)
    with _remedy(corpus, mirror):
        return matching_inputs(corpus.root(mirror), corpus, languages)


def hf_inputs(
    dataset: str,
    revision: str,
    files: str,
    source: str,
    language: str = "",
    languages: Sequence[str] | None = None,
    mirror: str | None = None,
) -> Inputs:
    """The input files of any data set on Hugging Face.

    Args:
        dataset: such as HuggingFaceFW/fineweb-2.
        revision: branch, tag or commit.
        files: pattern of their paths, with {language} where a folder is called by one.
        source: name of the streams.
        language: of all the text, where the pattern has no {language}.
        languages: of these alone.
        mirror: as of `corpus_inputs`.

    Raises:
        ValueError: the language is not given, or given twice.
        OSError: as of `corpus_inputs`.
    """
    if (LANGUAGE in files) == bool(language):
        raise ValueError(f"--files {files!r}: give --language, or {LANGUAGE} in the place of a folder's name, not both")
    corpus = Corpus(dataset, source, dataset, revision, "", files, language=language)
    with _remedy(corpus, mirror):
        return matching_inputs(corpus.root(mirror), corpus, languages)


def matching_inputs(root: str, corpus: Corpus, languages: Sequence[str] | None) -> Inputs:
    """The files below `root` that belong to a corpus, by stream; see `corpus_inputs`."""
    system, path = file_system(root)
    listing = Listing(system, path.rstrip("/"), root)
    wanted = None if languages is None else {canonical(code) for code in languages}
    if LANGUAGE in corpus.files and (wanted is None or len(wanted) > FEW):
        listing.remember(corpus.files.partition(LANGUAGE)[0])
    streams: dict[Stream, list[InputFile]] = {}
    for language, pattern in patterns(listing, corpus):
        if wanted is None or language in wanted:
            streams.setdefault((corpus.source, language), []).extend(listing.files(pattern, corpus.number))
    if missing := sorted((wanted or set()) - {language for _, language in streams}):
        raise ValueError(f"{root}/{corpus.files} has no folder of {', '.join(missing)}: leave the language out")
    if not streams:
        raise FileNotFoundError(f"{root}/{corpus.files}: no such folder")
    return {stream: tuple(sorted(files)) for stream, files in sorted(streams.items())}


def patterns(listing: "Listing", corpus: Corpus) -> Iterator[tuple[str, str]]:
    """Language and pattern of its files; those of several scripts come one after the other."""
    if LANGUAGE not in corpus.files:
        yield input_language(corpus.language), corpus.files
        return
    above, _, below = corpus.files.partition(LANGUAGE)
    for folder in listing.folders(above.rstrip("/")):
        if not any(fnmatch(folder, pattern) for pattern in corpus.leave_out):
            name = input_language(folder)
            yield name.partition("_")[0] if corpus.join_scripts else name, above + folder + below


@dataclass(frozen=True)
class Listing:
    """What lies below a folder of a file system."""

    system: fsspec.AbstractFileSystem
    path: str
    root: str

    def folders(self, below: str) -> list[str]:
        """Names of the folders in one folder; hidden ones are the system's, or the hub's."""
        infos = self.system.ls(f"{self.path}/{below}".rstrip("/"), detail=True)
        names = (info["name"].rstrip("/").rpartition("/")[2] for info in infos if info["type"] == "directory")
        return sorted(name for name in names if not name.startswith("."))

    def remember(self, below: str) -> None:
        """List a folder to its end: the hub's file system keeps that, and later asks nothing for each language."""
        self.system.find(f"{self.path}/{below}".rstrip("/"))

    def files(self, pattern: str, number: int) -> Iterator[InputFile]:
        """The files that a pattern names: all that {number} counts, or else at least one.

        Raises:
            FileNotFoundError: there are none, or one is missing.
        """
        if NUMBER in pattern:
            paths = [f"{self.path}/{pattern.format(number=place)}" for place in range(number)]
            infos = {path: self.system.info(path) for path in paths}
        else:
            found = self.system.glob(f"{glob.escape(self.path)}/{pattern}", detail=True)
            shown = {path: info for path, info in found.items() if "/." not in path.removeprefix(self.path)}
            infos = files_alone(shown)
        if not infos:
            raise FileNotFoundError(f"{self.root}/{pattern}: no such file")
        for path, info in infos.items():
            name = self.root + path.removeprefix(self.path)
            format_of(name)
            yield InputFile(name, size_of(name, info), stamp_of(name, info))


@contextmanager
def _remedy(corpus: Corpus, mirror: str | None) -> Iterator[None]:
    """Says of files that are not there, or cannot be listed, what can be done about it."""
    try:
        with store_errors(corpus.root(mirror)):
            yield
    except OSError as error:  # requests' and the hub's errors are such, too
        if type(error).__name__ == "GatedRepoError":  # by its name, for a mirror needs no huggingface_hub
            remedy = f"accept its terms at https://huggingface.co/datasets/{corpus.repository}, then `hf auth login`"
        elif mirror:
            remedy = f"the mirror must hold {corpus.repository}/{corpus.files}"
        else:
            remedy = f"without network, give --mirror FOLDER that holds {corpus.repository}/{corpus.files}"
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(f"{corpus.repository} cannot be listed: {textwrap.shorten(str(error), 200)}; {remedy}") from None


def rows() -> list[dict[str, str]]:
    """The table: one row a corpus, with its share of each phase's tokens."""
    configs = [load_config(path) for path in BASE]
    return [
        {
            "corpus": name,
            "of the paper's": corpus.title,
            "where": f"{corpus.repository} @ {corpus.revision}",
            "licence": corpus.licence,
            "files": f"`{corpus.files}`",
            **{config.name: percent(config, corpus.source) for config in configs},
            "not verified": corpus.unverified or "-",
        }
        for name, corpus in corpora().items()
    ]


def percent(config: RunConfig, source: str) -> str:
    """A source's share of a phase's tokens."""
    share = sum(group.share for group in config.data.groups().values() if group.source == source)
    return f"{share:.2%}" if share else "-"


if __name__ == "__main__":
    print(table(rows()))
