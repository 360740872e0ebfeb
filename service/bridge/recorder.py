"""The recorder: what the bridge serves goes to the database, by way of the spool, and is there once.

A request may go upstream once its interception is durable: in the database or, where that does not answer in time, in the
spool, on disk. All that follows is added to the spool at once, which the request does not wait for, and from there one
task writes it to the database, by the batch and in its order. Ids are made where something is observed, and records are
inserted or compared, never just inserted; so whatever is not known to have been written is written again.

What a process that is gone has left in the spool is adopted by another one, which also ends the interceptions that it was
serving.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import structlog
from aiohttp import web

from service import errors
from service.bridge.records import LOST, Content, body_of, clean, dump, id_of, lost_now, read_all
from service.bridge.running import Beginning, Running, interception_of
from service.bridge.spool import Directory, Kind, Log, Record
from service.bridge.writer import Writer
from service.context import Backlog
from service.db import Database
from service.metrics import Metrics
from service.settings import Settings
from service.store import recording
from service.store.recording import Addition, Interception

log = structlog.get_logger("bridgelog.recorder")

# For how long a request waits for the database before it makes do with the spool.
_PATIENCE: Final = 2.0
# A commit that its sender has not lived to see answered is through, or never will be: as long as one waits for a lock.
_SETTLED_AFTER: Final = 10.0
_BATCH_RECORDS: Final = 200
_BATCH_BYTES: Final = 1024 * 1024
# What waits is in memory as well up to so many records, and the bytes of a batch.
_MOST_RECENT: Final = 2_000
# Between two batches, so that each is worth its transaction, unless somebody waits for one.
_GATHERING: Final = 0.1
_LEAST_REST: Final = 0.25
_MOST_REST: Final = 5.0
_LOOK_EVERY: Final = 1.0
# What nobody waits for is on disk so much later, at most, if the disk keeps up.
_SYNC_AFTER: Final = 0.05
_SEGMENT_BYTES: Final = 8 * 1024 * 1024
_CLOSE_SECONDS: Final = 5.0
_MOST_CALLS: Final = 100_000
_FULL_AGAIN: Final = 5


class _GivenUp(Exception):
    """Whether the database has what was to be stored is not known."""


class _Recent:
    """What waits in this process's log, in memory as well as long as it is not much: so it need not be read from disk.

    It holds all that waits, or nothing: then everything is read until nothing waits any more.
    """

    def __init__(self) -> None:
        self._records: deque[tuple[Record, Content, int]] = deque()
        self._bytes = 0
        self._whole = True

    def add(self, record: Record, content: Content, position: int) -> None:
        """A record that was just added to the log, what it says, and the position behind it."""
        if not self._whole:
            return
        self._records.append((record, content, position))
        self._bytes += len(record.body)
        if len(self._records) > _MOST_RECENT or self._bytes > _BATCH_BYTES:
            self._records.clear()
            self._bytes, self._whole = 0, False

    def first(self, most: int) -> list[tuple[Record, Content, int]]:
        """The oldest of them, so many at most."""
        return list(itertools.islice(self._records, most))

    def written(self, count: int, *, left: int) -> None:
        """So many of the oldest are in the database, and so many of all wait there still."""
        if self._whole:
            for _ in range(count):
                record, _, _ = self._records.popleft()
                self._bytes -= len(record.body)
        elif not left:
            self._whole = True


class Recorder:
    """Records what the bridge of this process serves. `open` makes one."""

    def __init__(self, database: Database, directory: Directory, *, limit: int, metrics: Metrics) -> None:
        self._database = database
        self._directory = directory
        self._metrics = metrics
        self._writer = Writer(database, directory, metrics=metrics)
        self.limit = limit
        self.bytes = 0
        self._own: Log | None = None
        self._adopted: list[Log] = []
        # What the disk did not take; it is lost with the process. Only what was accepted without need of the disk is here.
        self._held: list[Record] = []
        self._recent = _Recent()
        self._away = False
        self._disk_told = False
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._unsynced = asyncio.Event()
        self._written = asyncio.Condition()
        self._calls: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []
        self._starting: list[tuple[Interception, asyncio.Future[Exception | None]]] = []
        # Who waits for the database, and until when.
        self._awaited: dict[asyncio.Future[Exception | None], float] = {}
        self._patience: asyncio.TimerHandle | None = None
        self._patient_until = 0.0
        self._storing: asyncio.Task[None] | None = None
        self._unsettled: set[UUID] = set()
        self._forsaken: set[UUID] = set()
        self._stores: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, database: Database, *, settings: Settings, metrics: Metrics) -> Recorder:
        """A recorder at work. Where the spool's directory cannot be used it works without, and looks again."""
        limit = settings.spool_limit
        directory = Directory(settings.spool_dir, segment_bytes=min(_SEGMENT_BYTES, limit // 8))
        recorder = cls(database, directory, limit=limit, metrics=metrics)
        await recorder._look()
        recorder._tasks = [
            asyncio.create_task(recorder._for_ever(work))
            for work in (recorder._keep_writing, recorder._keep_syncing, recorder._keep_looking)
        ]
        return recorder

    @property
    def depth(self) -> int:
        """Records that wait to be written to the database."""
        return len(self._held) + sum(known.waiting for known in self._logs())

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest of them has waited; 0 where there is none."""
        times = [known.oldest_at for known in self._logs() if known.oldest_at is not None]
        times += [record.at for record in self._held[:1]]
        return max(0.0, time.time() - min(times)) if times else 0.0

    def backlog(self) -> Backlog:
        """What waits, and whether a request that came now would be recorded, as far as is known."""
        return Backlog(
            records=self.depth,
            oldest_seconds=self.oldest_seconds,
            spool_bytes=self.bytes,
            spool_limit=self.limit,
            takes_more=not self._away or (self._own is not None and self.bytes < self.limit),
        )

    async def start(self, beginning: Beginning) -> Running:
        """Make an interception and its prompt durable: in the database or, where it does not answer in time, in the spool.

        Raises SpoolFull or RecordingUnavailable where neither takes it: then nothing may go upstream.
        """
        interception = interception_of(beginning)
        # What answers a tool call finds its thread only where that is stored: what others have left goes first.
        behind = interception.correlating_tool_call_id and any(known.waiting for known in self._adopted)
        asks = not self._away and not behind
        try:
            if not (asks and await self._stored(interception)):
                await self._spool(interception)
        except BaseException:
            if asks or (self._own and interception.id in self._own.running):
                self._forsake(interception.id)
            raise
        return Running(self, interception.id, beginning.started_at)

    async def close(self) -> None:
        """Write what can be written within a few seconds; the rest stays in the spool, for whoever adopts it."""
        if self._own:
            for interception_id in [*self._own.running]:
                self._add((Kind.LOST, lost_now(interception_id)))
        self._hurry.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS), self._written:
                await self._written.wait_for(lambda: self._away or not self.depth)
        if self._patience is not None:
            self._patience.cancel()
        for task in (*self._tasks, *self._stores):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._stores, return_exceptions=True)
        if self._held:
            log.error("records are lost, for neither database nor disk took them", records=len(self._held))
        for known in self._logs():
            with suppress(OSError):
                if known.waiting or known.running:
                    await known.sync()
                    known.release()
                else:
                    await asyncio.to_thread(self._directory.remove, known)

    def add(self, interception_id: UUID, children: Mapping[recording.Kind, Sequence[Mapping[str, Any]]]) -> None:
        """Record children of an interception. Neither waits nor raises."""
        if children:
            self._add(self._of_children(interception_id, children))

    def end(
        self,
        interception_id: UUID,
        *,
        ended_at: datetime,
        metadata: Mapping[str, Any],
        children: Mapping[recording.Kind, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        """Record the last children of an interception, and its end. Neither waits nor raises."""
        end = Kind.END, Addition(interception_id, ended_at=ended_at, metadata=clean(metadata))
        self._add(*([self._of_children(interception_id, children), end] if children else [end]))

    def _of_children(
        self, interception_id: UUID, children: Mapping[recording.Kind, Sequence[Mapping[str, Any]]]
    ) -> tuple[Kind, Addition]:
        for tool in children.get("tool_usages", ()):
            if len(self._calls) < _MOST_CALLS:
                self._calls[tool["provider_tool_call_id"]] += 1
        return Kind.CHILDREN, Addition(interception_id, children=clean(children))

    def _logs(self) -> list[Log]:
        return [*self._adopted, *([self._own] if self._own else [])]

    def _append(self, said: Sequence[tuple[Kind, UUID, bytes]]) -> list[int]:
        if self._own is None:
            message = "there is no spool"
            raise OSError(message)
        before = self._own.size
        positions = self._own.append_all(said)
        self.bytes += self._own.size - before
        self._disk_told = False
        self._unsynced.set()
        return positions

    def _spooled(self, *told: tuple[Kind, Content]) -> None:
        """Add to the spool; raises OSError."""
        said = [(kind, id_of(content), body_of(content)) for kind, content in told]
        positions = self._append(said)
        at = time.time()
        for (kind, interception_id, data), (_, content), position in zip(said, told, positions, strict=True):
            self._recent.add(Record(kind, interception_id, at, data), content, position)
        self._wake.set()

    def _add(self, *told: tuple[Kind, Content]) -> None:
        try:
            self._spooled(*told)
        except OSError as problem:
            self._tell_disk(problem)
            at = time.time()
            self._held += [Record(kind, id_of(content), at, body_of(content)) for kind, content in told]
            self._wake.set()

    async def _stored(self, interception: Interception) -> bool:
        """Whether the database has it. Within so many seconds it is not known otherwise: it may come to have it later."""
        call = interception.correlating_tool_call_id
        deadline = time.monotonic() + _PATIENCE
        if call and call in self._calls:
            try:
                self._hurry.set()
                async with asyncio.timeout(_PATIENCE), self._written:
                    await self._written.wait_for(lambda: self._away or call not in self._calls)
            except TimeoutError:
                return False
            if self._away:
                return False
        told: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._starting.append((interception, told))
        self._awaited[told] = deadline
        if self._storing is None:
            self._storing = asyncio.create_task(self._store_starts())
            self._stores.add(self._storing)
            self._storing.add_done_callback(self._stores.discard)
        self._be_patient(deadline)
        try:
            problem = await told
        finally:
            del self._awaited[told]
        if isinstance(problem, errors.DatabaseUnavailable):
            self._went_away()
        elif problem and not isinstance(problem, (errors.Refusal, _GivenUp)):
            raise problem
        return problem is None

    def _be_patient(self, deadline: float) -> None:
        """Look at that time who still waits, if not sooner. One timer is enough for them all."""
        if self._patience is not None:
            if self._patient_until <= deadline:
                return
            self._patience.cancel()
        self._patient_until = deadline
        left = max(0.0, deadline - time.monotonic())
        self._patience = asyncio.get_running_loop().call_later(left, self._lose_patience)

    def _lose_patience(self) -> None:
        """Where somebody has waited too long, all who wait make do with the spool."""
        self._patience = None
        deadlines = [deadline for told, deadline in self._awaited.items() if not told.done()]
        if not deadlines:
            return
        if time.monotonic() < min(deadlines):
            self._be_patient(min(deadlines))
            return
        self._went_away()
        # What it still has to do, such as to cancel a statement, nobody waits for.
        if self._storing is not None:
            self._storing.cancel()
            self._storing = None
        self._starting.clear()
        for told in self._awaited:
            if not told.done():
                told.set_result(_GivenUp())

    def _forsake(self, interception_id: UUID) -> None:
        """End what may have come to be stored, or may yet be, although nobody serves it: once that is settled."""
        if interception_id in self._unsettled:
            self._forsaken.add(interception_id)
            return
        lost = Kind.LOST, lost_now(interception_id)
        asyncio.get_running_loop().call_later(_SETTLED_AFTER, self._add, lost)

    async def _store_starts(self) -> None:
        """Store what is to be started, in one transaction all that came while the one before was under way."""
        batch: list[tuple[Interception, asyncio.Future[Exception | None]]] = []
        try:
            while self._starting:
                batch = [(start, told) for start, told in self._starting[:_BATCH_RECORDS] if not told.done()]
                del self._starting[:_BATCH_RECORDS]
                self._unsettled |= {start.id for start, _ in batch}
                # Before the database has them: should this process be killed, whoever adopts its log knows what to end.
                with suppress(OSError):
                    self._append([(Kind.RUNNING, start.id, b"") for start, _ in batch])
                problem = await self._begun([start for start, _ in batch])
                for start, told in batch:
                    # A defect of one of them is that one's alone.
                    alone = problem and not isinstance(problem, errors.Refusal) and len(batch) > 1
                    outcome = await self._begun([start]) if alone else problem
                    if not told.done():
                        told.set_result(outcome)
                self._settle(batch)
        finally:
            self._settle(batch)
            for _, told in batch:
                if not told.done():
                    told.set_result(_GivenUp())
            if self._storing is asyncio.current_task():
                self._storing = None

    def _settle(self, batch: Sequence[tuple[Interception, object]]) -> None:
        settled = {start.id for start, _ in batch}
        self._unsettled -= settled
        for interception_id in self._forsaken & settled:
            self._forsaken.discard(interception_id)
            self._forsake(interception_id)

    async def _begun(self, starts: Sequence[Interception]) -> Exception | None:
        begin = functools.partial(recording.begin_batch, interceptions=starts)
        compare = functools.partial(recording.record_batch, interceptions=starts)
        try:
            if starts and not await self._database.settle(begin, one_statement=True):
                await self._database.settle(compare)
        except Exception as problem:  # noqa: BLE001  # those who wait for it raise it
            return problem
        return None

    async def _spool(self, interception: Interception) -> None:
        # Its size is about that of the prompt, of which the limit is to be kept; it is dumped where it is added.
        if self.bytes + len(body_of(interception)) > self.limit:
            raise errors.SpoolFull(retry_after=_FULL_AGAIN)
        try:
            self._spooled((Kind.START, interception))
            if self._own:
                await self._own.sync()
        except OSError as problem:
            self._tell_disk(problem)
            raise errors.RecordingUnavailable(retry_after=_FULL_AGAIN) from problem

    def _tell_disk(self, problem: OSError) -> None:
        if not self._disk_told:
            self._disk_told = True
            log.warning("the spool cannot be written", reason=problem.strerror or str(problem))

    def _went_away(self) -> None:
        if not self._away:
            self._away = True
            log.warning("the database does not take records: they wait in the spool")

    # -- in the background -----------------------------------------------------------------------------------------------

    async def _for_ever(self, work: Callable[[], Any]) -> None:
        while True:
            try:
                await work()
            except Exception:  # of a task nobody waits for: told here, or nowhere
                log.exception("a task of the recorder failed; starting it again")
            await asyncio.sleep(_LOOK_EVERY)

    async def _keep_looking(self) -> None:
        """Look, each second, for what others have left, and how large the spool is."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            await self._look()

    async def _look(self) -> None:
        try:
            if self._own is None:
                self._own = await asyncio.to_thread(self._directory.claim)
                self._recent = _Recent()
            for adopted in await asyncio.to_thread(self._directory.adopt):
                log.warning(
                    "took over what a lost process had to record",
                    log=adopted.folder.name,
                    records=adopted.waiting,
                    running=len(adopted.running),
                )
                self._adopted.append(adopted)
                self._wake.set()
            self.bytes = await asyncio.to_thread(self._directory.size)
        except OSError as problem:
            self._tell_disk(problem)
        if self._adopted:
            self._wake.set()
        self._measure()

    async def _keep_syncing(self) -> None:
        while True:
            await self._unsynced.wait()
            await asyncio.sleep(_SYNC_AFTER)
            self._unsynced.clear()
            if self._own:
                try:
                    await self._own.sync()
                except OSError as problem:
                    self._tell_disk(problem)

    async def _keep_writing(self) -> None:
        rest = _LEAST_REST
        while True:
            try:
                if not await self._write_some():
                    await self._wake.wait()
                    self._wake.clear()
                    continue
                rest = _LEAST_REST
                if self._away:
                    self._away = False
                    log.info("the database takes records again", waiting=self.depth)
                if self.depth < _BATCH_RECORDS:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_GATHERING):
                            await self._hurry.wait()
                    self._hurry.clear()
            except (errors.Refusal, OSError) as problem:
                if isinstance(problem, errors.DatabaseUnavailable):
                    self._went_away()
                reason = problem.message if isinstance(problem, errors.Refusal) else str(problem)
                log.warning("what is to be recorded could not be written; trying again", reason=reason, seconds=rest)
                self._metrics.recorder_retries.inc()
                await self._tell_written()
                await asyncio.sleep(rest)
                rest = min(2 * rest, _MOST_REST)

    async def _write_some(self) -> bool:
        """Write the next batch; False where nothing waits. What others have left goes first: it is older."""
        for known in self._logs():
            if known.waiting:
                if known is self._own and (recent := self._recent.first(_BATCH_RECORDS)):
                    known.oldest_at = recent[0][0].at
                    await self._write([(record, content) for record, content, _ in recent])
                    known.consume(recent[-1][2], records=len(recent))
                else:
                    records, after = await asyncio.to_thread(known.read, most=_BATCH_RECORDS, most_bytes=_BATCH_BYTES)
                    # In a thread, lest a long backlog keep those waiting who are served.
                    await self._write(await asyncio.to_thread(read_all, records))
                    # Where there are none, those that waited are in a part that cannot be read.
                    known.consume(after, records=len(records) or known.waiting)
                if known is self._own:
                    self._recent.written(len(recent), left=known.waiting)
                await self._tell_written()
                return True
            if known is not self._own and (not known.running or _is_settled(known)):
                await self._end_lost(known)
                await asyncio.to_thread(self._directory.remove, known)
                self._adopted.remove(known)
                await self._tell_written()
                return True
        if self._held:
            # Only now that the spool is empty: these are younger.
            records = self._held[:_BATCH_RECORDS]
            await self._write(await asyncio.to_thread(read_all, records))
            del self._held[: len(records)]
            await self._tell_written()
            return True
        return False

    async def _end_lost(self, lost: Log) -> None:
        """End what a process that is gone was serving: when it gave its last sign of life."""
        body = dump({"ended_at": datetime.fromtimestamp(lost.last_at, UTC), "metadata": LOST})
        running = sorted(lost.running)
        for first in range(0, len(running), _BATCH_RECORDS):
            batch = running[first : first + _BATCH_RECORDS]
            records = [Record(Kind.LOST, interception_id, lost.last_at, body) for interception_id in batch]
            await self._write(await asyncio.to_thread(read_all, records))

    async def _write(self, records: Sequence[tuple[Record, Content]]) -> None:
        for call in await self._writer.write(records):
            self._calls[call] -= 1
            if self._calls[call] <= 0:
                del self._calls[call]

    async def _tell_written(self) -> None:
        self._measure()
        async with self._written:
            self._written.notify_all()

    def _measure(self) -> None:
        self._metrics.recorder_waiting.set(self.depth)
        self._metrics.recorder_oldest.set(self.oldest_seconds)
        self._metrics.spool_bytes.set(self.bytes)
        self._metrics.spool_limit.set(self.limit)


RECORDER = web.AppKey("recorder", Recorder)


def _is_settled(lost: Log) -> bool:
    """Whether no commit of the process that is gone can be under way any more, whatever has become of the clock."""
    silent = max(time.time() - lost.last_at, time.monotonic() - lost.held_since)
    return silent >= _SETTLED_AFTER
