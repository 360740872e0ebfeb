"""The spool: what the recorder has yet to write to the database, on local disk.

Below the spool's directory each process has a folder of its own, a *log*, whose `lock` it holds (flock) for as long as it
lives; the log of a process that is gone is adopted by another one. A log is a sequence of records, which are only ever
added, in segments: files named by the position of their first byte in the whole log. `consumed` is the position up to
which everything is in the database; segments that lie before it are deleted. Each segment begins with what the earlier
ones say that still counts: which interceptions are running, and what is consumed.

A record is framed by its length and a CRC-32, so that one which was written in part, or spoilt on disk, is known as such.
What `append` has returned from survives the process, whatever its end; what `sync` has returned from survives the machine.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import fcntl
import os
import re
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

log = structlog.get_logger("bridgelog.spool")

# Length of the body, CRC-32 of all that follows, kind, milliseconds since 1970, the interception.
_FRAME: Final = struct.Struct(">IIBQ16s")
_CHECKED_FROM: Final = 8
_POSITION: Final = struct.Struct(">Q")
_NAME_DIGITS: Final = 20
# The folder of a log: a process, and what tells it from another of that number, in another container or at another time.
_FOLDER: Final = re.compile(r"[0-9]+-[0-9a-f]{8}")
_NONE: Final = UUID(int=0)


class Kind(enum.IntEnum):
    """What a record says."""

    RUNNING = 1  # that this process serves the interception; where it is to be found is another question
    START = 2  # the interception, whole
    CHILDREN = 3  # of the interception
    END = 4  # of the interception
    LOST = 5  # nobody serves the interception any more: it is to be ended, should it be stored and running
    CONSUMED = 6  # the position up to which everything is in the database


_KINDS: Final = frozenset(Kind)
_WAITING: Final = frozenset({Kind.START, Kind.CHILDREN, Kind.END, Kind.LOST})


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `at` is in seconds since 1970."""

    kind: Kind
    interception_id: UUID
    at: float
    body: bytes


@dataclass(slots=True)
class _Segment:
    path: Path
    base: int
    size: int

    @property
    def end(self) -> int:
        return self.base + self.size


