"""What is served: a model under its names, and whether it is there yet."""

import time
from dataclasses import dataclass, field

from .errors import ModelNotFoundError, UnavailableError
from .metrics import Metrics
from .pipeline import Pipeline
from .presets import Preset


@dataclass
class Service:
    """What is served: a model under its own name and those of its presets, and other models beside it."""

    model_name: str
    metrics: Metrics
    presets: dict[str, Preset] = field(default_factory=dict)
    pipeline: Pipeline | None = None  # while the model loads
    created: int = field(default_factory=lambda: int(time.time()))
    others: "list[Service]" = field(default_factory=list)  # each with one model

    @property
    def every(self) -> "list[Service]":
        """Itself and the others: one a model, the one first that requests mean which name none."""
        return [self, *self.others]

    @property
    def own_names(self) -> list[str]:
        """Every name of its own model, the model's first."""
        return [self.model_name, *self.presets]

    @property
    def names(self) -> list[str]:
        """Every name that a request may call a model."""
        return [name for service in self.every for name in service.own_names]

    def find(self, name: str | None) -> "Service":
        """The one whose model a request means. Raises ModelNotFoundError."""
        if name is None:
            return self
        for service in self.every:
            if name in service.own_names:
                return service
        known = ", ".join(map(repr, self.names))
        raise ModelNotFoundError(f"The model {name[:100]!r} does not exist. This server has {known}.", param="model")

    def limits(self) -> dict[str, int]:
        """The largest value of whole numbers in a request, by the name of their field; empty while the models load."""
        largest: dict[str, int] = {}
        for service in self.every:
            for name, most in service.pipeline.limits().items() if service.pipeline else ():
                largest[name] = max(most, largest.get(name, most))
        return largest

    def ready_pipeline(self) -> Pipeline:
        """The pipeline. Raises UnavailableError while the model loads."""
        if self.pipeline is None:
            raise UnavailableError("The model is being loaded.", code="model_loading", retry_after_s=2)
        return self.pipeline
