"""Who is asked next, after how long, and how a call ends that nobody answered."""

from __future__ import annotations

import grpc
import pytest

from common.errors import ServiceError
from llm_gateway.failures import FailureKind, ProviderError
from llm_gateway.routes import RetryPolicy, Route
from llm_gateway.upstreams import RateFloor, Upstream
from tests.support.gateway import (
    ManualClock,
    MemoryProvider,
    deployment,
    endpoint,
    upstream,
)

SERVER_ERROR = ProviderError(FailureKind.SERVER_ERROR, "HTTP 500", http_status=500)
REFUSED = ProviderError(FailureKind.CREDENTIAL, "HTTP 401", http_status=401)
TOO_LONG = ProviderError(FailureKind.CONTEXT_OVERFLOW, "HTTP 400", http_status=400)
REJECTED = ProviderError(FailureKind.REJECTED, "HTTP 422", http_status=422)
BROKEN = ProviderError(FailureKind.BROKEN_REPLY, "not_json")


def rate_limited(retry_after_s: float | None) -> ProviderError:
    return ProviderError(
        FailureKind.RATE_LIMITED, "HTTP 429", http_status=429, retry_after_s=retry_after_s
    )


def pool(*names: str) -> list[Upstream]:
    """Return upstreams of one model each, every one at its own provider."""
    return [upstream(deployment(name, provider=endpoint(f"of-{name}"))) for name in names]


def route(
    upstreams: list[Upstream],
    clock: ManualClock | None = None,
    *,
    deadline: float | None = None,
    jitter: float = 1.0,
    **policy: float,
) -> Route:
    clock = clock or ManualClock()
    return Route(
        upstreams,
        RetryPolicy(**policy),  # type: ignore[arg-type]
        now=clock.now,
        deadline=deadline,
        jitter=lambda: jitter,
    )


def walk(taken: Route, *failures: ProviderError) -> list[tuple[str, float]]:
    """Fail each step as told; return who was asked after how long."""
    steps = []
    for failure in failures:
        step = taken.next_step()
        steps.append((step.upstream.deployment.name, step.wait_s))
        taken.note_failure(step.upstream, failure)
    return steps


def end_of(taken: Route) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        taken.next_step()
    return caught.value


def test_the_first_deployment_is_asked_at_once() -> None:
    step = route(pool("a", "b")).next_step()

    assert (step.upstream.deployment.name, step.wait_s) == ("a", 0.0)


def test_retries_back_off_and_then_the_next_deployment_is_asked() -> None:
    steps = walk(route(pool("a", "b")), *[SERVER_ERROR] * 6)

    assert steps == [("a", 0), ("a", 0.5), ("a", 1.0), ("b", 0), ("b", 0.5), ("b", 1.0)]


def test_the_wait_is_jittered_down_to_nothing() -> None:
    """Callers that failed together must not come back together."""
    assert walk(route(pool("a"), jitter=0.0), *[SERVER_ERROR] * 2) == [("a", 0), ("a", 0)]


def test_the_backoff_doubles_up_to_eight_seconds() -> None:
    taken = route(pool("a"), attempts_max=9, attempts_per_deployment_max=9, wait_s_max=60)

    waits = [wait_s for _, wait_s in walk(taken, *[SERVER_ERROR] * 8)]

    assert waits == [0, 0.5, 1, 2, 4, 8, 8, 8]


def test_a_backoff_beyond_two_seconds_is_spent_elsewhere() -> None:
    """Whoever is left may answer at once; only where nobody is, the wait is cut to patience."""
    taken = route(pool("a", "b"), attempts_max=9, attempts_per_deployment_max=9)

    asked = walk(taken, *[SERVER_ERROR] * 9)

    assert asked[:5] == [("a", 0), ("a", 0.5), ("a", 1), ("a", 2), ("b", 0)]
    assert [wait_s for _, wait_s in asked[5:]] == [0.5, 1, 2, 2]


@pytest.mark.parametrize(("left_s", "is_waited"), [(2.0, True), (1.9, False)])
def test_a_cut_backoff_does_not_outlast_the_deadline(left_s: float, is_waited: bool) -> None:
    clock = ManualClock()
    taken = route(pool("a"), clock, deadline=clock.now() + left_s, backoff_s=4.0)
    walk(taken, SERVER_ERROR)

    if is_waited:
        assert taken.next_step().wait_s == 2.0
    else:
        assert end_of(taken).reason_name == "ERROR_REASON_PROVIDER_UNAVAILABLE"