class Log:
    """A log that this process holds the lock of. Not safe for threads, but `read` may run in one while others append."""

    def __init__(self, folder: Path, lock: int, *, segment_bytes: int) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        self.running: set[UUID] = set()
        self.consumed = 0
        self.waiting = 0
        self.oldest_at: float | None = None
        self.last_at = 0.0
        self.held_since = time.monotonic()
        self._lock: int | None = lock
        self._descriptor: int | None = None
        self._rotated: list[int] = []
        self._synced = self._failed = 0
        self._unnamed = False  # a file's name is not known to be on disk
        self._syncing = asyncio.Lock()
        self._segments = self._found()
        self._survey()

    @property
    def end(self) -> int:
        """The position behind the last record."""
        return self._segments[-1].end if self._segments else self.consumed

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    def append(self, kind: Kind, interception_id: UUID, body: bytes = b"") -> None:
        """Add a record, which from then on survives this process. Raises OSError, and then nothing was added."""
        self.append_all([(kind, interception_id, body)])

    def append_all(self, said: Sequence[tuple[Kind, UUID, bytes]]) -> list[int]:
        """As `append`, several by one write: all of them, or none. The position behind each."""
        if self._descriptor is None or self._segments[-1].size >= self._segment_bytes:
            self._begin_segment()
        at = time.time()
        position, positions, frames = self.end, [], []
        for kind, interception_id, body in said:
            frame = _frame(kind, interception_id, at, body)
            position += len(frame)
            positions.append(position)
            frames.append(frame)
        self._write(frames[0] if len(frames) == 1 else b"".join(frames))
        for kind, interception_id, _ in said:
            self._note(kind, interception_id, at)
        return positions

    async def sync(self) -> None:
        """Wait until all that has been added survives the machine. Raises OSError. Many who wait share one fsync."""
        wanted = self.end
        async with self._syncing:
            if wanted <= self._failed:
                message = "the disk did not take what was added"
                raise OSError(message)
            if self._synced >= wanted or self._descriptor is None:
                return
            upto, rotated, current = self.end, self._rotated, self._descriptor
            self._rotated = []
            folder = self.folder if self._unnamed else None
            self._unnamed = False
            try:
                await asyncio.to_thread(_sync, [*rotated, current], folder)
            except OSError:
                self._unnamed = self._unnamed or folder is not None
                # The kernel tells of a failure once, and then takes the pages for clean: what follows goes elsewhere.
                self._failed = upto
                if self._descriptor == current:
                    self._rotated.append(current)
                    self._descriptor = None
                raise
            finally:
                for descriptor in rotated:
                    os.close(descriptor)
            self._synced = upto

    def read(self, *, most: int, most_bytes: int) -> tuple[list[Record], int]:
        """The next records that are not consumed, without those that only this module needs, and the position behind them.

        Of several there are `most`, and `most_bytes` of bodies, at most. What cannot be read is passed over, and told.
        """
        found: list[Record] = []
        size, position = 0, self.consumed
        for segment in list(self._segments):
            limit = segment.end
            if limit <= position:
                continue
            position = max(position, segment.base)
            for record, after in _records(segment, position - segment.base, limit - segment.base):
                if record.kind in _WAITING:
                    if not found:
                        self.oldest_at = record.at
                    if found and (len(found) >= most or size + len(record.body) > most_bytes):
                        return found, position
                    found.append(record)
                    size += len(record.body)
                position = segment.base + after
            if position < limit:
                log.warning("part of the spool cannot be read", log=self.folder.name, bytes=limit - position)
                position = limit
        return found, position

    def consume(self, position: int, *, records: int) -> None:
        """Note that everything up to `position`, so many records, is in the database; what lies before is deleted."""
        self.consumed = position
        self.waiting -= records
        if self.waiting <= 0:
            self.waiting, self.oldest_at = 0, None
        if records:
            # Without this they would be written again after a crash, and be found there.
            with suppress(OSError):
                self.append(Kind.CONSUMED, _NONE, _POSITION.pack(position))
        while (
            self._segments
            and self._segments[0].end <= position
            and (len(self._segments) > 1 or self._descriptor is None)
        ):
            self._segments.pop(0).path.unlink(missing_ok=True)

    def release(self) -> None:
        """Give up the lock. The files stay, for whoever adopts them."""
        for descriptor in (*self._rotated, self._descriptor, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._rotated, self._descriptor, self._lock = [], None, None

    def _found(self) -> list[_Segment]:
        # One that is empty was only made: the next segment begins at its place.
        sizes = {path: path.stat().st_size for path in sorted(self.folder.glob("*.log")) if path.stem.isdigit()}
        segments = [_Segment(path, int(path.stem), size) for path, size in sizes.items() if size]
        for segment, following in pairwise(segments):
            # A write that failed may have left something behind the last record.
            segment.size = min(segment.size, following.base - segment.base)
        return segments

    def _survey(self) -> None:
        """What a log says that somebody else has left."""
        self.consumed = self._segments[0].base if self._segments else 0
        waiting: list[tuple[int, float]] = []
        for segment in self._segments:
            for record, after in _records(segment, 0, segment.size):
                if record.kind is Kind.CONSUMED:
                    self.consumed = max(self.consumed, _POSITION.unpack(record.body)[0])
                elif record.kind in _WAITING:
                    waiting.append((segment.base + after, record.at))
                self._follow(record.kind, record.interception_id, record.at)
        left = [at for after, at in waiting if after > self.consumed]
        self.waiting, self.oldest_at = len(left), left[0] if left else None

    def _begin_segment(self) -> None:
        base = self.end
        path = self.folder / f"{base:0{_NAME_DIGITS}}.log"
        descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o600)
        before, self._descriptor = self._descriptor, descriptor
        self._unnamed = True
        self._segments.append(_Segment(path, base, 0))
        at = self.last_at
        heads = [_frame(Kind.RUNNING, running, at) for running in self.running]
        try:
            self._write(b"".join([_frame(Kind.CONSUMED, _NONE, at, _POSITION.pack(self.consumed)), *heads]))
        except OSError:
            # Without its head it would not tell, once the earlier ones are deleted, what is running.
            self._segments.pop()
            self._descriptor = before
            os.close(descriptor)
            path.unlink()
            raise
        if before is not None:
            self._rotated.append(before)

    def _write(self, frames: bytes) -> None:
        segment = self._segments[-1]
        if self._descriptor is None:
            message = "there is no segment"
            raise RuntimeError(message)
        # Written at its place: a part that a full disk took is written over by the next record.
        written = os.pwrite(self._descriptor, frames, segment.size)
        if written < len(frames):
            message = "the disk took a part only"
            raise OSError(message)
        segment.size += len(frames)

    def _note(self, kind: Kind, interception_id: UUID, at: float) -> None:
        self._follow(kind, interception_id, at)
        if kind in _WAITING:
            self.waiting += 1
            if self.oldest_at is None:
                self.oldest_at = at

    def _follow(self, kind: Kind, interception_id: UUID, at: float) -> None:
        if kind is not Kind.CONSUMED:  # which whoever adopts the log notes, too
            self.last_at = at
        if kind in {Kind.RUNNING, Kind.START}:
            self.running.add(interception_id)
        elif kind in {Kind.END, Kind.LOST}:
            self.running.discard(interception_id)


