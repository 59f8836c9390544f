"""Composer callbacks of the recipe, one a file."""
from composer import Callback

from callbacks.checkpointing import Checkpointing
from callbacks.dropout_seed import DropoutSeed
from callbacks.finite_steps import FiniteSteps
from callbacks.language_scores import LanguageScores
from callbacks.language_temperature import LanguageTemperature
from callbacks.learning_rate import LearningRate
from callbacks.liveness import Liveness
from callbacks.mask_ratio import MaskRatio
from callbacks.planned_stop import PlannedStop
from callbacks.progress import Progress
from callbacks.run_ledger import RunLedger
from callbacks.spike_rollback import SpikeRollback
from callbacks.validation import Validation
from mmbert.stop_request import StopRequest
from mmbert.trainer import Phase


def build_callbacks(phase: Phase, request: StopRequest) -> list[Callback]:
    """The callbacks of a phase, in the order in which they see each event: the batch is counted after it is masked."""
    mixture, finite = LanguageTemperature(phase), FiniteSteps(phase)
    ledger = RunLedger(phase, mixture, finite)
    scores = LanguageScores(phase, mixture, finite, ledger)
    checkpointing = Checkpointing(phase, mixture, ledger, scores)
    stop, liveness = PlannedStop(phase, request, checkpointing), Liveness(phase)
    return [
        MaskRatio(phase),
        mixture,
        LearningRate(phase),
        DropoutSeed(phase),
        finite,
        ledger,
        scores,
        SpikeRollback(phase, finite, ledger, checkpointing),
        Progress(phase),
        stop,
        liveness,
        Validation(phase, stop, liveness, ledger),
        checkpointing,
    ]
