"""The connections to PostgreSQL: a pool, units of work, and the verbs that run a statement.

Only this module (and the embedded server) knows the driver: what it raises leaves here as a refusal of `errors`, and no
text of the database goes with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

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

_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what the driver makes of a connection that was terminated a moment ago
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    OSError,
    TimeoutError,
)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's
_MICROSECOND = timedelta(microseconds=1)
_FIRST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_CONTENTION = (asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError, asyncpg.SerializationError)


class Connection:
    """One connection for the length of a unit of work. The verbs name a statement (`noun/statement`) and its values.

    `hints` is what earlier units of work found out, on any connection of the pool: it may be out of date, and saves a
    question where a statement tells whether it is.
    """

    def __init__(
        self,
        raw: asyncpg.pool.PoolConnectionProxy[Any],
        statements: Mapping[str, Statement],
        hints: dict[str, Any],
    ) -> None:
        self._raw = raw
        self._statements = statements
        self.hints = hints

    async def rows(self, statement: str, **values: object) -> list[asyncpg.Record]:
        """All rows of a statement whose result is `many`."""
        text, arguments = self._statements[statement].bind(values)
        with _translated():
            return await self._raw.fetch(text, *arguments)

    async def rows_beside(self, one: Asked, many: Asked) -> list[asyncpg.Record]:
        """Two statements as one, hence of one snapshot: the rows of `many`, each beside the one row of `one`.

        Where `many` has none, there is one row, in which the columns of `many` are null.
        """
        (name, values), (more, more_values) = one, many
        text, arguments = self._statements[name].beside(values, self._statements[more], more_values)
        with _translated():
            return await self._raw.fetch(text, *arguments)

    async def row(self, statement: str, **values: object) -> asyncpg.Record | None:
        """The row of a statement whose result is `one` or `maybe`; None where there is none."""
        text, arguments = self._statements[statement].bind(values)
        with _translated():
            return await self._raw.fetchrow(text, *arguments)

    async def value(self, statement: str, **values: object) -> Any:
        """The first column of the row of a statement whose result is `one` or `maybe`; None where there is no row."""
        found = await self.row(statement, **values)
        return None if found is None else found[0]

    async def run(self, statement: str, **values: object) -> None:
        """Run a statement whose result is `none`."""
        text, arguments = self._statements[statement].bind(values)
        with _translated():
            await self._raw.execute(text, *arguments)


class Database:
    """The pool. `writable` is false for a database that another system owns; `rolled_up` tells whether it has rollups."""

    rolled_up = False

    def __init__(self, pool: asyncpg.Pool[Any], statements: Mapping[str, Statement], *, writable: bool) -> None:
        self._pool = pool
        self._statements = statements
        self._hints: dict[str, Any] = {}
        self.writable = writable

    @property
    def size(self) -> int:
        """How many connections are open."""
        return self._pool.get_size()

    @property
    def idle(self) -> int:
        """How many of the open connections are not in use."""
        return self._pool.get_idle_size()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection on which each statement is its own transaction."""
        with _translated():
            raw = await self._pool.acquire(timeout=_ACQUIRE_TIMEOUT)
        try:
            yield Connection(raw, self._statements, self._hints)
        finally:
            await self._pool.release(raw)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """A read-only transaction all of whose statements see the same data."""
        async with self._transaction(isolation="repeatable_read", readonly=True) as connection:
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction that writes: committed at the end of the block, rolled back if the block raises."""
        if not self.writable:
            raise errors.ReadOnlyDatabase
        async with self._transaction(isolation="read_committed", readonly=False) as connection:
            yield connection

    async def settle(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Do `work` in a transaction that writes; again where it met another one that wrote the same, three times at most.

        Two writers who insert the same row at once end in a deadlock or on the wrong constraint; a moment later the row
        is simply there.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                async with self.transaction() as connection:
                    return await work(connection)
            except (errors.Contention, errors.UsernameTaken):
                await asyncio.sleep(_RETRY_SECONDS)
        async with self.transaction() as connection:
            return await work(connection)

    @asynccontextmanager
    async def _transaction(self, *, isolation: Any, readonly: bool) -> AsyncIterator[Connection]:
        with _translated():
            raw = await self._pool.acquire(timeout=_ACQUIRE_TIMEOUT)
        try:
            transaction = raw.transaction(isolation=isolation, readonly=readonly)
            with _translated():
                await transaction.start()
            try:
                yield Connection(raw, self._statements, self._hints)
            except BaseException:
                with suppress(*_GONE):  # what the block raised says more than a rollback on a lost connection
                    await transaction.rollback()
                raise
            with _translated():
                await transaction.commit()
        finally:
            await self._pool.release(raw)

    async def close(self) -> None:
        """Close every connection; those in use are waited for, a few seconds long."""
        try:
            await asyncio.wait_for(self._pool.close(), timeout=_CLOSE_TIMEOUT)
        except TimeoutError:
            self._pool.terminate()


_ACQUIRE_TIMEOUT = 10.0
_CLOSE_TIMEOUT = 5.0
_LISTENER_CHECK = 5.0
_ATTEMPTS = 3
_RETRY_SECONDS = 0.02


async def connect(settings: Settings, url: str, statements: Mapping[str, Statement]) -> Database:
    """A pool on `url`; raises DatabaseUnavailable where the server cannot be reached."""
    with _translated():
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=settings.pool_size,
            init=_prepare,
            reset=_keep,
            command_timeout=settings.statement_timeout + 5,
            statement_cache_size=1000,
            max_cached_statement_lifetime=0,
            server_settings=SESSION | {"statement_timeout": str(int(settings.statement_timeout * 1000))},
        )
    database = Database(pool, statements, writable=settings.schema == "own")
    async with database.connection() as connection:
        database.rolled_up = bool(await connection.value("schema/find_rollups"))
    return database


@asynccontextmanager
async def listen(url: str, channel: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Listen on a connection of its own, outside the pool. The block gets a function that waits for the next notification.

    That function, like the opening, raises DatabaseUnavailable where the connection is lost. Notifications that come
    while nobody waits count as one.
    """
    told = asyncio.Event()
    with _translated():
        raw = await asyncpg.connect(
            url, timeout=_ACQUIRE_TIMEOUT, server_settings={"application_name": "bridgelog listener"}
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


async def _prepare(raw: asyncpg.Connection[Any]) -> None:
    # JSON that PostgreSQL composed goes to the socket as it came: bytes, neither decoded nor parsed.
    await raw.set_type_codec("json", schema="pg_catalog", encoder=bytes, decoder=bytes, format="binary")
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
def _translated() -> Iterator[None]:
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
    except _CONTENTION as problem:
        raise errors.Contention(retry_after=1) from problem
    except asyncpg.ProgramLimitExceededError as problem:
        log.warning("a limit of the database was met", reason=str(problem))
        raise errors.TooLarge(retry_after=10) from problem
    except asyncpg.QueryCanceledError as problem:
        log.warning("a statement was cancelled", reason=str(problem))
        raise errors.TookTooLong(retry_after=10) from problem
    except _GONE as problem:
        log.warning("database unavailable", reason=type(problem).__name__)
        raise errors.DatabaseUnavailable(retry_after=2) from problem
