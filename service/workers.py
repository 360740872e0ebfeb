"""Several processes that do the same: forked, watched, replaced, and ended together.

The parent runs no event loop and no threads, so that a fork copies neither. It sleeps until a signal comes or a worker
ends, or for a second, in which each worker tells it that its event loop turns. One that has told nothing for long writes
to stderr where it hangs, and is killed. A worker learns of the parent's end, kill -9 included, from a pipe that closes
with the parent, and ends too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import structlog

log = structlog.get_logger("bridgelog.workers")

# Does the work of the slot with that number until SIGTERM; calls the function that it is given once it has begun, and
# from then on every `BEAT_SECONDS`.
Work = Callable[[int, Callable[[], None]], None]

BEAT_SECONDS = 1.0
# What a worker that hangs needs to tell where.
_TELLING_SECONDS = 1.0
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOPPING, signal.SIGCHLD)
# Has a worker say where each of its threads is; not SIGABRT, which would leave its memory, secrets included, in a file.
_TELL = signal.SIGUSR1
# A worker that lived for so long is replaced at once; another one after a while, which doubles each time.
_HEALTHY_SECONDS = 10.0
_LEAST_DELAY = 0.1
_MOST_DELAY = 10.0


@dataclass(slots=True)
class _Slot:
    """The place of one worker, whatever process holds it at the time."""

    number: int
    pid: int | None = None
    began: float = 0.0
    delay: float = 0.0
    due: float = 0.0
    ready: bool = False
    serving: bool = False
    # For how many seconds it has told nothing, as the parent has counted while it was awake: both may have been stopped.
    silent: float = 0.0
    told_to_tell: bool = False


@dataclass(frozen=True, slots=True)
class _Pipe:
    read: int
    write: int

    @classmethod
    def open(cls) -> _Pipe:
        pipe = cls(*os.pipe())
        os.set_blocking(pipe.read, False)
        os.set_blocking(pipe.write, False)
        return pipe

    def taken(self) -> bytes:
        """What is in it."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self.read, 4096)
        return b""

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


