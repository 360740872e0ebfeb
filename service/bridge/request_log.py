"""Request logging: what goes to a provider and what comes back, in files, while the switch is on.

A file for each request and each answer, as they were on the wire, but for what signs in: that is masked, wherever it is
met. One thread writes; no request waits for it, and where it falls behind or cannot write, a dump is cut short.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from service.settings import Settings

log = structlog.get_logger("bridgelog.request_log")

MASK: Final = "***"

# What may wait to be written.
_MOST_WAITING: Final = 32 * 1024 * 1024
_WARN_SECONDS: Final = 60.0
_TIDY_SECONDS: Final = 60.0
# The share of the budget that one file may take, and how much is written before it is looked at again.
_SHARE: Final = 10
_LONGEST_NAME: Final = 100
# The names of dumps. Nothing else that lies in the directory is ours to delete.
_DUMP: Final = re.compile(r"[0-9]+-.+\.(?:req|resp|error)\.txt")
_DEPTH: Final = 2  # of the folders that hold them: instance, model

_SECRET_HEADER: Final = re.compile(
    r"(?:.*[-_])?(?:authorization|authenticate|authentication-info|cookie2?|token|secret|password|credentials?|signature"
    r"|api[-_]?key|subscription-key|access-key|client-key)",
    re.IGNORECASE,
)
_SECRET_PARAMETER: Final = re.compile(
    r"(?i)((?:^|[?&;])(?:[^=&;]*[-_.])?(?:api[-_]?key|key|token|secret|password|auth|authorization|sig|signature|code)=)[^&;]*"
)


class RequestLog:
    """The files of one process. `enabled` is the switch."""

    def __init__(self, settings: Settings) -> None:
        self.enabled = False
        self._directory = settings.request_log_dir
        self._limit = settings.request_log_limit
        self._age_seconds = settings.request_log_age.total_seconds()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="request-log")
        self._lock = threading.Lock()
        self._waiting = 0
        self._since_pruned = 0
        self._warned_at = -_WARN_SECONDS

    def turn(self, enabled: bool) -> None:  # noqa: FBT001 - called with what the database says
        """The switch has been turned."""
        self.enabled = enabled

    def exchange(self, *, instance: str, model: str, name: str, secrets: Collection[str]) -> Exchange | None:
        """Where to log an exchange of that name; None while the switch is off. `secrets` are masked wherever they stand."""
        if not self.enabled:
            return None
        path = self._directory / instance / file_name(model) / f"{time.time_ns() // 1_000_000}-{name}"
        return Exchange(self, path, secrets=secrets)

    async def keep_tidy(self) -> None:
        """Delete what is too old, and the oldest of what is too much, each minute, until cancelled."""
        while True:
            self._thread.submit(self._prune)
            await asyncio.sleep(_TIDY_SECONDS)

    def close(self) -> None:
        """Write what waits, and end."""
        self._thread.shutdown()

    def do(self, work: Callable[[], None], *, size: int, failed: Callable[[], None]) -> bool:
        """Have the thread do it; False where too much waits. `size` is what it holds in memory until then."""
        with self._lock:
            if self._waiting + size > _MOST_WAITING:
                return False
            self._waiting += size

        def run() -> None:
            try:
                work()
                self._since_pruned += size
                if self._since_pruned > self._limit // _SHARE:
                    self._prune()
            except OSError as problem:
                failed()
                self.warn(problem.strerror or type(problem).__name__)
            finally:
                with self._lock:
                    self._waiting -= size

        self._thread.submit(run)
        return True

    @property
    def most_bytes(self) -> int:
        """How long one file may be."""
        return self._limit // _SHARE

    def warn(self, reason: str) -> None:
        """Tell that a dump is missing or cut short; once a minute, lest the log fills as the disk did."""
        now = time.monotonic()
        if now - self._warned_at >= _WARN_SECONDS:
            self._warned_at = now
            log.warning("a request could not be logged in full", reason=reason)

    def _prune(self) -> None:
        self._since_pruned = 0
        oldest = time.time() - self._age_seconds
        files: list[tuple[float, int, str]] = []
        for folder, below, names in os.walk(self._directory):
            depth = len(Path(folder).relative_to(self._directory).parts)
            if depth < _DEPTH:
                continue
            below.clear()
            for name in filter(_DUMP.fullmatch, names):
                path = os.path.join(folder, name)  # noqa: PTH118  # a Path for each of many files costs more than all else here
                with suppress(OSError):
                    status = os.lstat(path)
                    files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        # Room for one more file, and for what is written until the next look.
        budget = self._limit - 2 * (self._limit // _SHARE)
        left: set[Path] = set()
        for changed_at, size, path in sorted(files):
            if changed_at >= oldest and total <= budget:
                break
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108
                left.update(Path(path).parents[:_DEPTH])
            total -= size
        for emptied in sorted(left, reverse=True):
            with suppress(OSError):
                emptied.rmdir()  # only where it is empty


class Exchange:
    """The dump of one request and its answer. Nothing here waits or raises."""

    def __init__(self, requests: RequestLog, path: Path, *, secrets: Collection[str]) -> None:
        self._log = requests
        self._path = path
        self._secrets = tuple(secret for secret in secrets if secret)
        self._answer = _Masker(self._secrets)
        self._files: dict[str, _File] = {}
        self._broken = False

    def ask(self, method: str, url: URL, headers: CIMultiDict[str], body: bytes) -> None:
        """The request as it goes."""
        target = _SECRET_PARAMETER.sub(rf"\g<1>{MASK}", url.raw_path_qs)
        host = url.raw_authority
        told: CIMultiDict[str] = CIMultiDict({"Host": host, "Content-Length": str(len(body))})
        told.extend(headers)
        masker = _Masker(self._secrets)
        text = f"{method} {target} HTTP/1.1\r\n{_head(told)}".encode(errors="surrogateescape")
        self._write("req", masker.feed(text + body) + masker.rest())

    def answer(self, status: int, reason: str, headers: CIMultiDictProxy[str]) -> None:
        """The head of the answer as it came."""
        head = f"HTTP/1.1 {status} {reason}\r\n{_head(headers)}".encode(errors="surrogateescape")
        self._write("resp", self._answer.feed(head))

    def add(self, chunk: bytes) -> None:
        """More of the answer's body."""
        self._write("resp", self._answer.feed(chunk))

    def fail(self, reason: str) -> None:
        """There is no answer, or no more of it."""
        self._write("error", f"{reason}\n".encode())

    def close(self) -> None:
        """That was all."""
        if rest := self._answer.rest():
            self._write("resp", rest)
        self._log.do(self._close_files, size=0, failed=self._break)

    def _write(self, kind: str, data: bytes) -> None:
        # What is under way when the switch is turned off ends there.
        if self._broken or not self._log.enabled or not data:
            return
        if not self._log.do(lambda: self._append(kind, data), size=len(data), failed=self._break):
            self._break()
            self._log.warn("the disk is too slow")

    def _break(self) -> None:
        self._broken = True

    # -- in the thread that writes ---------------------------------------------------------------------------------------

    def _append(self, kind: str, data: bytes) -> None:
        if self._broken:
            return
        file = self._files.get(kind)
        if file is None:
            file = self._files[kind] = _File(self._path.with_name(f"{self._path.name}.{kind}.txt"))
        if file.size + len(data) > self._log.most_bytes:
            data = data[: self._log.most_bytes - file.size]
            self._broken = True
            self._log.warn("it is too long")
        file.append(data)

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


