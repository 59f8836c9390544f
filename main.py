"""Train one phase: composer main.py yamls/phase1.yaml [key.sub=value ...].

Exit status: 0 when the phase is finished, 85 when it was asked to stop and the same command goes on with it, 86 when
it hung and has shown where, 1 for an error that is told in one line.
"""
import logging
import os
import signal
import sys

from mmbert.command import errors_in_one_line, lasting_imports
from mmbert.processes import STOPPED, die_with_parent, no_child_outlives
from mmbert.stop_request import StopRequest


def main(arguments: list[str]) -> None:
    """Run the phase that the YAML describes, from where it stopped."""
    if not arguments:
        sys.exit(__doc__)
    if arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    with StopRequest() as request, errors_in_one_line(), no_child_outlives():
        with lasting_imports():  # they take seconds, in which signals must wait already
            from callbacks import build_callbacks
            from mmbert.config import load_config
            from mmbert.finished import is_finished
            from mmbert.ranks import loss_in_one_line
            from mmbert.trainer import Phase, build_trainer, clear_up

        request.listen()
        if "RANK" in os.environ:  # a launcher started this process; without it nobody would ever stop it
            die_with_parent(signal.SIGTERM)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        config = load_config(arguments[0], arguments[1:])
        if is_finished(config):
            if os.environ.get("RANK", "0") == "0":
                clear_up(config)
            print(f"{config.name} is finished: nothing to train in {config.run_folder}")
            return
        with loss_in_one_line():
            phase = Phase.open(config)
            trainer = build_trainer(phase, build_callbacks(phase, request))
            if trainer.state.timestamp.token < config.duration:  # else a kill had hidden the run's last checkpoint
                trainer.fit()
            trainer.close()
            phase.ranks.leave()
    if trainer.state.timestamp.token < config.duration:
        if phase.ranks.is_first:
            print(f"{config.name} was asked to stop and is saved; the same command goes on with it")
        sys.exit(STOPPED)


if __name__ == "__main__":
    main(sys.argv[1:])
