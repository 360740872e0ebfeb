"""Importing: a stream of finished interceptions, stored batch by batch; a bad record rejects itself, not its neighbours."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncIterable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from service import errors, jsontext, records_stream
from service.db import Connection, Database
from service.errors import Validation
from service.schemas import records
from service.store import recording, users
from service.store.recording import Conflicting, Interception, Outcome

MAX_RECORD = 16 * 1024 * 1024
BATCH_BYTES = 4 * 1024 * 1024

_MOST_TOLD = 1000
_MOST_TOLD_OF_ONE = 100
_BATCH_RECORDS = 500
_BREATHE_EVERY = 20
# A record of this many bytes is parsed and checked in some ten milliseconds; a larger one must not keep others waiting.
_AT_ONCE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that was not stored, and why. Lines count from 1, blank ones too; in an array, elements."""

    line: int
    message: str
    validations: tuple[Validation, ...] = ()


@dataclass(slots=True)
class Report:
    """What became of a stream's records; of those rejected, the first thousand are told, by line."""

    imported: int = 0
    unchanged: int = 0
    rejected_total: int = 0
    rejected: list[Rejected] = field(default_factory=list)

    def reject(self, line: int, message: str, validations: Sequence[Validation] = ()) -> None:
        """Count a rejected record, and tell of it while there is room."""
        self.rejected_total += 1
        # A conflict is found when its batch is stored, behind lines that could not be read.
        rejected = Rejected(line=line, message=message, validations=tuple(validations[:_MOST_TOLD_OF_ONE]))
        bisect.insort(self.rejected, rejected, key=lambda other: other.line)
        del self.rejected[_MOST_TOLD:]

    def as_json(self) -> dict[str, object]:
        """The answer of the import call."""
        return {
            "imported": self.imported,
            "unchanged": self.unchanged,
            "rejected_total": self.rejected_total,
            "rejected": [
                {
                    "line": rejected.line,
                    "message": rejected.message,
                    "validations": [{"field": wrong.field, "detail": wrong.detail} for wrong in rejected.validations],
                }
                for rejected in self.rejected
            ],
        }


class _Batch:
    """Interceptions to store in one transaction, by line: so few, and so unlike, that none bears on another.

    Two that share an id or a username would be told apart from each other before it is known whether the first can be
    stored; and what answers a tool call finds that call only once it is stored.
    """

    def __init__(self) -> None:
        self.interceptions: dict[int, Interception] = {}
        self.size = 0
        self._ids: set[UUID] = set()
        self._users: dict[UUID, str] = {}
        self._usernames: dict[str, UUID] = {}
        self._tool_calls: set[str] = set()

    def takes(self, interception: Interception, *, size: int) -> bool:
        """Whether there is room for it, and nothing that bears on it."""
        if not self.interceptions:
            return True
        if len(self.interceptions) >= _BATCH_RECORDS or self.size + size > BATCH_BYTES:
            return False
        user = interception.initiator
        return (
            self._ids.isdisjoint(_ids(interception))
            and interception.correlating_tool_call_id not in self._tool_calls
            and (
                user is None
                or (
                    self._users.get(user.id, user.username) == user.username
                    and self._usernames.get(user.username.lower(), user.id) == user.id
                )
            )
        )

    def add(self, line: int, interception: Interception, *, size: int) -> None:
        """Take it, `size` bytes of text."""
        self.interceptions[line] = interception
        self.size += size
        self._ids.update(_ids(interception))
        if interception.initiator:
            self._users[interception.initiator.id] = interception.initiator.username
            self._usernames[interception.initiator.username.lower()] = interception.initiator.id
        calls = (child.get("provider_tool_call_id") for child in interception.children.get("tool_usages", ()))
        self._tool_calls.update(call for call in calls if call)


def _ids(interception: Interception) -> Iterator[UUID]:
    yield interception.id
    for children in interception.children.values():
        for child in children:
            if "id" in child:
                yield child["id"]


async def import_stream(
    database: Database,
    chunks: AsyncIterable[bytes],
    *,
    progress: Callable[[Report], None] = lambda _: None,
    hold: Callable[[int], None] = lambda _: None,
) -> Report:
    """Store every finished interception of an NDJSON or JSON array stream; `progress` hears of each batch.

    `hold` hears how many bytes of the stream are held, never more than a record and a batch; it may raise.

    Each batch is a transaction of its own, so what a broken connection cuts off is what came last; sending all of it again
    is safe. Raises DatabaseUnavailable where the database goes away.
    """
    report = Report()
    batch = _Batch()

    def collecting(size: int) -> None:
        hold(batch.size + size)

    async def store() -> None:
        nonlocal batch
        await _store(database, batch.interceptions, report=report)
        progress(report)
        batch = _Batch()

    async for record in records_stream.split(chunks, max_record=MAX_RECORD, collecting=collecting):
        if record.line % _BREATHE_EVERY == 0:
            await asyncio.sleep(0)  # reading a long stream must not keep other requests waiting
        if record.data is None:
            report.reject(record.line, record.problem or "")
            continue
        size = len(record.data)
        hold(batch.size + size)
        try:
            interception = await asyncio.to_thread(_read, record.data) if size > _AT_ONCE else _read(record.data)
        except errors.Refusal as refusal:
            report.reject(record.line, refusal.detail or refusal.message, refusal.validations)
            continue
        if not batch.takes(interception, size=size):
            await store()
        batch.add(record.line, interception, size=size)
        if batch.size >= BATCH_BYTES:
            await store()
    await store()
    return report


def _read(data: bytes) -> Interception:
    interception = records.load_interception(jsontext.parse(data))
    if interception.sent.get("ended_at") is None:
        raise errors.InvalidBody(
            validations=[Validation("ended_at", "is required: only finished interceptions can be imported")]
        )
    return interception


async def _store(database: Database, batch: Mapping[int, Interception], *, report: Report) -> None:
    """Record a batch without those that conflict with what is stored."""
    left = dict(batch)

    async def work(connection: Connection) -> list[Outcome]:
        interceptions = list(left.values())
        taken = await users.create_missing(
            connection,
            initiators=[interception.initiator for interception in interceptions if interception.initiator],
            seen_at=datetime.now(UTC),
        )
        if taken:
            raise Conflicting(
                {
                    position: recording.username_conflict()
                    for position, interception in enumerate(interceptions)
                    if interception.initiator and interception.initiator.id in taken
                }
            )
        return await recording.record_batch(connection, interceptions=interceptions)

    while left:
        try:
            outcomes = await database.settle(work)
        except Conflicting as conflicting:
            lines = list(left)
            for position, refusal in conflicting.refusals.items():
                report.reject(lines[position], refusal.message, refusal.validations)
                del left[lines[position]]
        else:
            report.unchanged += outcomes.count(Outcome.UNCHANGED)
            report.imported += len(outcomes) - outcomes.count(Outcome.UNCHANGED)
            return
