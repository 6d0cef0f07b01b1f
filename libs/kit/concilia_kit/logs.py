"""Structured logs: one JSON object a line (or text for people), with the request id of the work at hand."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog
from asgi_correlation_id import correlation_id


def configure(service: str, log_format: Literal["json", "text"], level: str) -> None:
    """Send structlog's and the standard library's records to standard error in one format. Call once, from main."""

    def stamp(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"] = service
        if (request_id := correlation_id.get()) is not None:
            event["request_id"] = request_id
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        stamp,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # A kept logger would go on with what was configured when it first spoke, whatever is configured later; finding
        # it anew costs microseconds, and nothing here speaks a thousand times a second.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line a request is the access log's job at the front door; httpx would add one for every hop.
    for name in ("httpx", "httpcore", "web3", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def get(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; keyword arguments of its methods become members of the record."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
