"""What a PromQL expression names: metrics of the fleet, and the labels by which it selects them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from config.settings import ROOT
from docs.metric_list import Metric, declared_metrics

PROMETHEUS = ROOT / "docker" / "prometheus"
#: Samples of vLLM that dashboards show; tests/integration/local/test_vllm.py asks vLLM for them.
VLLM_SAMPLES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:time_to_first_token_seconds_count",
    "vllm:generation_tokens_total",
}
#: The samples of a metric, by its type.
_SUFFIXES = {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
#: Labels that Prometheus itself adds, and those of a histogram's buckets.
_OTHER_LABELS = {"instance", "job", "le"}


@cache
def exported() -> dict[str, Metric]:
    """The metrics of the reference page, by the names of their samples."""
    return {
        metric.name + suffix: metric
        for metrics in declared_metrics().values()
        for metric in metrics
        for suffix in _SUFFIXES[metric.kind]
    }


def recorded() -> set[str]:
    """The names that recording rules give."""
    groups = yaml.safe_load((PROMETHEUS / "recording.yml").read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"]}


def mistakes(text: str) -> Iterator[str]:
    """Yield what a text names and does not exist: a metric, a recorded series, or a label."""
    metrics, series = exported(), recorded()
    for name in re.findall(r"\bprimarch_\w+", text):
        if name not in metrics:
            yield f"no metric {name}"
    for name in re.findall(r"\bvllm:\w+", text):
        if name not in VLLM_SAMPLES:
            yield f"no metric {name}"
    for name in re.findall(r"\blane:[a-z]\w*(?::\w+)?", text):
        if name not in series:
            yield f"no recorded series {name}"
    for name, selectors in re.findall(r"\b(primarch_\w+)\{([^}]*)\}", text):
        labels = set(re.findall(r"(\w+)\s*[=!]", selectors))
        if name in metrics and (unknown := labels - {*metrics[name].labels, *_OTHER_LABELS}):
            yield f"{name} has no label {', '.join(sorted(unknown))}"


def expressions_of(file: Path) -> list[str]:
    """The expressions of a file of rules."""
    groups = yaml.safe_load(file.read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]
