"""Reading what providers and clients send, which may be anything: what is not of the expected kind reads as absent."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any, Final

from service import jsontext
from service.bridge.protocols.interface import BadQuestion
from service.errors import InvalidBody, InvalidJSON

UNKNOWN_ERROR: Final = "unknown_error"

_MOST: Final = 2**63 - 1


def question(body: bytes) -> tuple[dict[str, Any], str]:
    """The members of a request, and the model that it names."""
    try:
        members = jsontext.parse(body)
    except InvalidJSON as problem:
        raise BadQuestion(f"The request body must be valid JSON. {problem.detail}") from None
    except InvalidBody:
        raise BadQuestion("The request body nests too deep to be read.") from None
    if not isinstance(members, dict):
        raise BadQuestion("The request body must be a JSON object.")
    model = text(members.get("model"))
    if not model:
        raise BadQuestion("The request body must name a model: the member 'model' must be a text that is not empty.")
    return members, model


def last(value: object) -> dict[str, Any]:
    """The last element of an array."""
    return mapping(value[-1]) if isinstance(value, list) and value else {}


def event(data: str | None) -> dict[str, Any]:
    """The object that an event carries."""
    if not data:
        return {}
    try:
        return mapping(json.loads(data))
    except (ValueError, RecursionError):
        return {}


def answer(body: bytes) -> dict[str, Any] | None:
    """The object that a whole answer is, its numbers as exact as they came; None where it is none."""
    try:
        members = jsontext.parse(body)
    except (InvalidJSON, InvalidBody):
        return None
    return members if isinstance(members, dict) else None


def mapping(value: object) -> dict[str, Any]:
    """An object."""
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> list[dict[str, Any]]:
    """The objects in an array."""
    return [element for element in value if isinstance(element, dict)] if isinstance(value, list) else []


def text(value: object) -> str:
    """A text, as PostgreSQL can hold it."""
    return jsontext.cleaned(value) if isinstance(value, str) else ""


def json_text(value: object) -> str:
    """The JSON text of a value that was read."""
    try:
        return jsontext.cleaned(jsontext.dump(value))
    except RecursionError:
        return ""


def count(value: object) -> int | None:
    """A number of tokens."""
    return value if type(value) is int and 0 <= value <= _MOST else None


def index(value: object) -> int | None:
    """A number that tells blocks, calls or choices apart."""
    return value if type(value) is int else None


def counters(usage: Mapping[str, Any], *, apart_from: Collection[str], _within: str = "") -> dict[str, Any]:
    """Every number in a provider's usage, under the names, and in the objects, that it stands in.

    `apart_from` names what is told elsewhere; a dot leads into an object. Objects within objects are left out: no provider
    nests counters deeper, and what does must not decide how deep this goes.
    """
    found: dict[str, Any] = {}
    for name, value in usage.items():
        if _within + name in apart_from:
            continue
        number: Any = count(value)
        if isinstance(value, dict) and not _within:
            number = counters(value, apart_from=apart_from, _within=f"{name}.") or None
        elif isinstance(value, (float, Decimal)) and math.isfinite(value):
            number = float(value)
        if number is not None:
            found[jsontext.cleaned(name)] = number
    return found


def error_type(error: object) -> str:
    """The type of an error by the object that describes it, or else its code."""
    members = mapping(error)
    code = members.get("code")
    return text(members.get("type")) or text(code) or (str(code) if type(code) is int else UNKNOWN_ERROR)
