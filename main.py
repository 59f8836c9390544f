"""Train one phase: composer main.py yamls/phase1.yaml [key.sub=value ...]."""
import logging
import sys

from callbacks import build_callbacks
from mmbert.config import load_config
from mmbert.trainer import Phase, build_trainer, is_finished


def main(arguments: list[str]) -> str | None:
    """Run the phase that the YAML describes; returns the error to exit with, if any."""
    if not arguments:
        return __doc__
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = load_config(arguments[0], arguments[1:])
        if is_finished(config.run_folder):
            print(f"{config.name} is finished: nothing to train in {config.run_folder}")
            return None
        phase = Phase.open(config)
        trainer = build_trainer(phase, build_callbacks(phase))
    except (ValueError, OSError) as error:  # what a user can get wrong; anything else keeps its traceback
        return f"error: {error}"
    trainer.fit()
    trainer.close()
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
