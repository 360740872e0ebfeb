"""The connections to PostgreSQL: a pool, units of work, and the verbs that run a statement.

Only this module (and the embedded server) knows the driver: what it raises leaves here as a refusal of `errors`, and no
text of the database goes with it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
import structlog

from service import errors
from service.settings import Settings
from service.statements import Statement

T = TypeVar("T")

# A statement, and its values.
Asked = tuple[str, Mapping[str, object]]

log = structlog.get_logger("bridgelog.db")

# Every connection: instants come in UTC and ISO (the JSON of the statements is cut from that text). JIT costs more than
# any of these statements; and each combination of filters is a text of its own, so that one generic plan per text is the
# right one and planning, a third of the time of a small page, happens once.
SESSION = {
    "application_name": "bridgelog",
    "DateStyle": "ISO, YMD",
    "TimeZone": "UTC",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}

# What pgbouncer lets through at the start of a session, and keeps for each of its clients.
_TRACKED = ("application_name", "DateStyle", "TimeZone")

# The connection is of no use any more: it was lost, or the server is going down.
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what the driver makes of a connection that was terminated a moment ago
    asyncpg.OperatorInterventionError,
    OSError,
)
# The server cannot do what it is asked: no room, no rights, no more connections, a broken disk, no writing at present.
_UNABLE = (
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
_GONE = (*_LOST, *_UNABLE)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's
_MICROSECOND = timedelta(microseconds=1)
_FIRST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_CONTENTION = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)


class _TooMuch(Exception):
    """A statement answers with more JSON than may be held."""


class _Raw(asyncpg.Connection):
    """The driver's, which counts the JSON that a statement answers with."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.answered = _Answered()


class _Answered:
    """The bytes of JSON that a statement has answered with so far, and the most that it may."""

    def __init__(self) -> None:
        self.total = 0
        self.most: int | None = None

    def begin(self, most: int | None) -> None:
        """Count from the beginning."""
        self.total, self.most = 0, most

    def take(self, text: bytes) -> bytes:
        """One more; raises _TooMuch where there are others and no room for it beside them."""
        before, self.total = self.total, self.total + len(text)
        if self.most is not None and before and self.total > self.most:
            raise _TooMuch
        return text


class Observer(Protocol):
    """Who is told what took how long, in seconds."""

    def ran(self, statement: str, seconds: float) -> None:
        """A statement, well or not."""

    def waited(self, seconds: float) -> None:
        """For a turn at the pool, in vain or not."""


