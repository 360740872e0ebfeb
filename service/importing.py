"""Importing: a stream of finished interceptions, stored batch by batch; a bad record rejects itself, not its neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from service import errors, jsontext, records_stream
from service.db import Connection, Database
from service.errors import Validation
from service.schemas import records
from service.store import recording, users
from service.store.recording import Interception, Outcome

MAX_RECORD = 16 * 1024 * 1024

_MOST_TOLD = 1000
_BATCH_RECORDS = 500
_BATCH_BYTES = 4 * 1024 * 1024
_BREATHE_EVERY = 20


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that was not stored, and why. Lines count from 1, blank ones too; in an array, elements."""

    line: int
    message: str
    validations: tuple[Validation, ...] = ()


@dataclass(slots=True)
class Report:
    """What became of a stream's records; of those rejected, the first thousand are told."""

    imported: int = 0
    unchanged: int = 0
    rejected_total: int = 0
    rejected: list[Rejected] = field(default_factory=list)

    def reject(self, line: int, message: str, validations: Sequence[Validation] = ()) -> None:
        """Count a rejected record, and tell of it while there is room."""
        self.rejected_total += 1
        if len(self.rejected) < _MOST_TOLD:
            self.rejected.append(Rejected(line=line, message=message, validations=tuple(validations)))

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
                for rejected in sorted(self.rejected, key=lambda rejected: rejected.line)
            ],
        }


async def import_stream(
    database: Database, chunks: AsyncIterable[bytes], *, progress: Callable[[Report], None] = lambda _: None
) -> Report:
    """Store every finished interception of an NDJSON or JSON array stream; `progress` hears of each batch.

    Each batch is a transaction of its own, so what a broken connection cuts off is what came last; sending all of it again
    is safe. Raises DatabaseUnavailable where the database goes away.
    """
    report = Report()
    batch: list[tuple[int, Interception]] = []
    batched_bytes = 0
    async for record in records_stream.split(chunks, max_record=MAX_RECORD):
        if record.line % _BREATHE_EVERY == 0:
            await asyncio.sleep(0)  # reading a long stream must not keep other requests waiting
        if record.data is None:
            report.reject(record.line, record.problem or "")
            continue
        try:
            interception = _read(record.data)
        except errors.Refusal as refusal:
            report.reject(record.line, refusal.detail or refusal.message, refusal.validations)
            continue
        # What answers a tool call may find that call in a record just before it.
        full = len(batch) >= _BATCH_RECORDS or batched_bytes + len(record.data) > _BATCH_BYTES
        if batch and (full or interception.correlating_tool_call_id):
            await _store(database, batch, report=report)
            progress(report)
            batch, batched_bytes = [], 0
        batch.append((record.line, interception))
        batched_bytes += len(record.data)
    if batch:
        await _store(database, batch, report=report)
    progress(report)
    return report


def _read(data: bytes) -> Interception:
    interception = records.load_interception(jsontext.parse(data))
    if interception.sent.get("ended_at") is None:
        raise errors.InvalidBody(
            validations=[Validation("ended_at", "is required: only finished interceptions can be imported")]
        )
    return interception


async def _store(database: Database, batch: Sequence[tuple[int, Interception]], *, report: Report) -> None:
    """Record a batch; one that holds a conflict in halves, down to the record whose conflict it is."""
    interceptions = [interception for _, interception in batch]

    async def work(connection: Connection) -> list[Outcome]:
        await users.create_missing(
            connection,
            initiators=[interception.initiator for interception in interceptions if interception.initiator],
            seen_at=datetime.now(UTC),
        )
        return await recording.record(connection, interceptions=interceptions)

    try:
        outcomes = await database.settle(work)
    except (errors.Conflict, errors.UsernameTaken) as refusal:
        if len(batch) > 1:
            middle = len(batch) // 2
            await _store(database, batch[:middle], report=report)
            await _store(database, batch[middle:], report=report)
            return
        conflict = recording.username_conflict() if isinstance(refusal, errors.UsernameTaken) else refusal
        report.reject(batch[0][0], conflict.message, conflict.validations)
    else:
        report.unchanged += outcomes.count(Outcome.UNCHANGED)
        report.imported += len(outcomes) - outcomes.count(Outcome.UNCHANGED)
