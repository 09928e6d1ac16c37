"""A door before an engine, with its numbers, and a usual request."""

from serve_app.admission.admission import Admission
from serve_app.admission.load import Demand
from serve_app.admission.settings import AdmissionSettings
from serve_app.types.generation import Capacity
from tests.admission.engine import STEP_TOKENS
from tests.fakes import RecordedMetrics

SEQUENCES = 40
OPEN = 32
"""Of them, what tiers below `priority` may use."""
CAPACITY = Capacity(SEQUENCES, tokens=8700, step_tokens=STEP_TOKENS, block_tokens=16)
DEMAND = Demand("req_1", "default", "key a", prompt_tokens=45, max_tokens=48, is_streamed=False)


def build_admission(capacity: Capacity = CAPACITY, gateways: int = 1, **settings: object) -> Admission:
    admission = Admission("m", AdmissionSettings.model_validate(settings), RecordedMetrics())
    admission.set_capacity(capacity, gateways)
    return admission