class Connection:
    """One connection for the length of a unit of work. The verbs name a statement (`noun/statement`) and its values.

    `hints` is what earlier units of work found out, on any connection of the pool: it may be out of date, and saves a
    question where a statement tells whether it is. `most` is how many bytes of JSON a statement may answer with, if that
    is several rows: a page is read whole before it goes out.
    """

    def __init__(
        self,
        raw: asyncpg.pool.PoolConnectionProxy[Any],
        statements: Mapping[str, Statement],
        hints: dict[str, Any],
        *,
        most: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._raw = raw
        self._statements = statements
        self._observer = observer
        self.hints = hints
        self._most = most

    async def rows(self, statement: str, **values: object) -> list[asyncpg.Record]:
        """All rows of a statement whose result is `many`."""
        text, arguments = self._statements[statement].bind(values)
        return await self._fetch(statement, text, arguments)

    async def rows_beside(self, one: Asked, many: Asked) -> list[asyncpg.Record]:
        """Two statements as one, hence of one snapshot: the rows of `many`, each beside the one row of `one`.

        Where `many` has none, there is one row, in which the columns of `many` are null.
        """
        (name, values), (more, more_values) = one, many
        text, arguments = self._statements[name].beside(values, self._statements[more], more_values)
        return await self._fetch(f"{name} + {more}", text, arguments)

    async def _fetch(self, name: str, text: str, arguments: Sequence[object]) -> list[asyncpg.Record]:
        answered: _Answered = cast("Any", self._raw).answered
        answered.begin(self._most)
        with self._timed(name), _translated():
            return await self._raw.fetch(text, *arguments)

    async def row(self, statement: str, **values: object) -> asyncpg.Record | None:
        """The row of a statement whose result is `one` or `maybe`; None where there is none."""
        text, arguments = self._statements[statement].bind(values)
        with self._timed(statement), _translated():
            return await self._raw.fetchrow(text, *arguments)

    async def value(self, statement: str, **values: object) -> Any:
        """The first column of the row of a statement whose result is `one` or `maybe`; None where there is no row."""
        found = await self.row(statement, **values)
        return None if found is None else found[0]

    async def run(self, statement: str, **values: object) -> None:
        """Run a statement whose result is `none`."""
        text, arguments = self._statements[statement].bind(values)
        with self._timed(statement), _translated():
            await self._raw.execute(text, *arguments)

    @contextmanager
    def _timed(self, statement: str) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        finally:
            if self._observer:
                self._observer.ran(statement, perf_counter() - began)


class _Source:
    """A pool, and who waits for one of its connections: so many at most, and so long at most.

    `each_transaction` is what a transaction begins with where the settings of a session do not last; None where they do.
    """

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        *,
        most_waiting: int,
        patience: float,
        each_transaction: str | None,
        observer: Observer | None = None,
    ) -> None:
        self.pool = pool
        self.each_transaction = each_transaction
        self._observer = observer
        self._free = asyncio.Semaphore(pool.get_max_size())
        self._most_waiting = most_waiting
        self._waiting = 0
        self._patience = patience

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy[Any]]:
        """A connection, and back with it. Raises Overloaded where too many wait, or it has been waited for too long."""
        await self._turn()
        try:
            # There is one for each that has its turn; what may take time is to connect, which has a bound of its own.
            with _translated(connecting=True):
                raw = await self.pool.acquire()
            try:
                yield raw
            finally:
                # On the way it waits for the statement of a caller who has gone to be cancelled: what does not end is cut.
                with suppress(*_GONE):
                    await self.pool.release(raw, timeout=_PARTING)
        finally:
            self._free.release()

    async def _turn(self) -> None:
        if self._free.locked() and self._waiting >= self._most_waiting:
            raise errors.Overloaded(retry_after=1)
        self._waiting += 1
        began = perf_counter()
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError as problem:
            raise errors.Overloaded(retry_after=1) from problem
        finally:
            self._waiting -= 1
            if self._observer:
                self._observer.waited(perf_counter() - began)

    async def close(self) -> None:
        """Close every connection; those in use are waited for, a few seconds long."""
        try:
            await asyncio.wait_for(self.pool.close(), timeout=_CLOSE_TIMEOUT)
        except TimeoutError:
            self.pool.terminate()


