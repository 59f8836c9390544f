"""Name, script and family of the recipe's languages, from languages.csv (docs/data.md says where that comes from)."""
import csv
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Language:
    """What is known of a language; "" where no source says.

    Attributes:
        code: ISO 639-3, or `code` for source code.
        script: ISO 15924, such as Latn: the one that most of its text is in.
    """

    code: str
    name: str
    script: str
    family: str


@cache
def table() -> dict[str, Language]:
    """All languages by code."""
    with Path(__file__).with_name("languages.csv").open(encoding="utf-8", newline="") as file:
        return {row["code"]: Language(**row) for row in csv.DictReader(file)}


def find(code: str) -> Language | None:
    """The language that a code begins with; None if it is in no list of the recipe.

    Of `uzn_cyrl` or `deu_1996` the first part is the language; as in BCP 47, a part of four letters is a script.
    """
    first, *rest = code.split("_")
    language = table().get(first)
    scripts = [part.title() for part in rest if len(part) == 4 and part.isalpha()]
    return replace(language, script=scripts[0]) if language and scripts else language


def script_of(code: str) -> str:
    """ISO 15924, as of `find`; "unknown" where it is."""
    language = find(code)
    return language.script if language and language.script else "unknown"
