"""nginx and the front door of one machine keep the same rules, read from their files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from concilia.stack.front_door import pages, proxy

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "frontend"
NGINX = (FOLDER / "nginx.conf").read_text()
STRICT = {"Strict-Transport-Security": "max-age=31536000; includeSubDomains"}
SIZES = {"": 1, "k": 2**10, "m": 2**20}


def added_headers(file: str) -> dict[str, str]:
    """Headers that a file adds, each on every answer."""
    found = re.findall(r'^add_header (\S+) "([^"]*)" always;$', (FOLDER / file).read_text(), re.MULTILINE)
    return dict(found)


def locations() -> dict[str, str]:
    """Body of each location by its head."""
    return dict(re.findall(r"^        location ([^{\n]+?) \{\n(.*?)^        \}", NGINX, re.MULTILINE | re.DOTALL))


def proxied() -> dict[str, str]:
    return {head: body for head, body in locations().items() if "proxy.conf" in body}


def size(body: str) -> int | None:
    """Largest request in bytes, None where there is no limit."""
    found = re.search(r"client_max_body_size (\d+)([km]?);", body) or re.search(
        r"client_max_body_size (\d+)([km]?);", NGINX.split("location", 1)[0]
    )
    assert found
    return int(found[1]) * SIZES[found[2]] or None


def silence(body: str) -> float:
    found = re.search(r"proxy_read_timeout (\d+)s;", body) or re.search(r"proxy_read_timeout (\d+)s;", NGINX)
    assert found
    return float(found[1])


def test_pages_have_the_same_headers() -> None:
    assert added_headers("headers.conf") == json.loads((ROOT / "frontend" / "headers.json").read_text()) | STRICT


def test_nothing_is_allowed_that_the_pages_do_not_need() -> None:
    policy = dict(
        part.strip().split(" ", 1)
        for part in json.loads((ROOT / "frontend" / "headers.json").read_text())["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)
    assert "://" not in str(policy)


def test_services_have_the_same_headers() -> None:
    assert added_headers("api-headers.conf") == proxy.API_HEADERS | STRICT
    hidden = set(re.findall(r"^proxy_hide_header (\S+);$", (FOLDER / "proxy.conf").read_text(), re.MULTILINE))
    assert hidden == set(proxy.API_HEADERS | STRICT)
    assert "include /etc/nginx/api-headers.conf;" in (FOLDER / "proxy.conf").read_text()


def test_what_nginx_answers_itself_has_the_headers_too() -> None:
    own = {head: body for head, body in locations().items() if "return" in body and "error_page" not in body}
    assert set(own) == {"= /healthz", "@unavailable", "@nothing", "@too_large", "@plain"}
    for head, body in own.items():
        assert "include /etc/nginx/api-headers.conf;" in body, head
        assert "add_header Cache-Control no-store always;" in body, head


def test_nothing_is_said_but_over_tls() -> None:
    assert re.findall(r"^ *listen (.*);$", NGINX, re.MULTILINE) == ["8443 ssl http2"]
    assert re.findall(r"^ *ssl_protocols (.*);$", NGINX, re.MULTILINE) == ["TLSv1.2 TLSv1.3"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    said = json.dumps({name: service.get("environment") for name, service in compose.items()})
    assert set(re.findall(r"\bredis://[^\"]*", said)) == set()
    assert set(re.findall(r"http://(frontend|redis|postgres)", said)) == set()
    databases = re.findall(r"postgresql[^\"]*", said)
    assert len(databases) == 4
    assert all("sslmode=verify-full&sslrootcert=/run/secrets/ca.pem" in url for url in databases)
    rules = (ROOT / "deploy" / "pg_hba.conf").read_text().splitlines()
    assert {line.split()[0] for line in rules if not line.startswith("#")} == {"local", "hostssl"}
    assert "\nport 0\ntls-port 6379\n" in (ROOT / "deploy" / "redis" / "start.sh").read_text()


def test_every_answer_of_a_page_has_the_headers() -> None:
    served = {head: body for head, body in locations().items() if "try_files" in body or "internal" in body}
    served = {head: body for head, body in served.items() if not head.startswith("@")}
    assert set(served) == {"= /", "/", "/assets/", "= /404.html"}
    for head, body in served.items():
        assert "include /etc/nginx/headers.conf;" in body, head
        assert f'add_header Cache-Control "{pages.IMMUTABLE}";' in body or (
            head != "/assets/" and f"add_header Cache-Control {pages.ASK_AGAIN} always;" in body
        ), head


def test_cookies_are_auths_alone() -> None:
    assert len(proxied()) >= 8
    for head, body in proxied().items():
        assert ("cookieless.conf" in body) is (f"set $service {proxy.COOKIES_OF};" not in body), head


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/api/auth/v1/tokens", "/api/auth/"),
        ("/api/auth/v1/csp-reports", "= /api/auth/v1/csp-reports"),
        ("/api/chain/v1/rpc", "/api/chain/"),
        ("/api/aggregator/v1/jobs", "/api/aggregator/"),
        ("/api/aggregator/v1/jobs/ab12/stream", "~ ^/api/aggregator/v1/jobs/[^/]+/stream$"),
        (
            "/api/aggregator/v1/jobs/ab12/rounds/3/masking/shares/0x1",
            "~ ^/api/aggregator/v1/jobs/[^/]+/rounds/[0-9]+/masking/",
        ),
        ("/api/model/v1/models", "/api/model/"),
        ("/api/model/v1/initial-models", "= /api/model/v1/initial-models"),
        ("/api/model/v1/predictions", "= /api/model/v1/predictions"),
        ("/api/model/v1/artifacts/ab12", "/api/model/v1/artifacts/"),
        ("/api/model/v1/uploads/x", "~ ^/api/model/v1/uploads(/.*)?$"),
    ],
)
def test_the_same_limits_hold(path: str, location: str) -> None:
    body = proxied()[location]
    ours = next((limits for pattern, limits in proxy.LIMITS if pattern.fullmatch(path)), proxy.Limits())
    assert (size(body), silence(body)) == (ours.body, ours.silence)


def test_every_location_of_a_service_is_compared_above() -> None:
    mark = next(mark for mark in test_the_same_limits_hold.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert {location for _, location in mark.args[1]} == set(proxied())
    assert len(proxy.LIMITS) == len(proxied()) - 4


def test_the_image_has_every_file_that_nginx_reads() -> None:
    recipe = (ROOT / "Dockerfile").read_text()
    for file in FOLDER.iterdir():
        assert f"deploy/frontend/{file.name} " in recipe, file.name
        assert file.name == "nginx.conf" or f"/etc/nginx/{file.name};" in NGINX
