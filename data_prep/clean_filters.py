"""Which of datatrove's filters a language passes through, with which thresholds.

datatrove's own thresholds are those of English. FineWeb2 computed its own for each language, and publishes them as
`configs/<code>_<Script>.yml` in github.com/huggingface/fineweb-2: `--thresholds` names such a folder. Without it the
rules that presuppose English (stop words, lengths of words, ends of lines) are left out for all other languages; rules
that count words are left out for scripts without spaces.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter, LanguageFilter
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.lid import FT176LID

from data_prep.documents import Reading
from data_prep.language_codes import canonical
from data_prep.words import is_spaceless, words_of
from mmbert import languages

QUALITY = ("repetition", "gopher", "fineweb")
LANGUAGE_ID = "language-id"
THRESHOLDS = {
    "dup_line_frac", "top_n_grams", "dup_n_grams", "line_punct_thr", "new_line_ratio", "min_avg_word_length",
    "max_avg_word_length", "max_non_alpha_words_ratio", "stopwords", "language_score",
}  # fmt: skip
"""Keys of a file of FineWeb2's configs."""
Settings = dict[str, Any]


@dataclass(frozen=True)
class Cleaning:
    """What is done to every language.

    Attributes:
        quality: names of QUALITY, in their order.
        thresholds: folder of FineWeb2's configs, or None.
        words: what cuts texts into words, unicode or datatrove.
        model: fastText's file of language identification, or None.
        min_score: least probability of the language; None takes `language_score` of the thresholds.
        skip_unknown: a language that the model or the thresholds do not know skips that step; else it is an error.
        minhash: whether near duplicates are dropped.
        reading: how documents are read; their spelling is for data_prep.prepare.
        keep_dropped: whether what is dropped is written, and why.
    """

    quality: tuple[str, ...] = ()
    thresholds: str | None = None
    words: str = "unicode"
    model: str | None = None
    min_score: float | None = None
    skip_unknown: bool = False
    minhash: bool = False
    reading: Reading = field(default_factory=lambda: Reading(normalise=False))
    keep_dropped: bool = False


def make_filters(
    cleaning: Cleaning, language: str, writer_of: Callable[[str], object]
) -> tuple[dict[str, BaseFilter], list[str]]:
    """The filters of a language by name, in their order, and the names of those that it skips.

    Args:
        writer_of: name of a filter -> what takes the documents that it drops, as datatrove's writers do.

    Raises:
        ValueError: a filter does not know the language, and `skip_unknown` is False.
    """
    wanted = [*([LANGUAGE_ID] if cleaning.model else []), *(name for name in QUALITY if name in cleaning.quality)]
    filters: dict[str, BaseFilter] = {}
    skipped = []
    for name in wanted:
        made = _make_filter(cleaning, language, name, writer_of(name))
        if made is None:
            skipped.append(name)
        else:
            filters[name] = made
    if skipped and not cleaning.skip_unknown:
        raise ValueError(f"{language} is not known to {', '.join(skipped)}: leave it out, or give --skip-unknown")
    return filters, skipped


def _make_filter(cleaning: Cleaning, language: str, name: str, writer: object) -> BaseFilter | None:
    """One filter; None if what it needs does not know the language."""
    thresholds = read_thresholds(Path(cleaning.thresholds), language) if cleaning.thresholds else None
    if name == LANGUAGE_ID:
        assert cleaning.model is not None
        score = cleaning.min_score if cleaning.min_score is not None else (thresholds or {}).get("language_score")
        labels = labels_of(cleaning.model).get(language)
        return None if score is None or labels is None else language_filter(cleaning.model, labels, score, writer)
    if cleaning.thresholds and thresholds is None and language != "eng":  # FineWeb2 has no English
        return None
    common = {"language": words_of(language, cleaning.words), "exclusion_writer": writer}
    counts_words = cleaning.words != "unicode" or not is_spaceless(language)
    if name == "repetition":
        return GopherRepetitionFilter(**repetition_settings(thresholds, counts_words), **common)
    if name == "gopher":
        return GopherQualityFilter(**gopher_settings(language, thresholds, counts_words), **common)
    return FineWebQualityFilter(**fineweb_settings(language, thresholds), **common)


