"""The built pages: `/jobs` is `jobs.html`, hashed assets may be kept for a year, everything else is asked for anew."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Mapping
from pathlib import Path, PurePath

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

ASSETS = "assets"
IMMUTABLE = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"

# Python 3.11 does not know all that the build writes, and a system's own table may know less.
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml", ".webmanifest": "application/manifest+json"}
_TYPES |= {".woff2": "font/woff2", ".webp": "image/webp"}


class Pages(StaticFiles):
    """ASGI application: a folder's files, with the same headers on each answer."""

    def __init__(self, directory: Path, headers: Mapping[str, str]) -> None:
        super().__init__(directory=directory, html=True)
        self._headers = headers
        for suffix, kind in _TYPES.items():
            mimetypes.add_type(kind, suffix)

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """A file, or the page of that name; hidden files are not there."""
        if any(part.startswith(".") for part in PurePath(path).parts):
            return "", None
        try:
            found = super().lookup_path(path)
            return found if found[1] is not None else super().lookup_path(f"{path}.html")
        except (OSError, ValueError):  # a name too long, or with a byte that no name has
            return "", None

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The answer to a request; the 404 page where there is no such file."""
        try:
            response = await super().get_response(path, scope)
        except HTTPException as error:
            response = PlainTextResponse(error.detail, error.status_code, error.headers)
        response.headers.update(self._headers)
        lasting = PurePath(path).parts[:1] == (ASSETS,) and response.status_code < 400
        response.headers["Cache-Control"] = IMMUTABLE if lasting else ASK_AGAIN
        return response