class Database:
    """The pool. `writable` is false for a database that another system owns; `rolled_up` tells whether it has rollups."""

    rolled_up = False

    def __init__(
        self,
        shared: _Source,
        reserve: _Source,
        statements: Mapping[str, Statement],
        *,
        writable: bool,
        max_page: int,
        observer: Observer | None = None,
    ) -> None:
        self._shared = shared
        self._reserve = reserve
        self._statements = statements
        self._observer = observer
        self._hints: dict[str, Any] = {}
        self.writable = writable
        self._max_page = max_page

    @property
    def size(self) -> int:
        """How many connections are open."""
        return self._shared.pool.get_size()

    @property
    def idle(self) -> int:
        """How many of the open connections are not in use."""
        return self._shared.pool.get_idle_size()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection on which each statement is its own transaction; behind a pooler of transactions all are one."""
        async with self._separately(self._shared, most=self._max_page) as connection:
            yield connection

    async def probe(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Ask the server something small, beside the pool: being busy is not being away.

        Raises DatabaseUnavailable where connecting and `work` together take longer than 3 seconds.
        """

        async def ask() -> T:
            async with self._separately(self._reserve) as connection:
                return await work(connection)

        # Not by asyncio.timeout, which would wait until the question is taken back, too.
        asking = asyncio.create_task(ask())
        asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        try:
            done, _ = await asyncio.wait({asking}, timeout=_PROBE_SECONDS)
            if not done:
                raise errors.DatabaseUnavailable(retry_after=2)
            return asking.result()
        finally:
            asking.cancel()

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """A read-only transaction all of whose statements see the same data."""
        isolation = "repeatable_read"
        async with self._transaction(
            self._shared, isolation=isolation, readonly=True, most=self._max_page
        ) as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction that writes: committed at the end of the block, rolled back if the block raises."""
        if not self.writable:
            raise errors.ReadOnlyDatabase
        async with self._transaction(self._shared, isolation="read_committed", readonly=False) as connection:
            yield connection

    @asynccontextmanager
    async def _statement(self) -> AsyncIterator[Connection]:
        """For one statement that writes, and is its own transaction: nothing is sent before it, nor after it."""
        if not self.writable:
            raise errors.ReadOnlyDatabase
        if self._shared.each_transaction:
            async with self.transaction() as connection:
                yield connection
            return
        async with self._shared.connection() as raw:
            try:
                yield self._unit(raw)
            except BaseException as problem:
                _cut_if_no_primary(raw, problem)
                raise

    async def read(self, work: Callable[[Connection], Awaitable[T]], *, snapshot: bool = False) -> T:
        """Do `work`, which only reads, and do it once more where its connection was lost on the way.

        With `snapshot` all its statements see the same data. Nothing of what the first attempt read may have left the
        process: `work` returns it.
        """
        unit = self.snapshot if snapshot else self.connection
        for _ in range(_READINGS - 1):
            try:
                async with unit() as connection:
                    return await work(connection)
            except errors.ConnectionLost:
                # A server that has lost one of its processes takes a moment to begin anew.
                await asyncio.sleep(_REREAD_SECONDS)
        async with unit() as connection:
            return await work(connection)

    async def settle(self, work: Callable[[Connection], Awaitable[T]], *, one_statement: bool = False) -> T:
        """Do `work` in a transaction that writes; again where it met another one that wrote the same, three times at most.

        Where it is `one_statement`, that is a transaction by itself: one round trip, not three.

        Two writers who insert the same row at once end in a deadlock or on the wrong constraint; a moment later the row
        is simply there. A connection that was lost is not made up for here: whether the commit came through is not known,
        and who sent the record can send it again.
        """
        unit = self._statement if one_statement else self.transaction
        for _ in range(_ATTEMPTS - 1):
            try:
                async with unit() as connection:
                    return await work(connection)
            except errors.LockedOut:
                raise  # that was waiting enough
            except (errors.Contention, errors.UsernameTaken):
                await asyncio.sleep(_RETRY_SECONDS)
        async with unit() as connection:
            return await work(connection)

    @asynccontextmanager
    async def _separately(self, source: _Source, *, most: int | None = None) -> AsyncIterator[Connection]:
        if source.each_transaction:
            async with self._transaction(source, isolation="read_committed", readonly=False, most=most) as connection:
                yield connection
            return
        async with source.connection() as raw:
            yield self._unit(raw, most=most)

    @asynccontextmanager
    async def _transaction(
        self, source: _Source, *, isolation: Any, readonly: bool, most: int | None = None
    ) -> AsyncIterator[Connection]:
        async with source.connection() as raw:
            transaction = raw.transaction(isolation=isolation, readonly=readonly)
            try:
                with _translated():
                    await transaction.start()
                    if source.each_transaction:
                        await raw.execute(source.each_transaction)
                yield self._unit(raw, most=most)
                with _translated():
                    await transaction.commit()
            except BaseException as problem:
                if not _cut_if_no_primary(raw, problem):
                    await _roll_back(raw, transaction)
                raise

    def _unit(self, raw: asyncpg.pool.PoolConnectionProxy[Any], *, most: int | None = None) -> Connection:
        return Connection(raw, self._statements, self._hints, most=most, observer=self._observer)

    async def close(self) -> None:
        """Close every connection; those in use are waited for, a few seconds long."""
        await asyncio.gather(self._shared.close(), self._reserve.close())

    def cut(self) -> None:
        """End every connection; whoever waits for an answer on one gets ConnectionLost."""
        self._shared.pool.terminate()
        self._reserve.pool.terminate()


_CLOSE_TIMEOUT = 5.0
_LISTENER_CHECK = 5.0
_LISTENER_CONNECT = 10.0
_ATTEMPTS = 3
_RETRY_SECONDS = 0.02
_READINGS = 2
_REREAD_SECONDS = 0.1
_RECONNECT_SECONDS = 0.1
# Of the time for a host: a resolver that has lost a question asks again after five seconds, and a second call asks at once.
_FIRST_GO = 0.4
# For ending a transaction or a statement that nobody wants any more; then the connection is cut.
_PARTING = 2.0
# What the server needs to tell that it has cancelled a statement, before it counts as hung.
_GRACE = 5.0
# For how long a server may leave unacknowledged what was sent to it: one that runs acknowledges however busy it is.
_UNACKNOWLEDGED = 10.0
_PROBE_SECONDS = 3.0
_MOST_PROBES = 20


async def connect(
    settings: Settings, url: str, statements: Mapping[str, Statement], *, observer: Observer | None = None
) -> Database:
    """A pool on `url`; raises DatabaseUnavailable where the server cannot be reached."""
    database = await connect_later(settings, url, statements, observer=observer)
    try:
        async with database.connection() as connection:
            database.rolled_up = bool(await connection.value("schema/find_rollups"))
    except BaseException:
        await database.close()
        raise
    return database


async def connect_later(
    settings: Settings, url: str, statements: Mapping[str, Statement], *, observer: Observer | None = None
) -> Database:
    """A pool on `url`, which connects when it is asked for the first connection: the server may be away."""
    hosts = _Hosts(url)
    shared = await _source(
        hosts,
        host_seconds=settings.pool_timeout,
        size=settings.pool_size,
        most_waiting=settings.max_waiting,
        patience=settings.pool_timeout,
        statement_seconds=settings.statement_timeout,
        settings=settings,
        observer=observer,
    )
    reserve = await _source(
        hosts,
        # Lest the first one, which is gone, takes all the time that a probe has.
        host_seconds=min(_PROBE_SECONDS / len(hosts), settings.pool_timeout),
        size=1,
        most_waiting=_MOST_PROBES,
        patience=min(_PROBE_SECONDS, settings.pool_timeout),
        statement_seconds=min(_PROBE_SECONDS, settings.statement_timeout),
        settings=settings,
    )
    return Database(
        shared,
        reserve,
        statements,
        writable=settings.schema == "own",
        max_page=settings.max_page,
        observer=observer,
    )


async def _source(
    hosts: _Hosts,
    *,
    host_seconds: float,
    size: int,
    most_waiting: int,
    patience: float,
    statement_seconds: float,
    settings: Settings,
    observer: Observer | None = None,
) -> _Source:
    session = SESSION | {
        "statement_timeout": _milliseconds(statement_seconds),
        "lock_timeout": _milliseconds(settings.lock_timeout),
        # Should this process stop in the middle of a transaction, its locks must not stay.
        "idle_in_transaction_session_timeout": _milliseconds(settings.request_timeout),
    }
    pooled = settings.pgbouncer
    pool: asyncpg.Pool[Any] = await asyncpg.create_pool(
        hosts.url,
        connect=cast("Any", partial(hosts.connect, patience=host_seconds)),
        min_size=0,
        max_size=size,
        init=cast("Any", _prepare),
        reset=_keep,
        connection_class=_Raw,
        command_timeout=statement_seconds + _GRACE,
        statement_cache_size=0 if pooled else 1000,
        max_cached_statement_lifetime=0,
        server_settings={name: session[name] for name in _TRACKED} if pooled else session,
    )
    each_transaction = _set_locally(session) if pooled else None
    return _Source(
        pool, most_waiting=most_waiting, patience=patience, each_transaction=each_transaction, observer=observer
    )


def _set_locally(session: Mapping[str, str]) -> str:
    # One text without parameters, so that it is one round trip.
    return "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in session.items())


def _milliseconds(seconds: float) -> str:
    return str(max(1, int(seconds * 1000)))


def each_host(url: str) -> list[tuple[str, str]]:
    """The hosts of a URL, each by its name and with a URL of its own, which asks for no kind of server.

    A URL that names none is returned as it is: the driver knows where to look.
    """
    parts = urlsplit(url)
    query = {name: value for name, value in parse_qsl(parts.query) if name != "target_session_attrs"}
    user, at, places = parts.netloc.rpartition("@")
    if places:
        return [
            (place, urlunsplit(parts._replace(netloc=f"{user}{at}{place}", query=urlencode(query))))
            for place in places.split(",")
        ]
    if "host" not in query:
        return [("", url)]
    hosts, ports = query["host"].split(","), query.get("port", "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    return [
        (f"{host}:{port}", urlunsplit(parts._replace(query=urlencode(query | {"host": host, "port": port}))))
        for host, port in zip(hosts, ports, strict=False)
    ]


class _Hosts:
    """Where the database may be: the hosts of a URL, `postgresql://…@one:5432,two:5432/…`, are tried one by one.

    The one that was good last is tried first.
    """

    def __init__(self, url: str) -> None:
        hosts = each_host(url)
        self.url = url
        self._urls = [one for _, one in hosts] if len(hosts) > 1 else [url]
        # Of several the one that takes writes is meant, unless the URL says otherwise.
        asked = parse_qs(urlsplit(url).query).get("target_session_attrs", ["primary" if len(hosts) > 1 else "any"])
        self._wanted = asked[-1]

    def __len__(self) -> int:
        return len(self._urls)

    async def connect(self, _: str, *, patience: float, **options: Any) -> asyncpg.Connection[Any]:
        """Connect to the first host that is what is wanted, in two goes; raises what the last one did in the second.

        Each has `patience` seconds in all, since a host that is gone does not answer at all. The second go is for a name
        that is not resolved for a moment, or a server that just begins: nothing was asked yet, so it is safe also for
        who writes.
        """
        first = patience * _FIRST_GO
        with suppress(*_LOST):
            return await self._connect_to_any(options | {"timeout": first})
        await asyncio.sleep(_RECONNECT_SECONDS)
        return await self._connect_to_any(options | {"timeout": patience - first})

    async def _connect_to_any(self, options: dict[str, Any]) -> asyncpg.Connection[Any]:
        *others, last = self._urls
        for url in others:
            with suppress(*_GONE):
                return await self._connect(url, options)
        return await self._connect(last, options)

    async def _connect(self, url: str, options: dict[str, Any]) -> asyncpg.Connection[Any]:
        found: asyncpg.Connection[Any] = await asyncpg.connect(
            url, target_session_attrs=cast("Any", self._wanted), **options
        )
        self._urls.sort(key=lambda other: other != url)
        return found


@asynccontextmanager
async def listen(url: str, channel: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Listen on a connection of its own, outside the pool. The block gets a function that waits for the next notification.

    That function, like the opening, raises DatabaseUnavailable where the connection is lost. Notifications that come
    while nobody waits count as one.
    """
    told = asyncio.Event()
    hosts = _Hosts(url)
    with _translated(connecting=True):
        raw = await hosts.connect(
            url, patience=_LISTENER_CONNECT, server_settings={"application_name": "bridgelog listener"}
        )
    try:

        async def notified() -> None:
            # A connection that died without a word is found out by asking, now and then.
            while not told.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(told.wait(), timeout=_LISTENER_CHECK)
                if not told.is_set():
                    with _translated():
                        await raw.execute("SELECT 1", timeout=_LISTENER_CHECK)
            if raw.is_closed():
                raise errors.DatabaseUnavailable(retry_after=1)
            told.clear()

        raw.add_termination_listener(lambda _: told.set())
        with _translated():
            await raw.add_listener(channel, lambda *_: told.set())
        yield notified
    finally:
        with suppress(*_GONE):
            await raw.close(timeout=1)


