"""What a phase's clock decides, by its configuration: the rows of a global batch, and the learning rate."""
from mmbert.config import RunConfig
from mmbert.schedules import BatchSizes, one_minus_sqrt, warmup_stable_decay


def batch_sizes(config: RunConfig) -> BatchSizes:
    """Rows of every global batch; the warm-up counts a row as `max_seq_len` tokens."""
    final, warmup = config.global_train_batch_size, config.batch_size_warmup
    if warmup is None:
        return BatchSizes([0], [final])
    return BatchSizes.build(final, warmup.start, warmup.tokens // config.max_seq_len)


def learning_rate(config: RunConfig, tokens: int) -> float:
    """Of the step that begins after `tokens` tokens of the phase."""
    rate, duration = config.learning_rate, config.duration
    if rate.shape == "one_minus_sqrt":
        return config.optimizer.lr * one_minus_sqrt(tokens, duration, rate.floor)
    return config.optimizer.lr * warmup_stable_decay(tokens, duration, rate.warmup, rate.decay, rate.floor)
