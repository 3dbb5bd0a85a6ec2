"""Our metrics by the names of vLLM's, for dashboards and autoscalers that know those: `--metrics-compat vllm`."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

# What is counted in the same way; a family that has no counterpart there is left out.
_NAMES = {
    "num_requests_running": "num_requests_running",
    "num_requests_waiting": "num_requests_waiting",
    "kv_cache_usage_ratio": "kv_cache_usage_perc",
    "prefix_cache_queries": "prefix_cache_queries",
    "prefix_cache_hits": "prefix_cache_hits",
    "prompt_tokens": "prompt_tokens",
    "generation_tokens": "generation_tokens",
    "requests_finished": "request_success",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "inter_token_latency_seconds": "inter_token_latency_seconds",
    "request_time_per_output_token_seconds": "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds": "e2e_request_latency_seconds",
    "request_queue_time_seconds": "request_queue_time_seconds",
    "request_prefill_time_seconds": "request_prefill_time_seconds",
    "request_decode_time_seconds": "request_decode_time_seconds",
    "request_prompt_tokens": "request_prompt_tokens",
    "request_generation_tokens": "request_generation_tokens",
}


class VllmNames(Collector):
    """Collects from another registry, under other names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """The families that have a counterpart."""
        for family in self._registry.collect():
            if other := _NAMES.get(family.name.removeprefix("quietserve_")):
                renamed = Metric(f"vllm:{other}", family.documentation, family.type)
                for sample in family.samples:
                    name = sample.name.replace(family.name, renamed.name, 1)
                    renamed.samples.append(sample._replace(name=name))
                yield renamed
