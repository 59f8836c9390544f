"""Measure data preparation against the peers: python -m data_prep.benchmark tokenise|pipeline|scaling [options].

The frame, the options that all have, and the page are those of `python -m mmbert.benchmark`.
"""
from mmbert.benchmark.__main__ import main

PROGRAM = "python -m data_prep.benchmark"
SUBCOMMANDS = {name: f"data_prep.benchmark.{name}" for name in ("tokenise", "pipeline", "scaling")}

if __name__ == "__main__":
    main(program=PROGRAM, subcommands=SUBCOMMANDS)
