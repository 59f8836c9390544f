"""Train one phase: composer main.py yamls/phase1.yaml [key.sub=value ...]."""
import logging
import sys

from callbacks import build_callbacks
from mmbert.command import errors_in_one_line
from mmbert.config import load_config
from mmbert.trainer import Phase, build_trainer, is_finished


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


if __name__ == "__main__":
    main(sys.argv[1:])