# ------------------------------------------------------------------------------------------------------------- quality
def repetition_settings(thresholds: Settings | None, counts_words: bool) -> Settings:
    """Arguments of GopherRepetitionFilter; with thresholds, as FineWeb2's pipeline has them."""
    settings: Settings = {}
    if thresholds:
        settings = {"dup_para_frac": 0, "dup_line_char_frac": 0, "dup_para_char_frac": 0}
        settings |= {key: thresholds[key] for key in ("dup_line_frac", "top_n_grams", "dup_n_grams")}
    return settings if counts_words else settings | {"top_n_grams": (), "dup_n_grams": ()}


def gopher_settings(language: str, thresholds: Settings | None, counts_words: bool) -> Settings:
    """Arguments of GopherQualityFilter; with thresholds, as FineWeb2's pipeline has them."""
    settings: Settings = {}
    if thresholds:
        settings = {"stop_words": thresholds["stopwords"], "min_stop_words": 2}
        keys = ("min_avg_word_length", "max_avg_word_length", "max_non_alpha_words_ratio")
        settings |= {key: thresholds[key] for key in keys}
    if not counts_words or (not thresholds and language != "eng"):
        settings |= {"min_avg_word_length": None, "max_avg_word_length": None, "min_stop_words": None}
    return settings


def fineweb_settings(language: str, thresholds: Settings | None) -> Settings:
    """Arguments of FineWebQualityFilter; those that are not English's are as in FineWeb2's pipeline."""
    if language == "eng":
        return {}
    settings: Settings = {"short_line_thr": 999, "char_duplicates_ratio": 0.1, "line_punct_thr": 0}
    return settings | {key: thresholds[key] for key in ("line_punct_thr", "new_line_ratio")} if thresholds else settings


@cache
def read_thresholds(folder: Path, language: str) -> Settings | None:
    """FineWeb2's thresholds of a language; None if the folder has none.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the file is not one of FineWeb2's.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--thresholds {folder} does not exist: it is `configs` of huggingface/fineweb-2")
    found = languages.find(language)
    names = [language, f"{language.partition('_')[0]}_{found.script}"] if found else [language]
    path = next((path for name in names if (path := folder / f"{name}.yml").is_file()), None)
    if path is None:
        return None
    try:
        settings = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:  # GitHub's page of the file, say, and not the file
        settings = None
    if not isinstance(settings, dict) or THRESHOLDS - settings.keys():
        raise ValueError(f"{path} must have the keys {', '.join(sorted(THRESHOLDS))}, as FineWeb2's configs have")
    return settings


# ------------------------------------------------------------------------------------------- language identification
class LocalModel(FT176LID):
    """datatrove's language identification with a model that is here: its own classes download theirs."""

    def __init__(self, path: str, labels: list[str]) -> None:
        super().__init__(labels)
        self._path = path

    @property
    def model(self) -> Any:
        return load_model(self._path)


@cache
def load_model(path: str) -> Any:
    """fastText's model, once a process.

    Raises:
        FileNotFoundError: no such file.
        ValueError: fasttext is not installed, or cannot read the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--language-id {path} does not exist: name a model of fastText, such as GlotLID's")
    try:
        from fasttext.FastText import _FastText
    except ImportError:
        raise ValueError("--language-id needs fastText: pip install -r requirements-clean.txt") from None
    return _FastText(path)


@cache
def labels_of(path: str) -> dict[str, list[str]]:
    """Canonical language -> its labels in a model, such as `fao_Latn` (GlotLID) or `fo` (lid.176)."""
    found: dict[str, list[str]] = {}
    for label in load_model(path).labels:
        name = label.removeprefix("__label__")
        try:
            found.setdefault(canonical(name), []).append(name)
        except ValueError:  # no language of ours: macrolanguages, "zxx" and the like
            continue
    return found


def language_filter(path: str, labels: list[str], min_score: float, writer: object) -> LanguageFilter:
    """Keeps what the model takes for one of the labels with more than `min_score`, in [0, 1]."""
    made = LanguageFilter(labels, language_threshold=min_score, exclusion_writer=writer)
    made.model = LocalModel(path, labels)
    return made


def check_known(cleaning: Cleaning, names: Iterable[str]) -> None:
    """Make every language's filters once, so that what cannot be is said before anything is done.

    Raises:
        ValueError: of the first language; see `make_filters`.
    """
    for language in names:
        make_filters(cleaning, language, lambda _: None)
