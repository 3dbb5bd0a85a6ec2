"""What is served: a model under its names, and whether it is there yet."""

import time
from dataclasses import dataclass, field

from .errors import ModelNotFoundError, UnavailableError
from .metrics import Metrics
from .pipeline import Pipeline
from .presets import Preset


@dataclass
class Service:
    """What is served: one model under its own name and those of its presets."""

    model_name: str
    metrics: Metrics
    presets: dict[str, Preset] = field(default_factory=dict)
    pipeline: Pipeline | None = None  # while the model loads
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def names(self) -> list[str]:
        """Every name that a request may call the model, its own first."""
        return [self.model_name, *self.presets]

    def check_name(self, name: str | None) -> str:
        """The name that a reply repeats. Raises ModelNotFoundError."""
        if name is None:
            return self.model_name
        if name not in self.names:
            known = ", ".join(map(repr, self.names))
            raise ModelNotFoundError(
                f"The model {name[:100]!r} does not exist. This server has {known}.", param="model"
            )
        return name

    def limits(self) -> dict[str, int]:
        """The largest value of whole numbers in a request, by the name of their field; empty while the model loads."""
        return self.pipeline.limits() if self.pipeline else {}

    def ready_pipeline(self) -> Pipeline:
        """The pipeline. Raises UnavailableError while the model loads."""
        if self.pipeline is None:
            raise UnavailableError("The model is being loaded.", code="model_loading", retry_after_s=2)
        return self.pipeline