async def _roll_back(raw: asyncpg.pool.PoolConnectionProxy[Any], transaction: asyncpg.transaction.Transaction) -> None:
    """End a transaction in which something was raised, which says more than whatever happens here."""
    try:
        async with asyncio.timeout(_PARTING):
            await transaction.rollback()
    except _GONE:  # also where its beginning or its commit was given up half-way
        _cut(raw)


def _cut_if_no_primary(raw: asyncpg.pool.PoolConnectionProxy[Any], problem: BaseException) -> bool:
    """Whether the server may not be the primary any more: a new connection looks for it again."""
    if not isinstance(problem.__cause__, asyncpg.ReadOnlySQLTransactionError):
        return False
    _cut(raw)
    return True


def _cut(raw: asyncpg.pool.PoolConnectionProxy[Any]) -> None:
    """Let the pool open another connection in its place."""
    with suppress(asyncpg.InterfaceError):  # it is closed already
        raw.terminate()


async def _prepare(raw: _Raw) -> None:
    # JSON that PostgreSQL composed goes to the socket as it came: bytes, neither decoded nor parsed.
    await raw.set_type_codec("json", schema="pg_catalog", encoder=bytes, decoder=raw.answered.take, format="binary")
    # The driver has no setting for it.
    connected = cast("Any", raw)._transport.get_extra_info("socket")  # noqa: SLF001  # nor a way to its socket
    if connected is not None and connected.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
        # A host that has lost its power, or its network, says nothing: the kernel finds that out.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_UNACKNOWLEDGED * 1000))
    # The driver takes the first and the last instant of a datetime for infinities; the first is Go's zero time.
    await raw.set_type_codec(
        "timestamptz", schema="pg_catalog", encoder=_to_microseconds, decoder=_from_microseconds, format="tuple"
    )