@pytest.mark.parametrize("attempts_max", [1, 4])
def test_attempts_are_capped_over_the_whole_chain(attempts_max: int) -> None:
    taken = route(pool("a", "b", "c"), attempts_max=attempts_max)
    walk(taken, *[SERVER_ERROR] * attempts_max)

    error = end_of(taken)

    assert error.reason_name == "ERROR_REASON_PROVIDER_UNAVAILABLE"
    assert error.metadata["attempts"] == str(attempts_max)


@pytest.mark.parametrize(("retry_after_s", "asked"), [(2.0, ("a", 2.0)), (2.1, ("b", 0.0))])
def test_a_rate_limit_is_waited_for_up_to_two_seconds(
    retry_after_s: float, asked: tuple[str, float]
) -> None:
    taken = route(pool("a", "b"))

    assert walk(taken, rate_limited(retry_after_s), SERVER_ERROR)[1] == asked


@pytest.mark.parametrize(("left_s", "asked"), [(1.5, ("a", 1.5)), (1.4, ("b", 0.0))])
def test_no_wait_outlasts_the_deadline(left_s: float, asked: tuple[str, float]) -> None:
    clock = ManualClock()
    taken = route(pool("a", "b"), clock, deadline=clock.now() + left_s)

    assert walk(taken, rate_limited(1.5), SERVER_ERROR)[1] == asked


@pytest.mark.parametrize(("jitter", "wait_s"), [(0.0, 1.0), (0.5, 1.25), (1.0, 1.5)])
def test_callers_asked_to_wait_for_one_moment_come_back_spread(
    jitter: float, wait_s: float
) -> None:
    """A batch that was limited together would be limited together again."""
    clock, upstreams = ManualClock(), pool("a")

    assert walk(route(upstreams, clock, jitter=jitter), rate_limited(1.0), SERVER_ERROR) == [
        ("a", 0),
        ("a", wait_s),
    ]
    assert route(upstreams, clock, jitter=jitter).next_step().wait_s == wait_s


def test_the_last_deployment_is_given_every_attempt_while_it_only_limits_the_rate() -> None:
    taken = route(pool("a", "b"), attempts_max=8)

    asked = [name for name, _ in walk(taken, *[rate_limited(None)] * 8)]

    assert asked == ["a"] * 3 + ["b"] * 5
    assert end_of(taken).reason_name == "ERROR_REASON_PROVIDER_RATE_LIMITED"


def test_waiting_out_rate_limits_spends_no_retries() -> None:
    """Sixty-four calls of a batch that are limited at once must not fail for that."""
    (limited,) = pool("a")
    for _ in range(64):
        steps = walk(route([limited]), rate_limited(0.1), rate_limited(0.1), rate_limited(0.1))
        assert len(steps) == 3

    assert limited.retries.take()


def test_an_overloaded_server_may_ask_for_a_wait_too() -> None:
    slow = ProviderError(FailureKind.SERVER_ERROR, "HTTP 503", http_status=503, retry_after_s=30)
    taken = route(pool("a"))
    walk(taken, slow)

    assert end_of(taken).retry_after_s == 30


def test_a_rate_limit_holds_for_other_calls_until_its_time() -> None:
    clock, upstreams = ManualClock(), pool("a", "b")
    walk(route(upstreams, clock), rate_limited(60))

    assert walk(route(upstreams, clock), SERVER_ERROR) == [("b", 0)]
    clock.advance(59)
    assert walk(route(upstreams, clock, jitter=0.0), SERVER_ERROR) == [("a", 1)]
    clock.advance(1)
    assert walk(route(upstreams, clock), SERVER_ERROR) == [("a", 0)]


@pytest.mark.parametrize(("passed_s", "asked"), [(299, []), (300, [("a", 1)])])
def test_a_very_long_rate_limit_is_tried_again_after_five_minutes(
    passed_s: float, asked: list[tuple[str, float]]
) -> None:
    """A wrong or hostile header must not take a deployment away for a day."""
    clock, upstreams = ManualClock(), pool("a")
    walk(route(upstreams, clock), rate_limited(86_400))
    clock.advance(passed_s - 1)

    taken = route(upstreams, clock, wait_s_max=1)

    if asked:
        assert walk(taken, SERVER_ERROR) == asked
    else:
        assert end_of(taken).retry_after_s == 2


def test_deployments_of_one_quota_share_its_limit() -> None:
    """A second name for the same model at the same provider is no way around."""
    clock, floor = ManualClock(), RateFloor()
    shared = [Upstream(deployment(name), MemoryProvider(), floor) for name in ("a", "b")]
    taken = route(shared, clock)
    walk(taken, rate_limited(60))

    error = end_of(taken)

    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason_name == "ERROR_REASON_PROVIDER_RATE_LIMITED"
    assert error.retry_after_s == 60


