"""Bodies drawn from our own OpenAPI description, right and wrong: never a 500, and no answer that it does not name."""

import hypothesis
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance

from serving.engine import Engine
from serving.reader import Reader
from serving.worker import Worker
from tests.serving.servers import Serving

EXAMPLES = 15  # of each operation and mode
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
CHECKS = [not_a_server_error, status_code_conformance]


def fuzzed(operation, mode):
    """Statuses of requests that are drawn for an operation."""
    statuses = []

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def answers(case):
        statuses.append(case.call_and_validate(checks=CHECKS).status_code)

    answers()
    return statuses


def test_no_500_and_no_status_that_is_not_described(exported):
    worker = Worker(Engine(Reader(exported.model, 4, exported.context_length), exported.tokenizer))
    with Serving(exported, worker) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        posts = [found.ok() for found in schema.get_all_operations() if found.ok().method == "post"]
        seen = {(post.path, mode): fuzzed(post, mode) for post in posts for mode in MODES}
    assert len(seen) == 4
    assert all(400 in statuses for (_, mode), statuses in seen.items() if mode is GenerationMode.NEGATIVE)
    assert worker.failures == 0
