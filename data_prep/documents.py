"""Reading a text folder: one file per language, `<language>.jsonl` or `<language>.txt`.

* `.jsonl`: one object a line, `{"text": ...}`, with an `"id"` if you like; no other keys.
* `.txt`: documents separated by blank lines.

Both are UTF-8. A document must hold more than white space.
"""
import json
from pathlib import Path

from mmbert.manifest import NAME

SUFFIXES = (".jsonl", ".txt")
KEYS = {"id", "text"}


def find_language_files(folder: Path) -> dict[str, Path]:
    """Language -> its file, sorted by language.

    Raises:
        FileNotFoundError: no such folder, or it holds no language.
        ValueError: a file is no language file, or a language has two.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"text folder {folder} does not exist")
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*")):  # hidden files are the system's
        if path.suffix not in SUFFIXES or not NAME.fullmatch(path.stem):
            raise ValueError(
                f"{path}: a text folder holds only <language>.jsonl and <language>.txt, "
                "a language's name only letters, digits, '_' and '-'"
            )
        if path.stem in files:
            raise ValueError(f"{folder} holds both {files[path.stem].name} and {path.name}: remove one")
        files[path.stem] = path
    if not files:
        raise FileNotFoundError(f"text folder {folder} holds no <language>.jsonl or <language>.txt")
    return files


def read_language_list(path: Path) -> list[str]:
    """Languages of a list file: one a line, in order; '#' begins a comment."""
    if not path.is_file():
        raise FileNotFoundError(f"language list {path} does not exist")
    languages = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    languages = [language for language in languages if language]
    for language in languages:
        if not NAME.fullmatch(language) or languages.count(language) > 1:
            raise ValueError(f"{path}: {language!r} is not one name, or stands there twice")
    return languages


def parse_documents(path: Path, content: bytes) -> list[str]:
    """The texts of one language file.

    Args:
        path: the file, for its suffix and for error messages.
        content: its bytes.

    Raises:
        ValueError: the file is empty, is not UTF-8, or a line is not a document; the message names the line.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it, for example with iconv") from None
    documents = _parse_jsonl(path, text) if path.suffix == ".jsonl" else _parse_paragraphs(text)
    if not documents:
        raise ValueError(f"{path} holds no document: fill it, or remove it")
    return documents


def _parse_jsonl(path: Path, content: str) -> list[str]:
    # Not splitlines(): U+2028 and its like may stand inside a JSON string.
    lines = content.removesuffix("\n").split("\n") if content else []
    return [_parse_line(f"{path}:{number}", line) for number, line in enumerate(lines, start=1)]


def _parse_line(where: str, line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ValueError(f'{where} is not an object with a "text": write {{"text": "..."}}')
    if unknown := sorted(value.keys() - KEYS):
        raise ValueError(f"{where} has unknown keys {', '.join(unknown)}: keep only text and id")
    text: str = value["text"]
    if not text.strip():
        raise ValueError(f"{where} has an empty text: remove the line")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} holds half a surrogate pair, which is no character: repair the text") from None
    return text


def _parse_paragraphs(content: str) -> list[str]:
    documents: list[list[str]] = [[]]
    for line in content.split("\n"):
        if line.strip():
            documents[-1].append(line.removesuffix("\r"))
        elif documents[-1]:
            documents.append([])
    return ["\n".join(lines) for lines in documents if lines]
