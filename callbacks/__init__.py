"""Composer callbacks of the recipe, one a file."""
from composer import Callback

from callbacks.checkpointing import Checkpointing
from callbacks.dropout_seed import DropoutSeed
from callbacks.language_temperature import LanguageTemperature
from callbacks.learning_rate import LearningRate
from callbacks.mask_ratio import MaskRatio
from callbacks.planned_stop import PlannedStop
from callbacks.progress import Progress
from mmbert.trainer import Phase


def build_callbacks(phase: Phase) -> list[Callback]:
    """The callbacks of a phase, in the order in which they see each event: the batch is counted after it is masked."""
    return [
        MaskRatio(phase),
        LanguageTemperature(phase),
        LearningRate(phase),
        DropoutSeed(phase),
        Progress(phase),
        PlannedStop(),
        Checkpointing(phase),
    ]
