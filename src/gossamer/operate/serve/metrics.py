"""What a server tells of itself: to each client of its own request, to Prometheus of all."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gossamer.operate.serve.worker import Job, Worker

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def usage_of(job: Job) -> dict[str, Any]:
    """The usage of a request that has ended. `gossamer` holds its stages in milliseconds: reading text and images,
    waiting, encoding images, all until the first token, and, of two tokens or more, each one after it; and its share of
    the batch's cache in bytes."""
    stages = {
        "read_ms": job.queued - job.arrived,
        "queue_ms": job.started - job.queued,
        "image_encode_ms": job.image_s,
        "time_to_first_token_ms": job.first - job.arrived,
    }
    more = {}
    if job.tokens > 1:
        more = {"cache_bytes": job.cache_bytes}
        stages["time_per_token_ms"] = (job.last - job.first) / (job.tokens - 1)
    return {
        "prompt_tokens": job.prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": job.reused},
        "completion_tokens": job.tokens,
        "total_tokens": job.prompt_tokens + job.tokens,
        "gossamer": {name: round(1000 * seconds, 3) for name, seconds in stages.items()} | more,
    }


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self, worker: Worker) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "gossamer_requests", "Requests by the status that they ended with", ["status"], registry=registry
        )
        self._prompt = Counter("gossamer_prompt_tokens", "Tokens of prompts", registry=registry)
        self._reused = Counter(
            "gossamer_cached_prompt_tokens", "Of these, tokens that were not read again", registry=registry
        )
        self._written = Counter("gossamer_generation_tokens", "Tokens written", registry=registry)
        for name, what, value in (
            ("requests_running", "Requests that are under way", lambda: worker.running),
            ("requests_waiting", "Requests that wait", lambda: worker.waiting),
            ("cache_bytes", "Bytes kept of past tokens", lambda: worker.cache_bytes),
            ("prefix_cache_bytes", "Bytes kept of sequences that have left", lambda: worker.prefixes.bytes),
        ):
            Gauge(f"gossamer_{name}", what, registry=registry).set_function(value)
        self._stages = {
            name: Histogram(f"gossamer_{name}_seconds", what, registry=registry, buckets=_SECONDS)
            for name, what in (
                ("queue", "Waiting for a place in the batch"),
                ("image_encode", "Encoding the images of a request that has some"),
                ("time_to_first_token", "From the request's arrival to its first token"),
                ("time_per_token", "Of each token after the first"),
                ("request", "From the request's arrival to its last token"),
            )
        }

    def ended(self, status: int, job: Job | None = None) -> None:
        """Counts a request that has ended, with its tokens and stages if it wrote any."""
        self._requests.labels(status).inc()
        if job is None or not job.tokens:
            return
        self._prompt.inc(job.prompt_tokens)
        self._reused.inc(job.reused)
        self._written.inc(job.tokens)
        self._stages["queue"].observe(job.started - job.queued)
        if job.image_s:
            self._stages["image_encode"].observe(job.image_s)
        self._stages["time_to_first_token"].observe(job.first - job.arrived)
        if job.tokens > 1:
            self._stages["time_per_token"].observe((job.last - job.first) / (job.tokens - 1))
        self._stages["request"].observe(job.last - job.arrived)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