class _File:
    """A file that is only its owner's, in folders that are only theirs."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        try:
            self._descriptor = self._opened(path)
        except FileNotFoundError:
            # Another process has just removed the folder, which was empty.
            self._descriptor = self._opened(path)

    def _opened(self, path: Path) -> int:
        for folder in reversed(path.parents[:3]):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)

    def append(self, data: bytes) -> None:
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def close(self) -> None:
        os.close(self._descriptor)


class _Masker:
    """Replaces secrets in what comes piece by piece; holds back what may be the beginning of one."""

    def __init__(self, secrets: Collection[str]) -> None:
        longest_first = sorted({secret.encode(errors="surrogateescape") for secret in secrets}, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, longest_first))) if longest_first else None
        self._longest = len(longest_first[0]) if longest_first else 1
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        if self._pattern is None:
            return data
        data = self._pattern.sub(MASK.encode(), self._held + data)
        keep = min(self._longest - 1, len(data))
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def rest(self) -> bytes:
        held, self._held = self._held, b""
        return held


def file_name(text: str) -> str:
    """A text as the name of a file: letters, digits, and what cannot lead elsewhere; a hash stands for what it lost."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", text[:_LONGEST_NAME])
    if text and plain == text and not plain.startswith("."):
        return plain
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"_{plain}-{digest}"


def _head(headers: Mapping[str, str]) -> str:
    lines = [
        f"{name}: {MASK if _SECRET_HEADER.fullmatch(name) else value}\r\n"
        for name, value in sorted(headers.items(), key=lambda item: item[0].lower())
    ]
    return "".join(lines) + "\r\n"
