"""Words of a text in any language, without a package for each.

datatrove's filters and MinHash cut texts into words with spaCy, Stanza and a dozen more packages, one for every few
languages. Here a word is what lies between spaces, as in Gopher's paper; in the scripts that write none it is one
letter with its marks.
"""
import regex
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

from mmbert import languages

SPACELESS = {
    "Hani": "Han",
    "Jpan": "Hiragana Katakana",
    "Bopo": "Bopomofo",
    "Yiii": "Yi",
    "Thai": "Thai",
    "Laoo": "Lao",
    "Khmr": "Khmer",
    "Mymr": "Myanmar",
    "Lana": "Tai_Tham",
    "Tale": "Tai_Le",
    "Talu": "New_Tai_Lue",
    "Java": "Javanese",
    "Bali": "Balinese",
}
"""Scripts that write no space between words: ISO 15924 -> names in Unicode."""
LETTER = "".join(rf"\p{{{name}}}" for names in SPACELESS.values() for name in names.split())
SEPARATOR = r"\s\u200b\u0f0b\u0f0c\u1361"  # the last: Tibetan's dots between syllables, Ethiopic's between words
WORD = regex.compile(rf"[{LETTER}]\p{{M}}*|[^{SEPARATOR}{LETTER}]+")


class UnicodeWords(WordTokenizer):
    """Words of any language, for datatrove's blocks."""

    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text) or [text]  # filters divide by the number of words

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError("no step of data_prep.clean cuts sentences")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError("no step of data_prep.clean cuts sentences")


UNICODE_WORDS = UnicodeWords()


def words_of(language: str, how: str) -> WordTokenizer:
    """What cuts a language's texts into words: ours, or the one that datatrove assigns to the language.

    Raises:
        ValueError: datatrove assigns none, or it needs a package that is not installed.
    """
    if how == "unicode":
        return UNICODE_WORDS
    found = languages.find(language)
    name = f"{language.partition('_')[0]}_{found.script}" if found and found.script else language
    try:
        return load_word_tokenizer(name)
    except ImportError as error:
        raise ValueError(f"--words datatrove: {' '.join(str(error).split())}") from None


def is_spaceless(language: str) -> bool:
    """Whether a language's words are written without spaces, as far as its script says."""
    found = languages.find(language)
    return found is not None and found.script in SPACELESS