def test_a_call_that_finds_only_limits_is_told_when_to_come_back() -> None:
    clock, upstreams = ManualClock(), pool("a")
    walk(route(upstreams, clock), rate_limited(60))
    clock.advance(20)

    taken = route(upstreams, clock)

    assert end_of(taken).retry_after_s == 40
    assert taken.attempts == 0


def test_a_refused_credential_rules_its_provider_out() -> None:
    provider = endpoint("one")
    upstreams = [
        upstream(deployment("a", provider=provider)),
        upstream(deployment("b", provider=provider)),
        *pool("c"),
    ]

    assert walk(route(upstreams), REFUSED, SERVER_ERROR) == [("a", 0), ("c", 0)]


def test_a_refused_credential_ends_a_call_without_an_alternative() -> None:
    taken = route(pool("a"))
    walk(taken, REFUSED)

    assert end_of(taken).reason_name == "ERROR_REASON_PROVIDER_CREDENTIAL"


@pytest.mark.parametrize(
    ("window", "asked"), [(1000, []), (999, []), (1001, [("b", 0.0)]), (0, [("b", 0.0)])]
)
def test_messages_that_do_not_fit_go_to_a_larger_window_only(
    window: int, asked: list[tuple[str, float]]
) -> None:
    """0 is a window that is not known, and may be larger."""
    upstreams = [
        upstream(deployment("a", context_tokens_max=1000)),
        upstream(deployment("b", context_tokens_max=window)),
    ]
    taken = route(upstreams)
    walk(taken, TOO_LONG)

    if asked:
        assert walk(taken, SERVER_ERROR) == asked
    else:
        error = end_of(taken)
        assert error.reason_name == "ERROR_REASON_CONTEXT_WINDOW_EXCEEDED"
        assert error.metadata == {"model": "a", "context_tokens_max": "1000"}


def test_a_rejected_request_is_never_repeated() -> None:
    taken = route(pool("a", "b"))
    walk(taken, SERVER_ERROR, REJECTED)

    assert end_of(taken).reason_name == "ERROR_REASON_PROVIDER_REJECTED"


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ([SERVER_ERROR, REFUSED], "PROVIDER_UNAVAILABLE"),
        ([REFUSED, SERVER_ERROR], "PROVIDER_UNAVAILABLE"),
        ([REFUSED, rate_limited(60)], "PROVIDER_RATE_LIMITED"),
        ([BROKEN, rate_limited(60)], "PROVIDER_BROKEN_REPLY"),
        ([TOO_LONG, REFUSED], "PROVIDER_CREDENTIAL"),
    ],
)
def test_of_several_failures_the_caller_hears_of_the_one_that_may_pass(
    failures: list[ProviderError], reason: str
) -> None:
    """Otherwise a caller gives up for good where trying again would have helped."""
    taken = route(pool("a", "b"), attempts_per_deployment_max=1)
    walk(taken, *failures)

    assert end_of(taken).reason_name == f"ERROR_REASON_{reason}"


def test_a_deadline_that_has_passed_ends_the_call() -> None:
    clock = ManualClock()
    taken = route(pool("a"), clock, deadline=clock.now() + 5)
    clock.advance(5)

    error = end_of(taken)

    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.reason_name == "ERROR_REASON_PROVIDER_TIMEOUT"
    assert error.metadata == {"provider": "of-a", "model": "a"}


def test_retries_are_a_fifth_of_the_traffic_once_the_savings_are_spent() -> None:
    """A provider in trouble gets its calls once each, not three times."""
    (troubled,) = pool("a")
    attempts = 0
    for _ in range(100):
        taken = route([troubled])
        try:
            while True:
                taken.note_failure(taken.next_step().upstream, SERVER_ERROR)
        except ServiceError:
            attempts += taken.attempts

    assert attempts == 100 + 10 + 20 - 1  # first ones, saved-up retries, a fifth; one is left over


def broken(*upstreams: Upstream) -> None:
    for each in upstreams:
        for _ in range(5):
            each.breaker.note_failure(1000.0)


def test_a_deployment_that_keeps_failing_is_passed_over() -> None:
    """A provider that is down must not cost every call its time."""
    upstreams = pool("a", "b")
    broken(upstreams[0])

    assert walk(route(upstreams), SERVER_ERROR) == [("b", 0)]


