"""What phases will do, before they are paid for: a dry run that trains nothing and needs no rows.

    python -m mmbert.plan yamls/demo/phase1.yaml yamls/demo/phase2.yaml yamls/demo/phase3.yaml
    python -m mmbert.plan yamls/phase3-all.yaml --counts counts.csv --gpus 8 --gpu H100 --mfu 0.25
    python -m mmbert.plan --compare yamls/phase3-cont.yaml yamls/phase3-all.yaml --counts counts.csv

Several YAMLs in order are a chain. Writes plan.txt, plan.csv, plan.png and plan.html; exit status 1 where a phase would
not run.
"""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmbert.atomic import write_file
from mmbert.command import errors_in_one_line, local_folder, yamls_and_overrides
from mmbert.plan.chain import Chain, plan_chain
from mmbert.plan.compare import compare_csv, compare_text
from mmbert.plan.counts import read_counts
from mmbert.plan.figure import draw_chain
from mmbert.plan.page import chain_page
from mmbert.plan.phase import Hardware
from mmbert.plan.text import chain_csv, chain_text


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line of the program."""
    parser = argparse.ArgumentParser(
        prog="python -m mmbert.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("configs", nargs="+", metavar="YAML", help="phases in the order of training; key.sub=value changes them all")
    add("--compare", action="store_true", help="show two phases side by side instead")
    add("--counts", type=Path, help="CSV with the columns source,language,tokens[,rows], for want of rows")
    add("--gpus", type=int, default=8, help="number of GPUs (default 8)")
    add("--gpu", default="H100", help="their kind (default H100)")
    add("--mfu", type=float, default=0.25, help="share of their peak that is reached, an assumption (default 0.25)")
    add("--tokens-per-second", type=float, help="of all GPUs together, where it is known; in place of --mfu")
    add("--output", type=local_folder, help="folder of what is written (default: plan, in the first phase's run_root)")
    return parser.parse_args(arguments)


def write(folder: Path, name: str, contents: dict[str, str | bytes]) -> None:
    """`name`.ending for every ending -> content."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, content in contents.items():
        write_file(folder / f"{name}.{ending}", content if isinstance(content, bytes) else content.encode())


def plan(chain: Chain, folder: Path) -> str:
    """Write the four files; returns the text."""
    text, figure = chain_text(chain), draw_chain(chain)
    page = chain_page(chain, figure)
    write(folder, "plan", {"txt": text, "csv": chain_csv(chain), "png": figure, "html": page})
    return f"{text}\nWritten: {folder / 'plan.html'}, .txt, .csv and .png"


def compare(chain: Chain, folder: Path) -> str:
    """Write what differs between two phases; returns the text."""
    text = compare_text(chain)
    write(folder, "compare", {"txt": text, "csv": compare_csv(chain)})
    return f"{text}\nWritten: {folder / 'compare.txt'} and .csv"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; a mistake of the user ends it with one line and exit code 1."""
    options = parse_arguments(arguments)
    with errors_in_one_line():
        paths, overrides = yamls_and_overrides(options.configs)
        if not paths or (options.compare and len(paths) != 2):
            raise ValueError(f"{len(paths)} YAMLs: give " + ("two to compare" if options.compare else "at least one"))
        table = read_counts(options.counts) if options.counts else None
        hardware = Hardware.named(options.gpus, options.gpu, options.mfu, options.tokens_per_second)
        chain = plan_chain(paths, overrides, table, hardware, apart=options.compare)
        folder = options.output or Path(chain.plans[0].config.run_root) / "plan"
        print((compare if options.compare else plan)(chain, folder))
    sys.exit(int(chain.has_errors()))


if __name__ == "__main__":
    main()
