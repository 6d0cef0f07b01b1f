"""What comes from outside is of JSON's own types, and described as it is taken."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from typing import Any

import pytest
from concilia_kit import signing, wire
from concilia_kit.strict import Integer, IntegerOrNone, Number, Text, Truth
from concilia_kit.wire.base import Wire
from pydantic import BaseModel, Field, ValidationError

MODULES = [signing, *(import_module(f"concilia_kit.wire.{each.name}") for each in pkgutil.iter_modules(wire.__path__))]
MODELS = sorted(
    {
        each
        for module in MODULES
        for each in vars(module).values()
        if inspect.isclass(each) and issubclass(each, BaseModel) and each.__module__.startswith("concilia_kit")
    },
    key=lambda each: each.__name__,
)


class Given(Wire):
    """One member of each kind."""

    whole: Integer = Field(default=1, ge=0, lt=10)
    maybe: IntegerOrNone = Field(default=None, ge=0, lt=10)
    share: Number = Field(default=0.5, ge=0, le=1)
    yes: Truth = False
    words: Text = Field(default="", max_length=5)


@pytest.mark.parametrize("value", ["1", True, False, "", "0.5"])
@pytest.mark.parametrize("member", ["whole", "maybe", "share"])
def test_a_number_is_neither_text_nor_a_truth_value(member: str, value: Any) -> None:
    with pytest.raises(ValidationError, match="must be a number"):
        Given.model_validate({member: value})


@pytest.mark.parametrize("value", [1, 0, "yes", "true", 1.0])
def test_a_truth_value_is_true_or_false(value: Any) -> None:
    with pytest.raises(ValidationError, match="boolean"):
        Given.model_validate({"yes": value})


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert Given.model_validate_json('{"whole": 1.0, "share": 1}') == Given(whole=1, share=1.0)


@pytest.mark.parametrize("value", ["\x00", "a\x00b", "\n\x00"])
def test_text_that_no_database_stores_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        Given(words=value)


@pytest.mark.parametrize("value", ["", "a\n", "\ud7ff\U0001f600"])
def test_all_other_text_is_taken(value: str) -> None:
    assert Given(words=value).words == value


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ValidationError):
        Given.model_validate({"words": "\ud800"})


@pytest.mark.parametrize("model", [Given, *MODELS], ids=lambda each: each.__name__)
def test_a_bound_is_described_in_the_words_of_json_schema(model: type[BaseModel]) -> None:
    def words(schema: Any, is_schema: bool = True) -> set[str]:
        if isinstance(schema, list):
            return {word for each in schema for word in words(each)}
        if not isinstance(schema, dict):
            return set()
        named = {word for name, each in schema.items() for word in words(each, name not in {"properties", "$defs"})}
        return named | set(schema) if is_schema else named

    assert not words(model.model_json_schema()) & {"ge", "gt", "le", "lt", "allow_inf_nan"}
