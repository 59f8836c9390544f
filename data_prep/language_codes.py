"""One name for a language, however it was written: zh, zh-Hans, zho and FineWeb2's cmn_Hani are all `cmn`.

A name is the code of ISO 639-3, then, where the text is in another script than the language's main one, that script
(ISO 15924) in lower case, then free variants: `uzn_latn`, `deu_1996`, `por_BR`. Source code is `code`; digits alone
stand for a language that has no code, as in the corpus of the Universal Declaration of Human Rights.

Which codes there are, which are macrolanguages and which retired is ISO 639-3's table, from the package iso639-lang;
which member a macrolanguage stands for is CLDR's rule, from the package langcodes. Main scripts: `mmbert.languages`.
"""
import difflib
import re
import textwrap
from functools import cache

import iso639
import langcodes
from iso639.exceptions import DeprecatedLanguageValue, InvalidLanguageValue

from mmbert.languages import table

SEPARATOR = re.compile(r"[-_]")
OWN = re.compile(r"[a-z]{3}(_([a-z0-9]+|[A-Z]{2}))+")
"""A name that is written our way already, with more than the code."""
UNIFIED_SCRIPTS = ("Hani", "Hang")
"""Main scripts that BCP 47 writes in another way: zh-Hans and ko-Kore are what FineWeb2 calls cmn_Hani and kor_Hang."""
LIKE = 0.86
"""How like a name must be, by difflib, to be the one that was meant: Portugese is, the folder train is not Tring."""
SAME = 1
"""CLDR's distance of codes that mean one language: 0 of `ar` and `arb`, 1 of `no` and `nob`; `ms` to `ind` is 34."""


def canonical(code: str) -> str:
    """The name of a language's streams.

    A name that is written our way keeps its parts, even the main script: whoever has `srp_cyrl` beside `srp_latn`
    means it so.

    Raises:
        ValueError: the code is not known, stands for several languages, or has no such script.
    """
    first, *parts = SEPARATOR.split(code)
    if code == "code" or (code.isascii() and code.isdecimal()):
        return code
    if not all(part.isalnum() and part.isascii() for part in (first, *parts)):
        raise ValueError(f"language {code!r}: a name holds letters, digits, '_' and '-' alone")
    parts = [_part(part) for part in parts]
    for part in parts:
        if _is_script(part) and not langcodes.tag_is_valid(f"und-{part}"):
            raise ValueError(f"language {code!r}: {part!r} is no script of ISO 15924")
    if OWN.fullmatch(code) and (first in table() or iso639.is_language(first, "pt3")):
        return "_".join([first, *parts])
    language = individual(first.lower())
    if parts and parts[0].title() in main_scripts(language):
        del parts[0]
    return "_".join([language, *parts])


@cache  # so that it is told once
def input_language(code: str) -> str:
    """`canonical` of an input; tells where one was chosen of several languages, for the text may be in another."""
    name, asked = canonical(code), SEPARATOR.split(code)[0].lower()
    language = iso639.Lang(asked) if iso639.is_language(asked) else None
    if language and language.scope() == "Macrolanguage" and language.pt3 != name[:3]:
        chosen = f"{name} ({_name(name[:3])})"
        print(f"language {code!r} ({language.name}) is several, and taken for {chosen}: rename it if it is another")
    return name


@cache
def individual(code: str) -> str:
    """The ISO 639-3 code of one language, for any code of ISO 639 in lower case.

    Codes of the recipe's list stay as they are, also the few that are no language of ISO 639-3's (any more).
    """
    if code in table():
        return code
    try:
        language = iso639.Lang(code) if len(code) in (2, 3) else None
    except DeprecatedLanguageValue as error:
        if not error.change_to:
            reason = textwrap.shorten(error.ret_remedy, 160) or "it has no successor"
            raise ValueError(f"language {code!r} ({error.name}) is retired: {reason}") from None
        return individual(error.change_to)
    except InvalidLanguageValue:
        language = None
    if language is None or not language.pt3:
        raise ValueError(f"language {code!r} is not known; {nearest(code)}")
    return member(language) if language.scope() == "Macrolanguage" else language.pt3


def member(macrolanguage: iso639.Lang) -> str:
    """The language that is meant by a macrolanguage: CLDR's, or else the only one that the recipe trains on."""
    if macrolanguage.pt3 in table():
        return macrolanguage.pt3
    codes = [language.pt3 for language in macrolanguage.individuals() if language.pt3]  # retired members have none
    trained = [code for code in codes if code in table()] or codes
    by_cldr = [code for code in trained if langcodes.tag_distance(macrolanguage.pt3, code) <= SAME]
    for candidates in (by_cldr, trained):
        if len(candidates) == 1:
            return candidates[0]
    several = ", ".join(f"{code} ({iso639.Lang(code).name})" for code in trained)
    raise ValueError(f"language {macrolanguage.pt3!r} ({macrolanguage.name}) is several: name one of {several}")


def main_scripts(code: str) -> set[str]:
    """ISO 15924 codes of the script that most of a language's text is in.

    For a language outside the recipe's list it is CLDR's likely script, which is Latin where CLDR knows nothing.
    """
    language = table().get(code)
    script = language.script if language else ""
    if script and script not in UNIFIED_SCRIPTS:
        return {script}
    return {script, str(langcodes.Language.get(code).maximize().script)}


def nearest(code: str) -> str:
    """A sentence for an error: the language of nearly that English name. Codes tell nothing: text is near to `tet`."""
    if found := difflib.get_close_matches(code.lower(), _by_name(), n=1, cutoff=LIKE):
        right = _by_name()[found[0]]
        return f"did you mean {right} ({_name(right)})?"
    return "see ISO 639-3, https://iso639-3.sil.org"


@cache
def _by_name() -> dict[str, str]:
    """English name, in lower case -> code, of all of ISO 639-3 and the recipe's list."""
    codes = [language.pt3 for language in iso639.iter_langs() if language.pt3]
    return {_name(code).lower(): code for code in (*codes, *table())}


def _name(code: str) -> str:
    return table()[code].name if code in table() else iso639.Lang(code).name


def _part(part: str) -> str:
    """A part behind the code, written our way: a region of two letters is upper case, all else lower case."""
    return part.upper() if len(part) == 2 and part.isalpha() else part.lower()


def _is_script(part: str) -> bool:
    return len(part) == 4 and part.isalpha()
