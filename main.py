"""Train one phase: composer main.py yamls/phase1.yaml [key.sub=value ...].

Exit status: 0 when the phase is finished, 85 when it was asked to stop and the same command goes on with it, 1 for an
error that is told in one line.
"""
import logging
import sys

from callbacks import build_callbacks
from mmbert.command import errors_in_one_line
from mmbert.config import load_config
from mmbert.trainer import Phase, build_trainer, is_finished

STOPPED = 85  # ERESTART: tells a scheduler to queue the same command again


def main(arguments: list[str]) -> None:
    """Run the phase that the YAML describes, from where it stopped."""
    if not arguments:
        sys.exit(__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors_in_one_line():
        config = load_config(arguments[0], arguments[1:])
        if is_finished(config.run_folder):
            print(f"{config.name} is finished: nothing to train in {config.run_folder}")
            return
        phase = Phase.open(config)
        trainer = build_trainer(phase, build_callbacks(phase))
    trainer.fit()
    trainer.close()
    if trainer.state.timestamp.token < config.duration:
        print(f"{config.name} was asked to stop and is saved; the same command goes on with it")
        sys.exit(STOPPED)


if __name__ == "__main__":
    main(sys.argv[1:])
