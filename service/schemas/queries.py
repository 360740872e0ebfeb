"""Query parameters of the lists, validated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from marshmallow import EXCLUDE, Schema, ValidationError, fields
from multidict import MultiMapping

from service import errors
from service.errors import Validation
from service.identifiers import parse_uuid

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

_DIGITS = re.compile(r"\+?[0-9]+")
_MAX_INTEGER = 2**31 - 1
_MAX_ECHO = 64


class QueryInteger(fields.Integer):
    """An integer of a query: ASCII digits with an optional plus, within 32 bits; empty means 0."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if value == "":
            return 0
        if _DIGITS.fullmatch(value) and len(value) <= _MAX_ECHO and int(value) <= _MAX_INTEGER:
            return int(value)
        why = "value out of range" if re.fullmatch(r"[+-]?[0-9]+", value, re.ASCII) else "invalid syntax"
        message = f'Query param "{attr}" must be a valid 32-bit positive integer: parsing "{_echo(value)}": {why}'
        raise ValidationError(message)


class QueryUUID(fields.UUID):
    """A UUID of a query; empty or all-zero means absent."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> UUID | None:  # type: ignore[override]
        if value == "":
            return None
        parsed = parse_uuid(value)
        if parsed is None:
            message = f'Query param "{attr}" must be a valid uuid'
            raise ValidationError(message)
        return parsed if parsed.int else None


class NamesQuery(Schema):
    """The parameters of …/models and …/clients."""

    class Meta:
        unknown = EXCLUDE

    limit = QueryInteger(
        load_default=0,
        metadata={
            "description": "Page limit: 1 to 1000; absent, empty or 0 means 100.",
            "minimum": 0,
            "maximum": MAX_LIMIT,
        },
    )
    offset = QueryInteger(
        load_default=0, metadata={"description": "Skip that many.", "minimum": 0, "maximum": _MAX_INTEGER}
    )
    q = fields.String(
        load_default="", metadata={"description": "A case-sensitive prefix, taken literally.", "maxLength": 8192}
    )


class PageQuery(Schema):
    """The parameters of …/interceptions, in the order in which their errors are told."""

    class Meta:
        unknown = EXCLUDE

    after_id = QueryUUID(
        load_default=None, metadata={"description": "Cursor pagination after ID (cannot be used with offset)"}
    )
    limit = QueryInteger(
        load_default=0,
        metadata={
            "description": "Page limit: 1 to 1000; absent, empty or 0 means 100.",
            "minimum": 0,
            "maximum": MAX_LIMIT,
        },
    )
    offset = QueryInteger(
        load_default=0,
        metadata={
            "description": "Offset pagination (cannot be used with after_id)",
            "minimum": 0,
            "maximum": _MAX_INTEGER,
        },
    )
    q = fields.String(
        load_default="",
        metadata={
            "description": "Search query in the format key:value. Available keys are: initiator, provider, provider_name, "
            "model, client, started_after, started_before.",
            "maxLength": 8192,
        },
    )


@dataclass(frozen=True, slots=True)
class Page:
    """Which page of a list is asked for: after `after_id`, or else `offset` rows in."""

    limit: int
    offset: int
    after_id: UUID | None
    q: str


def read_page(query: MultiMapping[str]) -> Page:
    """The page that a query asks for; raises InvalidQueryParameters or InvalidLimit."""
    values = _load_query(PageQuery(), query)
    if values["after_id"] is not None and values["offset"]:
        raise errors.InvalidQueryParameters("Cannot use both after_id and offset pagination in the same request.")
    return Page(limit=_limit(values), offset=values["offset"], after_id=values["after_id"], q=values["q"])


def read_names_page(query: MultiMapping[str]) -> Page:
    """The page of names that a query asks for; raises InvalidQueryParameters or InvalidLimit."""
    values = _load_query(NamesQuery(), query)
    return Page(limit=_limit(values), offset=values["offset"], after_id=None, q=values["q"])


def _limit(values: Mapping[str, Any]) -> int:
    limit: int = values["limit"] or DEFAULT_LIMIT
    if limit > MAX_LIMIT:
        raise errors.InvalidLimit(f"Pagination limit must be in range (0, {MAX_LIMIT}]")
    return limit


def _load_query(schema: Schema, query: MultiMapping[str]) -> dict[str, Any]:
    problems: dict[str, list[str]] = {}
    try:
        values: dict[str, Any] = schema.load({name: query[name] for name in schema.fields if name in query})
    except ValidationError as invalid:
        values = {}
        problems = {str(name): list(texts) for name, texts in dict(invalid.messages_dict).items()}
    for name in schema.fields:
        if (times := len(query.getall(name, ()))) > 1:
            problems[name] = [
                (
                    f'Query param "{name}" provided more than once, found {times} times. '
                    "Only provide 1 instance of this query param."
                )
            ]
    if problems:
        raise errors.InvalidQueryParameters(
            validations=[
                Validation(field=name, detail=text) for name in schema.fields for text in problems.get(name, ())
            ]
        )
    return values


def _echo(value: str) -> str:
    return value if len(value) <= _MAX_ECHO else f"{value[:_MAX_ECHO]}…"
