"""What the optional filters do to a language: its thresholds, its words, its identification."""
import os
import subprocess
import sys

import pytest
from datatrove.data import Document

from data_prep.clean_filters import THRESHOLDS, Cleaning, labels_of, make_filters
from data_prep.words import SPACELESS, is_spaceless, words_of
from tests.synthetic_corpus import make_texts

QUALITY = ("repetition", "gopher", "fineweb")
FINEWEB2 = """dup_line_frac: 0.4
dup_n_grams: [[5, 0.2], [6, 0.19], [7, 0.18], [8, 0.17], [9, 0.16], [10, 0.15]]
language_score: 0.5
line_punct_thr: 0.04
max_avg_word_length: 11
max_non_alpha_words_ratio: 0.7
min_avg_word_length: 2
new_line_ratio: 1
stopwords: [og, er]
top_n_grams: [[2, 0.1], [3, 0.1], [4, 0.1]]
"""


def filters_of(language, **settings):
    return make_filters(Cleaning(**settings), language, lambda _: None)[0]


def batched(words, size):
    return [words[start : start + size] for start in range(0, len(words), size)]


def reason(filters, text):
    """Which rule drops a text; None if it is kept."""
    for each in filters.values():
        result = each.filter(Document(text, id=""))
        if result is not True:
            return result[1] if isinstance(result, tuple) else each.name
    return None


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Øll menniskju, tey eru fødd.", ["Øll", "menniskju,", "tey", "eru", "fødd."]),
        ("人人生而自由、abc 在", ["人", "人", "生", "而", "自", "由", "、abc", "在"]),
        ("ทุกคน", ["ทุ", "ก", "ค", "น"]),
        ("འགྲོ་བ་མི", ["འགྲོ", "བ", "མི"]),
        ("ሰው፡ሁሉ", ["ሰው", "ሁሉ"]),
        ("모든 인간은", ["모든", "인간은"]),
        ("\u200b", ["\u200b"]),
    ],
)
def test_words_of_scripts_with_and_without_spaces(text, expected):
    assert words_of("any", "unicode").word_tokenize(text) == expected


def test_scripts_without_spaces_are_those_whose_letters_are_words_alone():
    assert [is_spaceless(language) for language in ("cmn", "jpn", "tha")] == [True] * 3
    assert [is_spaceless(language) for language in ("kor", "fao", "bod")] == [False] * 3
    assert {"Hani", "Thai", "Khmr"} <= SPACELESS.keys()


def test_a_package_that_datatrove_needs_for_a_language_is_named():
    with pytest.raises(ValueError, match=r"--words datatrove: .*spacy"):
        words_of("fao", "datatrove").word_tokenize("a")


@pytest.mark.parametrize("language", ["rus", "hin", "jpn", "tha", "arb", "fin", "kor", "amh"])
def test_ordinary_text_of_any_script_passes_and_bad_text_does_not(language):
    filters = filters_of(language, quality=QUALITY)
    assert list(filters) == list(QUALITY)
    text = max(make_texts(language, 60_000, seed=0), key=len)
    assert reason(filters, text) is None
    assert reason(filters, text[:20]) in ("gopher_short_doc", "top_2_gram")
    assert reason(filters, "\n".join([text[:200]] * 20)) == "dup_line_frac"
    assert reason(filters, " ".join("0123456789")) is not None
    assert reason(filters, "".join(f"{letter}\n" for letter in text if not letter.isspace())) == "dup_line_frac"


def test_english_stop_words_are_asked_of_english_alone():
    text = max(make_texts("eng", 60_000, seed=0), key=len)
    assert reason(filters_of("eng", quality=("gopher",)), text) == "gopher_enough_stop_words"
    assert reason(filters_of("fao", quality=("gopher",)), text) is None


