"""The inverse mask-ratio schedule: masks every training batch at the rate of its moment."""
from composer import Callback, Logger, State

from mmbert.masking import Vocabulary, mask_batch
from mmbert.trainer import Phase


class MaskRatio(Callback):
    """Masks each batch as it leaves the loader; the rate is a function of the tokens trained on so far.

    Here and not in the collator, because loader workers run ahead of the clock.
    """

    def __init__(self, phase: Phase) -> None:
        self.schedule, self.duration = phase.config.mask_rate, phase.config.duration
        self.seed = phase.config.phase_seed
        tokenizer = phase.tokenizer
        self.vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.mask_token_id, tokenizer.special_token_ids)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Mask the batch, which is still on the CPU and whole."""
        rate = self.schedule.value(int(state.timestamp.token), self.duration)
        state.batch = mask_batch(state.batch, self.seed, rate, self.vocabulary)
        logger.log_metrics({"mask_rate": rate})
