"""Recording: interceptions and what they own, idempotent by id.

Everything is inserted where its id is free, and compared where it is not: the same content is a repeat and changes
nothing, other content is a conflict. The database decides which of two writers came first; nobody checks before they
insert. A batch is recorded whole or, by the exception that ends the caller's transaction, not at all.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Literal
from uuid import UUID

from service import errors, instants, jsontext
from service.db import Connection
from service.errors import Validation

Kind = Literal["token_usages", "user_prompts", "tool_usages", "model_thoughts"]

# The columns of each kind, and what stands in one that the sender left out.
_CHILD_DEFAULTS: dict[Kind, dict[str, Any]] = {
    "token_usages": {
        "id": None,
        "interception_id": None,
        "provider_response_id": None,
        "input_tokens": None,
        "output_tokens": None,
        "cache_read_input_tokens": 0,
        "cache_write_input_tokens": 0,
        "metadata": {},
        "created_at": None,
    },
    "user_prompts": {
        "id": None,
        "interception_id": None,
        "provider_response_id": None,
        "prompt": None,
        "metadata": {},
        "created_at": None,
    },
    "tool_usages": {
        "id": None,
        "interception_id": None,
        "provider_response_id": None,
        "provider_tool_call_id": None,
        "server_url": None,
        "tool": None,
        "input": "",
        "injected": False,
        "invocation_error": None,
        "metadata": {},
        "created_at": None,
    },
    "model_thoughts": {"interception_id": None, "content": None, "metadata": {}, "created_at": None},
}
_INTERCEPTION_DEFAULTS: dict[str, Any] = {
    "id": None,
    "initiator_id": None,
    "api_key_id": None,
    "provider": None,
    "provider_name": "",
    "model": None,
    "client": None,
    "metadata": {},
    "started_at": None,
    "ended_at": None,
    "client_session_id": None,
}
_BEGUN_DEFAULTS = {name: default for name, default in _INTERCEPTION_DEFAULTS.items() if name != "ended_at"}
KINDS: tuple[Kind, ...] = tuple(_CHILD_DEFAULTS)


class Conflicting(Exception):
    """Some of a batch cannot be stored; `refusals` says why, by position."""

    def __init__(self, refusals: Mapping[int, errors.Conflict | errors.InterceptionNotFound]) -> None:
        self.refusals = refusals
        super().__init__(f"{len(refusals)} of a batch cannot be stored")


class Outcome(Enum):
    """What recording an interception did."""

    CREATED = "created"
    EXTENDED = "extended"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Initiator:
    """The user who caused an interception, as a bridge names them; a name or picture that is None was not told."""

    id: UUID
    username: str
    name: str | None = None
    avatar_url: str | None = None


@dataclass(frozen=True, slots=True)
class Interception:
    """An interception as it was sent.

    `sent` holds the members that the sender gave, by column name, always id, initiator_id, provider, model and started_at;
    `children` likewise what it owns, each with its interception_id and, thoughts apart, its id.
    """

    sent: Mapping[str, Any]
    initiator: Initiator | None = None
    correlating_tool_call_id: str | None = None
    children: Mapping[Kind, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def id(self) -> UUID:
        """Its id."""
        found: UUID = self.sent["id"]
        return found


@dataclass(frozen=True, slots=True)
class Addition:
    """What comes to an interception that is stored: children, each with its interception_id, and its end, if any.

    An end that is `only_if_running` gives way to one that is there already, and to the interception not being there.
    """

    interception_id: UUID
    children: Mapping[Kind, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    ended_at: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    only_if_running: bool = False


def child_id(interception_id: UUID, *, kind: Kind, position: int) -> UUID:
    """The id of a nested record that brought none: a UUIDv5 of interception, kind and position, the same each time."""
    return uuid.uuid5(interception_id, f"{kind}:{position}")


async def record(connection: Connection, *, interception: Interception) -> Outcome:
    """Store what is new of an interception, and tell what that was.

    Raises Conflict, with a validation for each member that differs: `model`, or `token_usages.0.created_at`.
    """
    try:
        [outcome] = await record_batch(connection, interceptions=[interception])
    except Conflicting as conflicting:
        raise conflicting.refusals[0] from None
    return outcome


async def record_batch(connection: Connection, *, interceptions: Sequence[Interception]) -> list[Outcome]:
    """Store what is new of these interceptions, and tell for each of them what that was.

    Raises Conflicting, which names every one of them that differs from what is stored.
    """
    created = await _insert_interceptions(connection, interceptions)
    repeated = [position for position in range(len(interceptions)) if position not in created]
    members: defaultdict[int, list[str]] = defaultdict(list)
    extended: set[int] = set()
    if repeated:
        sent = [_without_open_end(interceptions[position].sent) for position in repeated]
        for index, member in await _compare(connection, "interceptions", sent):
            members[repeated[index]].append(member)
        alike = [position for position in repeated if position not in members]
        extended |= await _end_repeated(connection, interceptions, alike, members=members)
    for kind in KINDS:
        extended |= await _record_nested(connection, interceptions, kind=kind, members=members)
    if members:
        raise Conflicting({position: _conflict(members[position]) for position in sorted(members)})
    return [
        Outcome.CREATED if position in created else Outcome.EXTENDED if position in extended else Outcome.UNCHANGED
        for position in range(len(interceptions))
    ]


async def begin_batch(connection: Connection, *, interceptions: Sequence[Interception]) -> bool:
    """Store interceptions that begin, of other ids each, by one statement; whether all of them were new.

    Each has no end yet, and no children but one prompt, at most, as old as itself. Where not all are new, those that were
    are stored, and `record_batch` tells how the others differ.
    """
    prompts: list[Mapping[str, Any]] = [
        next(iter(interception.children.get("user_prompts", ())), {}) for interception in interceptions
    ]
    row = await connection.row(
        "recording/begin_interceptions",
        **_columns(_BEGUN_DEFAULTS, [interception.sent for interception in interceptions]),
        correlating_tool_call_id=[interception.correlating_tool_call_id for interception in interceptions],
        prompt_id=[prompt.get("id") for prompt in prompts],
        prompt=[prompt.get("prompt") for prompt in prompts],
        prompt_metadata=[jsontext.dump(prompt["metadata"]) if prompt else None for prompt in prompts],
    )
    return row is not None and (row["interceptions"], row["prompts"]) == (
        len(interceptions),
        sum(1 for prompt in prompts if prompt),
    )


async def record_children(
    connection: Connection,
    *,
    interception_id: UUID,
    kind: Kind,
    children: Sequence[Mapping[str, Any]],
    listed: bool = True,
) -> bool:
    """Store what is new of an interception's children; whether anything was.

    Raises InterceptionNotFound, or Conflict with a validation for each member that differs: `prompt`, or `0.prompt` where
    they were sent as a list.
    """
    if not await connection.rows("recording/lock_interceptions", ids=[interception_id]):
        raise errors.InterceptionNotFound
    new, conflicts = await _record_children(connection, kind=kind, children=children)
    if conflicts:
        raise _conflict([f"{position}.{member}" if listed else member for position, member in conflicts])
    return bool(new)


async def end(
    connection: Connection, *, interception_id: UUID, ended_at: datetime, metadata: Mapping[str, Any] | None
) -> bool:
    """End an interception and merge metadata into its own; False where it had ended so before.

    Raises InterceptionNotFound; InvalidBody for an end before the start; Conflict for another end than the first.
    """
    rows = await connection.rows("recording/lock_interceptions", ids=[interception_id])
    if not rows:
        raise errors.InterceptionNotFound
    started_at, first_end = rows[0]["started_at"], rows[0]["ended_at"]
    if first_end is not None:
        if first_end != ended_at:
            raise errors.Conflict(
                validations=[Validation("ended_at", f"The interception ended at {instants.format(first_end)} already.")]
            )
        if metadata is not None and not await connection.value(
            "recording/holds_metadata", interception_id=interception_id, metadata=jsontext.dump(metadata)
        ):
            raise _conflict(["metadata"])
        return False
    if ended_at < started_at:
        raise errors.InvalidBody(validations=[Validation("ended_at", _ENDS_TOO_EARLY)])
    await _end_all(connection, {interception_id: (ended_at, metadata or {})})
    return True


async def add_batch(connection: Connection, *, additions: Sequence[Addition]) -> None:
    """Store what is new of these additions, of an interception one at most. An end before the start is put at the start.

    Raises Conflicting, which names every one whose interception is not stored, or that differs from what is.
    """
    rows = await connection.rows(
        "recording/lock_interceptions", ids=sorted(addition.interception_id for addition in additions)
    )
    stored = {row["id"]: row for row in rows}
    refusals: dict[int, errors.Conflict | errors.InterceptionNotFound] = {
        position: errors.InterceptionNotFound()
        for position, addition in enumerate(additions)
        if addition.interception_id not in stored and not addition.only_if_running
    }
    found = [position for position, addition in enumerate(additions) if addition.interception_id in stored]
    members: defaultdict[int, list[str]] = defaultdict(list)
    ends: dict[UUID, tuple[datetime, Mapping[str, Any]]] = {}
    for position in found:
        addition = additions[position]
        row = stored[addition.interception_id]
        if addition.ended_at is None:
            continue
        ended_at = max(addition.ended_at, row["started_at"])
        if row["ended_at"] is None:
            ends[addition.interception_id] = (ended_at, addition.metadata)
        elif row["ended_at"] != ended_at and not addition.only_if_running:
            members[position].append("ended_at")
    for kind in KINDS:
        places = [(position, child) for position in found for child in additions[position].children.get(kind, ())]
        if places:
            _, conflicts = await _record_children(connection, kind=kind, children=[child for _, child in places])
            for place, member in conflicts:
                members[places[place][0]].append(f"{kind}.{member}")
    refusals |= {position: _conflict(names) for position, names in members.items()}
    if refusals:
        raise Conflicting(refusals)
    await _end_all(connection, ends)


async def _end_all(connection: Connection, ends: Mapping[UUID, tuple[datetime, Mapping[str, Any]]]) -> None:
    if not ends:
        return
    await connection.run(
        "recording/finish_interceptions",
        ids=list(ends),
        ended_at=[ended_at for ended_at, _ in ends.values()],
        metadata=[jsontext.dump(metadata) for _, metadata in ends.values()],
    )


_ENDS_TOO_EARLY = "must not be before started_at"


async def _insert_interceptions(connection: Connection, interceptions: Sequence[Interception]) -> set[int]:
    """The positions of those that were new; of several with one id, the first."""
    rows = await connection.rows(
        "recording/insert_interceptions",
        **_columns(_INTERCEPTION_DEFAULTS, [interception.sent for interception in interceptions]),
        correlating_tool_call_id=[interception.correlating_tool_call_id for interception in interceptions],
    )
    return _first_positions([interception.id for interception in interceptions], {row["id"] for row in rows})


async def _end_repeated(
    connection: Connection,
    interceptions: Sequence[Interception],
    repeated: Sequence[int],
    *,
    members: defaultdict[int, list[str]],
) -> set[int]:
    """Set the ends that the stored ones lack; the positions of those that lacked one. Notes in `members` what differs."""
    bringing = [position for position in repeated if interceptions[position].sent.get("ended_at") is not None]
    if not bringing:
        return set()
    ends: dict[UUID, int] = {}
    for position in bringing:
        ends.setdefault(interceptions[position].id, position)
    await connection.rows("recording/lock_interceptions", ids=sorted(ends))
    rows = await connection.rows(
        "recording/end_interceptions",
        ids=list(ends),
        ended_at=[interceptions[position].sent["ended_at"] for position in ends.values()],
    )
    # Between the comparison and the lock another writer may have set another end.
    sent = [
        {"id": interceptions[position].id, "ended_at": interceptions[position].sent["ended_at"]}
        for position in bringing
    ]
    for index, member in await _compare(connection, "interceptions", sent):
        members[bringing[index]].append(member)
    return {ends[row["id"]] for row in rows}


async def _record_nested(
    connection: Connection, interceptions: Sequence[Interception], *, kind: Kind, members: defaultdict[int, list[str]]
) -> set[int]:
    """Store one kind of nested records; the positions of those that gained any. Notes in `members` what differs."""
    places = [
        (position, index)
        for position, interception in enumerate(interceptions)
        for index in range(len(interception.children.get(kind, ())))
    ]
    if not places:
        return set()
    children = [interceptions[position].children[kind][index] for position, index in places]
    new, conflicts = await _record_children(connection, kind=kind, children=children)
    for place, member in conflicts:
        position, index = places[place]
        members[position].append(f"{kind}.{index}.{member}")
    return {places[place][0] for place in new}


async def _record_children(
    connection: Connection, *, kind: Kind, children: Sequence[Mapping[str, Any]]
) -> tuple[set[int], list[tuple[int, str]]]:
    """The positions of the children that were new, and of those that differ from what is stored, with the member."""
    rows = await connection.rows(f"recording/insert_{kind}", **_columns(_CHILD_DEFAULTS[kind], children))
    if kind == "model_thoughts":
        # A thought is what it says: one that is stored already is equal.
        owners = {row["interception_id"] for row in rows}
        return {position for position, child in enumerate(children) if child["interception_id"] in owners}, []
    new = _first_positions([child["id"] for child in children], {row["id"] for row in rows})
    repeated = [position for position in range(len(children)) if position not in new]
    if not repeated:
        return new, []
    conflicts = await _compare(connection, kind, [children[position] for position in repeated])
    return new, [(repeated[position], member) for position, member in conflicts]


async def _compare(connection: Connection, noun: str, sent: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Where what was sent differs from what is stored under the same id: position and member."""
    body = jsontext.dump([{name: _json(value) for name, value in members.items()} for members in sent])
    rows = await connection.rows(f"recording/compare_{noun}", sent=body)
    return [(row["position"] - 1, row["member"]) for row in rows]


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return instants.format(value)
    return str(value) if isinstance(value, UUID) else value


def _without_open_end(sent: Mapping[str, Any]) -> dict[str, Any]:
    # `"ended_at": null` is how a running interception reads: it says nothing about one that has ended since.
    return {name: value for name, value in sent.items() if name != "ended_at" or value is not None}


def _columns(defaults: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """One list a column, as unnest takes them."""
    columns = {name: [row.get(name, default) for row in rows] for name, default in defaults.items()}
    columns["metadata"] = [jsontext.dump(value) for value in columns["metadata"]]
    return columns


def _first_positions(ids: Sequence[UUID], new: set[UUID]) -> set[int]:
    first: dict[UUID, int] = {}
    for position, found in enumerate(ids):
        first.setdefault(found, position)
    return {position for found, position in first.items() if found in new}


def _conflict(members: Sequence[str]) -> errors.Conflict:
    return errors.Conflict(
        validations=[
            Validation(member, "differs from what is stored under this id") for member in dict.fromkeys(members)
        ]
    )


def username_conflict() -> errors.Conflict:
    """What UsernameTaken means to who records: nothing is stored."""
    return errors.Conflict(
        validations=[
            Validation("initiator.username", "belongs to a user with another id (case does not tell names apart)")
        ]
    )
