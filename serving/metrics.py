"""What Prometheus reads at /metrics. Every series has the label `model`; the registry is the application's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.worker import Worker

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    def __init__(self, model: str, worker: Worker):
        self.registry = CollectorRegistry()
        self.worker = worker

        def make(kind, name: str, about: str, *labels: str, **options):  # type: ignore[no-untyped-def]
            metric = kind(f"millrace_{name}", about, ["model", *labels], registry=self.registry, **options)
            return metric if labels else metric.labels(model)

        self._requests: Counter = make(Counter, "requests", "Requests by path and status.", "path", "status")
        self.model = model
        self.prompt_tokens: Counter = make(Counter, "prompt_tokens", "Tokens of prompts.")
        self.tokens: Counter = make(Counter, "tokens", "Tokens written; its rate is tokens per second.")
        self.first: Histogram = make(
            Histogram, "first_token_seconds", "From the request to its first token.", buckets=SECONDS
        )
        self.between: Histogram = make(Histogram, "between_tokens_seconds", "From token to token.", buckets=SECONDS)
        self.whole: Histogram = make(Histogram, "request_seconds", "From the request to its end.", buckets=SECONDS)
        engine = worker.engine
        for name, about, value in (
            ("running", "Requests that run: the size of the batch.", lambda: len(engine.running)),
            ("waiting", "Requests in line for a row.", lambda: worker.waiting),
            ("rows", "Requests that can run at once.", lambda: engine.reader.n_rows),
            ("cache_use", "Share of the caches that holds tokens.", lambda: engine.cache_use),
            ("cache_bytes", "Bytes of the caches.", lambda: engine.reader.n_bytes),
            ("guessed", "Tokens guessed by --lookup.", lambda: engine.guessed),
            ("guessed_right", "Guessed tokens that were right.", lambda: engine.right),
            ("failures", "Steps of the engine that raised an error.", lambda: worker.failures),
        ):
            make(Gauge, name, about).set_function(value)

    def answered(self, path: str, status: int) -> None:
        self._requests.labels(self.model, path, str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
