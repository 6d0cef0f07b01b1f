"""Metrics as every service has them: a registry an application, HTTP by route template, gauges read at a scrape.

Labels are bounded words (a route's template, a phase, an error's declared code), never an address, a file name, a job
or what a caller sent. Source: Prometheus text format 0.0.4, and Prometheus' conventions on names and labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from concilia_kit import logs
from concilia_kit.problems import Problem

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Buckets from an HTTP call to a round's training, so that all durations can be laid over each other."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_GONE = 499  # nginx's word for a request whose caller left before an answer
_log = logs.get(__name__)


def registry() -> CollectorRegistry:
    """A new registry that knows its process and its Python; nothing of it is shared with another application."""
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, which nobody reads
    made = CollectorRegistry(auto_describe=True)
    prometheus_client.ProcessCollector(registry=made)
    prometheus_client.PlatformCollector(registry=made)
    prometheus_client.GCCollector(registry=made)
    return made


def exposition(known: CollectorRegistry) -> bytes:
    """Everything a registry knows now, in Prometheus' text format."""
    return prometheus_client.generate_latest(known)


def outcome_of(error: BaseException) -> str:
    """A label for a failure: the code that its class declares, else 'other'.

    A code that came over a wire, or was made for one place, is no bounded word.
    """
    if isinstance(error, Problem) and type(error) is not Problem and error.problem_code == type(error).code:
        return error.problem_code
    return "other"


class AtScrape(Collector):
    """A gauge whose values are asked for at each scrape; one that cannot be had is left out, the others stay.

    `read` returns a value for each combination of label values. Other processes may export the same truth: a query
    takes the maximum over instances, not their sum.
    """

    def __init__(
        self, name: str, documentation: str, labels: Iterable[str], read: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._read = read

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The gauge without values: registering asks nobody."""
        yield self._family()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauge with what `read` says."""
        family = self._family()
        try:
            values = self._read()
        except Exception as error:  # a scrape must not fail with what it is to tell of
            _log.warning("metric not readable", metric=self._name, error=type(error).__name__)
            values = {}
        for labels, value in values.items():
            family.add_metric(labels, value)
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._name, self._documentation, labels=self._labels)


class HttpMetrics:
    """ASGI middleware: counts requests and their seconds by route template."""

    def __init__(self, app: ASGIApp, service: str, registry: CollectorRegistry) -> None:
        self._app = app
        self._service = service
        labels = ("service", "method", "route")
        self._requests = Counter("concilia_http_requests", "Requests answered.", (*labels, "status"), registry=registry)
        self._seconds = Histogram(
            "concilia_http_request_seconds",
            "Seconds from a request's head to its answer's end; to its beginning where that is a stream of events.",
            labels,
            buckets=SECONDS,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count its answer; an error that passes by is a 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = _CLIENT_GONE
        streaming_since: float | None = None

        async def sent(message: Message) -> None:
            nonlocal status, streaming_since
            if message["type"] == "http.response.start":
                status = message["status"]
                if dict(message.get("headers", ())).get(b"content-type", b"").startswith(b"text/event-stream"):
                    streaming_since = time.perf_counter()
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            status = 500
            raise
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "other")
            self._requests.labels(self._service, method, route, str(status)).inc()
            self._seconds.labels(self._service, method, route).observe((streaming_since or time.perf_counter()) - began)
