"""A thousand requests made from the service's own description, valid ones and wrong ones."""

import warnings

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

CASES = 1000


def test_nothing_that_is_described_breaks_the_service(service):
    """No 5xx but 503, and every error has its form."""
    for number in (1, 6):  # so that numbers of inspections mean something
        service.inspect(service.sample(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the generators about patterns that are hard to meet
        schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 15
    counts: dict[int, int] = {}
    each = 2 * CASES // (2 * len(operations))

    def ask(case) -> None:
        answer = case.call(base_url=service.url, timeout=60)
        status = answer.status_code
        counts[status] = counts.get(status, 0) + 1
        assert status < 500 or status == 503, f"{case.as_curl_command()}\n{answer.text}"
        if status >= 400 and case.method != "HEAD":
            # Of the HTTP parser itself: what is no HTTP at all reaches nothing of ours.
            if answer.content == b"Invalid HTTP request received.":
                return
            error = answer.json()
            if "/v2" not in case.path:
                error = error["error"]
            assert {"code", "id"} <= error.keys()
            assert "Traceback" not in answer.text

    for operation in operations:
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run = settings(
                    max_examples=each,
                    derandomize=True,
                    deadline=None,
                    database=None,
                    phases=[Phase.explicit, Phase.generate, Phase.shrink],
                    suppress_health_check=list(HealthCheck),
                )(given(case=operation.as_strategy(generation_mode=mode))(ask))
                try:
                    run()
                except (schemathesis.errors.SchemathesisError, Unsatisfiable):
                    continue  # there is no wrong request to a route without parameters
    assert sum(counts.values()) >= CASES, counts
    assert counts[200] > 50, counts
    assert counts[422] > 50, counts
    assert service.client.get("/v2/health/ready").json() == {"ready": True}