def _to_microseconds(instant: datetime) -> tuple[int]:
    return ((instant - _EPOCH) // _MICROSECOND,)


def _from_microseconds(found: tuple[int]) -> datetime:
    """What PostgreSQL keeps beyond the years of a datetime, infinities too, reads as the nearest one."""
    return _EPOCH + max(_FIRST, min(found[0], _LAST)) * _MICROSECOND


async def _keep(raw: asyncpg.Connection[Any]) -> None:
    """Nothing here changes a session's state, so a connection goes back as it is, without a round trip."""


@contextmanager
def _translated(*, connecting: bool = False) -> Iterator[None]:
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as problem:
        refusal = errors.CONSTRAINTS.get(problem.constraint_name or "")
        if refusal is None:
            raise
        raise refusal() from problem
    except asyncpg.UndefinedTableError as problem:
        log.warning("the database schema is behind: run bridgelog migrate", reason=str(problem))
        raise errors.SchemaBehind("The operator must run bridgelog migrate.", retry_after=10) from problem
    except asyncpg.LockNotAvailableError as problem:
        raise errors.LockedOut(retry_after=2) from problem
    except _CONTENTION as problem:
        raise errors.Contention(retry_after=1) from problem
    except _TooMuch as problem:
        raise errors.TooLarge(retry_after=10) from problem
    except asyncpg.ProgramLimitExceededError as problem:
        log.warning("a limit of the database was met", reason=str(problem))
        raise errors.TooLarge(retry_after=10) from problem
    except asyncpg.QueryCanceledError as problem:
        log.warning("a statement was cancelled", reason=str(problem))
        raise errors.TookTooLong(retry_after=10) from problem
    except TimeoutError as problem:  # which is an OSError, but one that has taken its time already
        log.warning("database unavailable", reason=type(problem).__name__)
        raise errors.DatabaseUnavailable(retry_after=2) from problem
    except _LOST as problem:
        log.warning("database unavailable", reason=type(problem).__name__)
        raise (errors.DatabaseUnavailable if connecting else errors.ConnectionLost)(retry_after=2) from problem
    except _UNABLE as problem:
        log.warning("database unavailable", reason=type(problem).__name__)
        raise errors.DatabaseUnavailable(retry_after=10) from problem
