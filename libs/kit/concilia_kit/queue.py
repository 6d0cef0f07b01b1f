"""Celery as every service uses it: JSON only, late acknowledgement, one task at a time, the request id carried along.

Tasks are idempotent and carry ids and hashes; a task may run again after a crash.
"""

from __future__ import annotations

import ssl
from typing import Any

from asgi_correlation_id import correlation_id
from celery import Celery, signals


def application(name: str, broker_url: str) -> Celery:
    """A Celery application on a Redis broker, which is verified where it is reached over TLS. Opens no connection."""
    app = Celery(name, broker=broker_url)
    app.conf.update(
        # Kombu's own default for rediss:// is to verify nothing, and with another transport than its own no TLS at all.
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if broker_url.startswith("rediss:") else None,
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a broker may be away for longer than a hundred tries
        # One consumer a queue needs no fan-out; these would each cost a connection.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
    )
    signals.before_task_publish.connect(_send_request_id)
    signals.task_prerun.connect(_receive_request_id)
    signals.task_postrun.connect(_forget_request_id)
    return app


def _send_request_id(headers: dict[str, Any], **_: Any) -> None:
    headers.setdefault("request_id", correlation_id.get())


def _receive_request_id(task: Any, task_id: str, **_: Any) -> None:
    correlation_id.set(getattr(task.request, "request_id", None) or task_id)


def _forget_request_id(**_: Any) -> None:
    correlation_id.set(None)
