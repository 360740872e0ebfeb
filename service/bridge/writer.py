"""Writes what records say to the database, several together, and to the dead letters what it will never take."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog

from service import errors, jsontext
from service.bridge.records import Content, dump
from service.bridge.spool import Directory, Record
from service.db import Connection, Database
from service.metrics import Metrics
from service.store import recording
from service.store.recording import Addition, Conflicting, Interception

log = structlog.get_logger("bridgelog.recorder")


@dataclass(slots=True)
class _Work:
    """What is to be written of one interception in one transaction."""

    records: list[Record] = field(default_factory=list)
    start: Interception | None = None
    children: dict[recording.Kind, list[Mapping[str, Any]]] = field(default_factory=dict)
    end: Addition | None = None

    def take(self, content: Content) -> None:
        """Add what a record says."""
        if isinstance(content, Interception):
            self.start = content
            return
        for kind, children in content.children.items():
            self.children.setdefault(kind, []).extend(children)
        if content.ended_at is not None:
            self.end = content

    def addition(self, interception_id: UUID) -> Addition | None:
        """What comes to it when it is stored."""
        if self.end is None:
            return Addition(interception_id, children=self.children) if self.children else None
        return replace(self.end, children=self.children, only_if_running=self.end.only_if_running and not self.children)


class _Refused(Exception):
    """The database will never take what a batch says of these interceptions."""

    def __init__(self, refusals: Mapping[UUID, errors.Refusal]) -> None:
        self.refusals = refusals
        super().__init__(f"{len(refusals)} interceptions cannot be stored")


class Writer:
    """Brings records to the database."""

    def __init__(self, database: Database, directory: Directory, *, metrics: Metrics) -> None:
        self._database = database
        self._directory = directory
        self._metrics = metrics

    async def write(self, records: Sequence[tuple[Record, Content]]) -> list[str]:
        """Write records in their order, and return the ids of the tool calls that they tell of.

        Raises a refusal where the database does not take them at present: what was written by then may be written again.
        """
        works: dict[UUID, _Work] = {}
        # Those in `works`, and all of them.
        calls: set[str] = set()
        told: list[str] = []
        buried = 0
        for record, content in records:
            work = works.get(record.interception_id)
            answered = content.correlating_tool_call_id if isinstance(content, Interception) else None
            if answered in calls or (work and (work.end or isinstance(content, Interception))):
                # What answers a tool call finds its thread only where that is stored.
                buried += await self._write_together(works)
                works, calls = {}, set()
            work = works.setdefault(record.interception_id, _Work())
            work.records.append(record)
            work.take(content)
            if isinstance(content, Addition):
                called = [tool["provider_tool_call_id"] for tool in content.children.get("tool_usages", ())]
                calls.update(called)
                told += called
        buried += await self._write_together(works)
        self._metrics.recorder_records.labels("written").inc(len(records) - buried)
        self._metrics.recorder_records.labels("buried").inc(buried)
        return told

    async def _write_together(self, works: dict[UUID, _Work]) -> int:
        """Write in one transaction what can be written; how many records the database will never take."""
        buried = 0
        while works:
            try:
                await self._database.settle(functools.partial(_store, works=works))
            except _Refused as refused:
                for interception_id, refusal in refused.refusals.items():
                    buried += await self._bury(works.pop(interception_id), refusal)
            except errors.TooLarge as problem:
                return buried + await self._write_apart(works, problem)
            except errors.Refusal:
                raise
            except (
                Exception
            ) as problem:  # of the records or of this program: it must not keep the others from the database
                log.exception("records met a defect")
                return buried + await self._write_apart(works, problem)
            else:
                break
        return buried

    async def _write_apart(self, works: dict[UUID, _Work], problem: Exception) -> int:
        """Find out which of several it is that cannot be written, and bury that; how many records these are."""
        if len(works) == 1:
            return sum([await self._bury(work, problem) for work in works.values()])
        return sum([await self._write_together({interception_id: work}) for interception_id, work in works.items()])

    async def _bury(self, work: _Work, problem: Exception) -> int:
        reason = problem.message if isinstance(problem, errors.Refusal) else type(problem).__name__
        validations = problem.validations if isinstance(problem, errors.Refusal) else ()
        for record in work.records:
            kind = record.kind.name.lower()
            letter = {
                "interception_id": record.interception_id,
                "kind": kind,
                "at": datetime.fromtimestamp(record.at, UTC),
                "reason": reason,
                "validations": [{"field": wrong.field, "detail": wrong.detail} for wrong in validations],
                "record": jsontext.parse(record.body),
            }
            await asyncio.to_thread(self._directory.bury, dump(letter))
            log.error(
                "a record went to the dead letters",
                interception_id=str(record.interception_id),
                kind=kind,
                reason=reason,
            )
        return len(work.records)


async def _store(connection: Connection, *, works: Mapping[UUID, _Work]) -> None:
    starts = {interception_id: work.start for interception_id, work in works.items() if work.start}
    additions = {
        interception_id: addition
        for interception_id, work in works.items()
        if (addition := work.addition(interception_id))
    }
    for ids, store in (
        ([*starts], lambda: recording.record_batch(connection, interceptions=[*starts.values()])),
        ([*additions], lambda: recording.add_batch(connection, additions=[*additions.values()])),
    ):
        if ids:
            try:
                await store()
            except Conflicting as conflicting:
                raise _Refused({ids[position]: refusal for position, refusal in conflicting.refusals.items()}) from None
