"""The doors of all models."""

from collections.abc import Mapping

from serve_app.admission.admission import Admission
from serve_app.admission.settings import AdmissionSettings
from serve_app.admission.tiers import TIERS, Tier
from serve_app.metrics import IN_FLIGHT, IN_FLIGHT_TOKENS, NO_METRICS, WAITING, Metrics
from serve_app.types.generation import Capacity


class Admissions:
    def __init__(self, metrics: Metrics = NO_METRICS) -> None:
        self._metrics = metrics
        self._settings = AdmissionSettings()
        self._by_model: dict[str, Admission] = {}

    def of(self, model_id: str) -> Admission:
        """A model of the configuration."""
        if model_id not in self._by_model:
            self._by_model[model_id] = Admission(model_id, self._settings, self._metrics)
        return self._by_model[model_id]

    def configure(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        for admission in self._by_model.values():
            admission.configure(settings)

    def set_capacities(self, capacities: Mapping[str, Capacity], gateways: int) -> None:
        """By model; see `Admission.set_capacity`. Models that are not named keep theirs."""
        for model_id, capacity in capacities.items():
            self.of(model_id).set_capacity(capacity, gateways)

    def are_measured(self) -> bool:
        """Whether all engines have said how much they hold."""
        return all(each.is_measured for each in self._by_model.values())

    def has_room(self, tier: Tier) -> bool:
        """Whether one of the models would begin with a request of this tier at once."""
        return not self._by_model or any(each.has_room(tier) for each in self._by_model.values())

    def show(self) -> None:
        """Set the gauges."""
        for model_id, admission in self._by_model.items():
            self._metrics.set(IN_FLIGHT, admission.load.sequences, model=model_id)
            self._metrics.set(IN_FLIGHT_TOKENS, admission.load.tokens, model=model_id)
            for tier in TIERS:
                self._metrics.set(WAITING, admission.waiting(tier), model=model_id, tier=tier)
