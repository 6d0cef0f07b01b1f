"""JSON's own types for what comes from outside: a number is no text, nothing but true and false is a truth value, and
no text holds what databases cannot.

Pydantic would take `"1"` and `true` for 1, and `"yes"` and 1 for true, which a description (OpenAPI) says of none of
them. A whole number may be written `1.0` (JSON Schema 2020-12, section 4.2.3).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, StrictBool, StringConstraints


def number(value: Any) -> Any:
    """The same value. Raises `ValueError` for text and truth values."""
    if isinstance(value, bool | str | bytes):
        raise ValueError("must be a number")
    return value


NO_TEXT = BeforeValidator(number)
"""Stands behind a type's own bounds, and around `| None`: else pydantic describes bounds in words of its own."""

Integer = Annotated[int, NO_TEXT]
Number = Annotated[float, NO_TEXT]
IntegerOrNone = Annotated[int | None, NO_TEXT]
NumberOrNone = Annotated[float | None, NO_TEXT]
Truth = StrictBool

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""Text without U+0000, which PostgreSQL stores in no text."""