class Directory:
    """The spool's directory: whose logs are there."""

    def __init__(self, path: Path, *, segment_bytes: int) -> None:
        self._path = path
        self._segment_bytes = segment_bytes

    def claim(self) -> Log:
        """A new log of this process's own. Raises OSError where there can be none."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            folder = self._path / f"{os.getpid()}-{secrets.token_hex(4)}"
            folder.mkdir(mode=0o700)
            lock = _try_lock(folder)
        if lock is None:
            message = "somebody else holds the lock of a new log"
            raise RuntimeError(message)
        return Log(folder, lock, segment_bytes=self._segment_bytes)

    def adopt(self) -> list[Log]:
        """The logs of processes that are gone; nobody else gets them from now on. Raises OSError.

        One that cannot be read stays as it is: the disk may be read again, or a later release knows what is in it.
        """
        if not self._path.is_dir():
            return []
        with self._locked():
            locks: list[tuple[Path, int]] = []
            for folder in self._folders():
                with _telling(folder):
                    if (lock := _try_lock(folder)) is not None:
                        locks.append((folder, lock))
        adopted = []
        for folder, lock in locks:
            with _telling(folder):
                try:
                    adopted.append(Log(folder, lock, segment_bytes=self._segment_bytes))
                except OSError:
                    os.close(lock)
                    raise
        return adopted

    def remove(self, finished: Log) -> None:
        """Delete a log that has nothing left."""
        with self._locked():
            shutil.rmtree(finished.folder)
            finished.release()

    def size(self) -> int:
        """Bytes of all logs, whoever they belong to, and of what lies beside them."""
        total = 0
        for path in (*self._path.glob("*.*"), *(path for folder in self._folders() for path in folder.glob("*.log"))):
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def bury(self, line: bytes) -> None:
        """Add a line to the dead letters: what the database will never take. Raises OSError."""
        descriptor = os.open(
            self._path / "dead-letters.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600
        )
        try:
            if os.write(descriptor, line + b"\n") <= len(line):
                message = "the disk took a part only"
                raise OSError(message)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _folders(self) -> list[Path]:
        """Those of logs: what else lies here (a disk has its `lost+found`) is somebody else's, and stays."""
        return sorted(path for path in self._path.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else makes, adopts or deletes a log meanwhile."""
        descriptor = os.open(self._path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _try_lock(folder: Path) -> int | None:
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _telling(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        log.warning("a log of the spool cannot be read", log=folder.name, reason=problem.strerror)


def _frame(kind: Kind, interception_id: UUID, at: float, body: bytes = b"") -> bytes:
    checked = _FRAME.pack(len(body), 0, kind, int(at * 1000), interception_id.bytes)[_CHECKED_FROM:] + body
    return struct.pack(">II", len(body), zlib.crc32(checked)) + checked


def _records(segment: _Segment, offset: int, limit: int) -> Iterator[tuple[Record, int]]:
    """The records of a segment between two offsets, each with the offset behind it; it ends where one is not whole."""
    with segment.path.open("rb") as file:
        file.seek(offset)
        while offset + _FRAME.size <= limit:
            head = file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                return
            length, checksum, kind, at, interception = _FRAME.unpack(head)
            after = offset + _FRAME.size + length
            if after > limit:
                return
            body = file.read(length)
            if zlib.crc32(head[_CHECKED_FROM:] + body) != checksum:
                return
            if kind not in _KINDS:
                raise OSError(errno.ENOTSUP, f"it has a record of kind {kind}, which this release does not know")
            yield Record(Kind(kind), UUID(bytes=interception), at / 1000, body), after
            offset = after


def _sync(descriptors: list[int], folder: Path | None) -> None:
    """Wait for the disk to have these files, and the names in a folder."""
    for descriptor in descriptors:
        os.fsync(descriptor)
    if folder is None:
        return
    directory = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