def test_thresholds_of_fineweb2_are_a_languages_own(tmp_path):
    (tmp_path / "fao_Latn.yml").write_text(FINEWEB2)
    (tmp_path / "cmn_Hani.yml").write_text(FINEWEB2)
    settings = {"quality": QUALITY, "thresholds": str(tmp_path)}
    repetition, gopher, fineweb = filters_of("fao", **settings).values()
    assert (repetition.dup_line_frac, repetition.top_n_grams[0], repetition.dup_para_frac) == (0.4, [2, 0.1], 0)
    assert (gopher.max_avg_word_length, gopher.stop_words, gopher.min_stop_words) == (11, {"og", "er"}, 2)
    assert (fineweb.line_punct_thr, fineweb.new_line_ratio, fineweb.char_duplicates_ratio) == (0.04, 1, 0.1)
    repetition, gopher, _ = filters_of("cmn", **settings).values()  # of words, which a letter is not
    assert (repetition.dup_line_frac, repetition.dup_n_grams, gopher.max_avg_word_length) == (0.4, (), None)
    with pytest.raises(ValueError, match="isl is not known to repetition, gopher, fineweb"):
        filters_of("isl", **settings)
    assert make_filters(Cleaning(**settings, skip_unknown=True), "isl", lambda _: None) == ({}, list(QUALITY))
    assert len(filters_of("eng", **settings)) == 3  # FineWeb2 has no English: datatrove's own thresholds
    (tmp_path / "deu_Latn.yml").write_text("dup_line_frac: 0.4\n")
    with pytest.raises(ValueError, match=r"deu_Latn\.yml must have the keys " + ", ".join(sorted(THRESHOLDS))):
        filters_of("deu", **settings)
    for number, content in enumerate((b'<html lang="en" data: x>\n\t<p>: - [\n', b"stopwords: \xff\n")):
        (tmp_path / f"nno_{number}.yml").write_bytes(content)
        with pytest.raises(ValueError, match=rf"nno_{number}\.yml must have the keys"):
            filters_of(f"nno_{number}", **settings)


# ------------------------------------------------------------------------------------------- language identification
TRAIN = """
import fasttext, sys
options = {"dim": 16, "minn": 2, "maxn": 3, "bucket": 20_000, "epoch": 20, "thread": 1, "verbose": 0}
fasttext.train_supervised(sys.argv[1], **options).save_model(sys.argv[2])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of three invented languages, with labels as GlotLID and lid.176 write them."""
    pytest.importorskip("fasttext", reason="pip install -r requirements-clean.txt")
    folder = tmp_path_factory.mktemp("model")
    labels = {"fao": "fao_Latn", "isl": "is", "ell": "ell_Grek"}
    lines = [
        f"__label__{label} {' '.join(words)}\n"
        for language, label in labels.items()
        for text in list(make_texts(language, 100_000, seed=0))[::2]
        for words in batched(text.split(), 50)
    ]
    (folder / "train.txt").write_text("".join(lines))
    # This build of fastText trains on memory that it has not set, which may give NaN: glibc sets it to zero.
    environment = {**os.environ, "MALLOC_PERTURB_": "255"}
    files = [str(folder / "train.txt"), str(folder / "model.bin")]
    subprocess.run([sys.executable, "-c", TRAIN, *files], env=environment, check=True)
    return str(folder / "model.bin")


def test_documents_of_other_languages_are_dropped(model):
    assert labels_of(model) == {"fao": ["fao_Latn"], "isl": ["is"], "ell": ["ell_Grek"]}
    identify = filters_of("isl", model=model, min_score=0.5)["language-id"]
    texts = {language: list(make_texts(language, 100_000, seed=0))[1::2] for language in ("isl", "fao", "ell")}
    for language, several in texts.items():
        assert {bool(identify.filter(Document(text, id=""))) for text in several} == {language == "isl"}


def test_the_least_score_is_the_languages_own_where_thresholds_say_it(model, tmp_path):
    (tmp_path / "fao_Latn.yml").write_text(FINEWEB2)
    settings = {"model": model, "thresholds": str(tmp_path)}
    assert filters_of("fao", **settings)["language-id"].language_threshold == 0.5
    assert filters_of("fao", **settings, min_score=0.9)["language-id"].language_threshold == 0.9
    with pytest.raises(ValueError, match="isl is not known to language-id"):
        filters_of("isl", **settings)


def test_a_language_without_a_label_is_refused_or_skips(model):
    with pytest.raises(ValueError, match="swh is not known to language-id: leave it out, or give --skip-unknown"):
        filters_of("swh", model=model, min_score=0.5)
    assert filters_of("swh", model=model, min_score=0.5, skip_unknown=True) == {}


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--language-id .*no\.bin does not exist"):
        filters_of("fao", model=str(tmp_path / "no.bin"), min_score=0.5)