class Supervisor:
    """Keeps `count` workers at `work`.

    `ready` is called when all of them have begun, and `ended` with the slot of each process that has ended. Those
    that are left `patience` seconds after the first signal to stop are killed, and so is one that had begun and then is
    silent for `timeout` seconds; 0 is never.
    """

    def __init__(
        self,
        work: Work,
        *,
        count: int,
        patience: float,
        timeout: float,
        ready: Callable[[], None],
        ended: Callable[[int], None],
    ) -> None:
        self._work = work
        self._patience = patience
        self._timeout = timeout
        self._looked = time.monotonic()
        self._ready = ready
        self._ended = ended
        self._slots = [_Slot(number) for number in range(count)]
        self._kill_at: float | None = None
        self._signals, self._beats, self._life = _Pipe.open(), _Pipe.open(), _Pipe.open()

    def run(self) -> None:
        """Until a SIGTERM or SIGINT has come and every worker has ended; each further signal is passed on to them."""
        try:
            with _handled(self._signals.write):
                while self._kill_at is None or any(slot.pid for slot in self._slots):
                    self._start_due()
                    select.select([self._signals.read, self._beats.read], [], [], self._pause())
                    self._note_beats()
                    self._end_silent()
                    self._pass_on()
                    self._reap()
        finally:
            for pipe in (self._signals, self._beats, self._life):
                pipe.close()

    def _pause(self) -> float | None:
        """How long nothing is due."""
        now = time.monotonic()
        if self._kill_at is not None:
            return max(0.0, self._kill_at - now)
        waiting = [slot.due - now for slot in self._slots if slot.pid is None]
        if self._timeout and any(slot.serving for slot in self._slots):
            waiting.append(BEAT_SECONDS)
        return max(0.0, min(waiting)) if waiting else None

    def _start_due(self) -> None:
        if self._kill_at is None:
            for slot in self._slots:
                if slot.pid is None and slot.due <= time.monotonic():
                    self._start(slot)
        elif self._kill_at <= time.monotonic():
            for slot in self._slots:
                if slot.pid is not None:
                    log.error("a worker did not stop in time; killing it", worker=slot.number, pid=slot.pid)
                    os.kill(slot.pid, signal.SIGKILL)
            self._kill_at += self._patience

    def _start(self, slot: _Slot) -> None:
        # A signal between the fork and the child's own handlers would be handled as the parent's.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            slot.pid = os.fork() or self._become(slot)
            slot.began = time.monotonic()
            slot.serving, slot.silent, slot.told_to_tell = False, 0.0, False
        except OSError as problem:  # too many processes, too little memory
            slot.due = time.monotonic() + _MOST_DELAY
            log.warning("a worker cannot be started; trying again", reason=str(problem), seconds=_MOST_DELAY)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _become(self, slot: _Slot) -> NoReturn:
        """The child: does its work, and never comes back to what the parent was about."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.setpgid(0, 0)  # so that Ctrl-C reaches the parent alone, which passes it on
            self._signals.close()
            os.close(self._beats.read)
            os.close(self._life.write)
            os.set_blocking(self._life.read, True)
            faulthandler.register(_TELL, all_threads=True)
            threading.Thread(target=self._outlive, daemon=True, name="parent").start()
            structlog.contextvars.bind_contextvars(worker=slot.number)
            self._work(slot.number, lambda: self._beat(slot.number))
            status = 0
        except Exception:  # told here, or nowhere
            log.exception("a worker failed")
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _beat(self, number: int) -> None:
        with contextlib.suppress(BlockingIOError):  # the parent has been stopped for hours
            os.write(self._beats.write, bytes([number]))

    def _outlive(self) -> None:
        """In a thread of a worker: end it when the parent is gone, orderly at first."""
        os.read(self._life.read, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._patience)
        os._exit(1)

    def _note_beats(self) -> None:
        waiting = not all(slot.ready for slot in self._slots)
        for number in self._beats.taken():
            slot = self._slots[number]
            if not slot.serving:
                log.info("a worker serves", worker=number, pid=slot.pid)
            slot.ready = slot.serving = True
            slot.silent = 0.0
        if waiting and all(slot.ready for slot in self._slots):
            self._ready()

    def _end_silent(self) -> None:
        now = time.monotonic()
        if now - self._looked < BEAT_SECONDS:
            return
        # However long the parent slept, nobody is blamed for more.
        self._looked = now
        for slot in self._slots:
            if slot.pid is None or not slot.serving or not self._timeout or self._kill_at is not None:
                continue
            slot.silent += BEAT_SECONDS
            if slot.told_to_tell and slot.silent > self._timeout + _TELLING_SECONDS:
                os.kill(slot.pid, signal.SIGKILL)
            elif slot.silent > self._timeout and not slot.told_to_tell:
                log.error(
                    "a worker does not answer; killing it", worker=slot.number, pid=slot.pid, seconds=self._timeout
                )
                os.kill(slot.pid, _TELL)
                slot.told_to_tell = True

    def _pass_on(self) -> None:
        for number in self._signals.taken():
            if number in _STOPPING:
                if self._kill_at is None:
                    self._kill_at = time.monotonic() + self._patience
                for slot in self._slots:
                    if slot.pid is not None:
                        os.kill(slot.pid, signal.SIGTERM)

    def _reap(self) -> None:
        for slot in self._slots:
            if slot.pid is None:
                continue
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            if not pid:
                continue
            # Its last beats are not those of its successor.
            self._note_beats()
            slot.pid = None
            self._ended(slot.number)
            if self._kill_at is None:
                lived = time.monotonic() - slot.began
                slot.delay = 0.0 if lived > _HEALTHY_SECONDS else min(max(_LEAST_DELAY, 2 * slot.delay), _MOST_DELAY)
                slot.due = time.monotonic() + slot.delay
                how = os.waitstatus_to_exitcode(status)
                log.warning(
                    "a worker ended; starting another", worker=slot.number, pid=pid, exit=how, seconds=slot.delay
                )


@contextlib.contextmanager
def _handled(woken: int) -> Iterator[None]:
    """The number of each signal that comes is written to `woken`, and nothing else happens."""
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