def test_a_call_that_finds_everybody_left_alone_is_told_when_to_come_back() -> None:
    """It is not the caller's fault and passes with time."""
    upstreams = pool("a")
    broken(*upstreams)
    clock = ManualClock()
    clock.advance(2)

    error = end_of(route(upstreams, clock))

    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason_name == "ERROR_REASON_PROVIDER_UNAVAILABLE"
    assert error.retry_after_s == 3.0


def test_one_call_finds_out_whether_a_deployment_is_well_again() -> None:
    """The probe is somebody's call; the others still go elsewhere."""
    upstreams, clock = pool("a", "b"), ManualClock()
    broken(upstreams[0])
    clock.advance(5)

    assert walk(route(upstreams, clock), SERVER_ERROR) == [("a", 0)]
    assert walk(route(upstreams, clock), SERVER_ERROR) == [("b", 0)]


def paced(**limits: int) -> list[Upstream]:
    return [upstream(deployment("a", **limits)), *pool("b")]


def test_a_deployment_is_not_given_more_than_its_requests_a_minute() -> None:
    """Ten seconds apart, so the second call goes elsewhere rather than wait so long."""
    upstreams, clock = paced(requests_per_minute=6), ManualClock()

    asked = [walk(route(upstreams, clock), SERVER_ERROR)[0][0] for _ in range(2)]

    assert asked == ["a", "b"]


def test_where_nobody_else_is_left_the_pace_is_waited_for() -> None:
    """It is our own queue: a batch must take its time rather than fail."""
    upstreams, clock = paced(requests_per_minute=6)[:1], ManualClock()

    waits = [route(upstreams, clock).next_step().wait_s for _ in range(3)]

    assert waits == [0, 5, 16]


@pytest.mark.parametrize(("left_s", "is_waited"), [(5.0, True), (4.9, False)])
def test_a_pace_is_not_waited_for_beyond_the_deadline(left_s: float, is_waited: bool) -> None:
    upstreams, clock = paced(requests_per_minute=6)[:1], ManualClock()
    route(upstreams, clock).next_step()
    taken = route(upstreams, clock, deadline=clock.now() + left_s)

    if is_waited:
        assert taken.next_step().wait_s == 5.0
    else:
        error = end_of(taken)
        assert error.reason_name == "ERROR_REASON_PROVIDER_RATE_LIMITED"
        assert error.retry_after_s == 5.0


def test_a_second_attempt_is_made_with_somebody_who_is_free_at_once() -> None:
    """It is to save time: whoever would have to be waited for is no help."""
    clock, upstreams = ManualClock(), pool("a", "limited", "sick", "free")
    upstreams[1].floor.raise_to(clock.now() + 1)
    broken(upstreams[2])
    taken = route(upstreams, clock)
    first = taken.next_step().upstream

    assert taken.hedge(first) is upstreams[3]
    assert taken.attempts == 2


@pytest.mark.parametrize(("attempts_max", "names"), [(1, ("a", "b")), (6, ("a",))])
def test_there_is_no_second_attempt_beyond_the_cap_or_without_another(
    attempts_max: int, names: tuple[str, ...]
) -> None:
    """The cap is over all attempts, whatever they are for."""
    taken = route(pool(*names), attempts_max=attempts_max)
    first = taken.next_step().upstream

    assert taken.hedge(first) is None


def test_a_second_attempt_that_is_limited_holds_others_off_and_the_first_goes_on() -> None:
    clock, upstreams = ManualClock(), pool("a", "b")
    taken = route(upstreams, clock, jitter=0.0)
    other = taken.hedge(taken.next_step().upstream)
    assert other is not None
    taken.note_hedge_failure(other, rate_limited(30))
    taken.note_failure(upstreams[0], SERVER_ERROR)

    assert walk(taken, SERVER_ERROR) == [("a", 0)]
    assert other.floor.wait_s(clock.now()) == 30


def test_a_larger_window_is_asked_last_and_only_where_the_messages_do_not_fit() -> None:
    """It may be many times as dear."""
    small = upstream(deployment("small", context_tokens_max=1000))
    large = upstream(deployment("large", provider=endpoint("q"), context_tokens_max=9000))
    clock = ManualClock()

    def taken() -> Route:
        return Route(
            [small], RetryPolicy(), now=clock.now, deadline=None, larger=[large], jitter=lambda: 0.0
        )

    assert walk(taken(), TOO_LONG, SERVER_ERROR) == [("small", 0), ("large", 0)]
    unavailable = taken()
    assert {name for name, _ in walk(unavailable, *[SERVER_ERROR] * 3)} == {"small"}
    assert end_of(unavailable).reason_name == "ERROR_REASON_PROVIDER_UNAVAILABLE"
