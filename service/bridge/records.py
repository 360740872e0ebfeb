"""What the records of the spool say: in the words of the store, and in JSON, which outlives the process."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from service import instants, jsontext
from service.bridge.spool import Kind, Record
from service.store.recording import Addition, Interception

LOST: Final = {"status": "failed", "error_type": "bridge_lost"}
"""How an interception ends whose bridge was lost before the answer was."""

# What a record says, in the words of the store.
Content = Interception | Addition


def lost_now(interception_id: UUID) -> Addition:
    """The end of an interception whose bridge goes away now."""
    return Addition(interception_id, ended_at=datetime.now(UTC), metadata=LOST, only_if_running=True)


def id_of(content: Content) -> UUID:
    """Of the interception that it is about."""
    return content.id if isinstance(content, Interception) else content.interception_id


def body_of(content: Content) -> bytes:
    """The body of the record that says so."""
    if isinstance(content, Interception):
        return dump(
            {
                "sent": content.sent,
                "correlating_tool_call_id": content.correlating_tool_call_id,
                "children": content.children,
            }
        )
    if content.ended_at is None:
        return dump(content.children)
    return dump({"ended_at": content.ended_at, "metadata": content.metadata})


def read_all(records: Sequence[Record]) -> list[tuple[Record, Content]]:
    """Each with what it says."""
    return [(record, read(record)) for record in records]


def read(record: Record) -> Content:
    """What a record says, in the words of the store."""
    body: Any = jsontext.parse(record.body)
    if record.kind is Kind.START:
        return Interception(
            sent=_restored(body["sent"]),
            correlating_tool_call_id=body["correlating_tool_call_id"],
            children={kind: [_restored(child) for child in children] for kind, children in body["children"].items()},
        )
    if record.kind is Kind.CHILDREN:
        children = {kind: [_restored(child) for child in children] for kind, children in body.items()}
        return Addition(record.interception_id, children=children)
    return Addition(
        record.interception_id,
        ended_at=instants.parse(body["ended_at"]),
        metadata=body["metadata"],
        only_if_running=record.kind is Kind.LOST,
    )


def dump(body: object) -> bytes:
    """JSON of what is clean, or of this program's own."""
    try:
        return _ENCODER.encode(body).encode()
    except TypeError:
        return jsontext.dump(body, default=_plain).encode()  # a Decimal is not for Python's own, which is faster


def _plain(value: object) -> str:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        return instants.format(value) if value.tzinfo is not UTC else value.isoformat()[:-6] + "Z"
    message = f"a {type(value).__name__} is not JSON"
    raise TypeError(message)


_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=_plain
)


def clean(value: Any) -> Any:
    """As PostgreSQL can hold it."""
    kind = type(value)
    if kind is str:
        return jsontext.cleaned(value)
    if kind is dict:
        return {jsontext.cleaned(name): clean(member) for name, member in value.items()}
    if kind is list or kind is tuple:
        return [clean(member) for member in value]
    if kind is float and not math.isfinite(value):
        return None
    return value


_IDS: Final = frozenset({"id", "interception_id", "initiator_id"})
_INSTANTS: Final = frozenset({"started_at", "created_at"})


def _restored(members: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: UUID(value) if name in _IDS else instants.parse(value) if name in _INSTANTS else value
        for name, value in members.items()
    }
