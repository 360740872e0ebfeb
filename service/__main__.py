"""The command line: serve, migrate, users, tokens, rollups, retention, demo, import."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, TypeVar
from uuid import UUID, uuid4

import click
import structlog
from aiohttp import web

from service import (
    db,
    erasure,
    errors,
    instants,
    jsontext,
    logs,
    metrics,
    migrations,
    retention,
    server,
    startup,
    statements,
    tracing,
    upkeep,
    workers,
)
from service import settings as configuration
from service.app import build_app
from service.embedded import Embedded, EmbeddedError
from service.identifiers import parse_uuid
from service.importing import Report, import_stream
from service.settings import Settings
from service.store import demo as demo_data
from service.store import erasure as erasure_store
from service.store import interceptions as interception_store
from service.store import rollups as rollup_store
from service.store import tokens as token_store
from service.store import users as user_store

try:
    from uvloop import new_event_loop
except ImportError:  # there is none for this platform
    from asyncio import new_event_loop  # type: ignore[assignment]  # of the same kind

T = TypeVar("T")

log = structlog.get_logger("bridgelog")

ROLES = ("owner", "auditor", "recorder", "member")
_READ_SIZE = 256 * 1024
_REVIVE_SECONDS = 2.0
_DAY_SECONDS = 86_400.0
_MOST_DIFFERENCES = 100
_STOP_SECONDS = 10.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bridgelog")
def main() -> None:
    """Who asked which AI model for what, with which tools, at what token cost.

    Settings are environment variables (docs/settings.md). Without BRIDGELOG_DATABASE_URL every command uses the embedded
    PostgreSQL in BRIDGELOG_DATA_DIR, starting it where it is not running.
    """


@main.command()
@click.option(
    "--migrate", is_flag=True, help="Apply pending migrations to the database of BRIDGELOG_DATABASE_URL first."
)
@click.option(
    "--workers",
    "count",
    type=click.IntRange(1, configuration.MOST_WORKERS),
    help="How many processes serve; BRIDGELOG_WORKERS by default.",
)
def serve(*, migrate: bool, count: int | None) -> None:
    """Serve the HTTP API until SIGTERM or Ctrl-C."""
    settings = _settings()
    settings = replace(settings, workers=count or settings.workers, migrate=migrate or settings.migrate)
    with _current_database(settings) as (url, embedded), _told():
        if settings.tracing != "off":
            tracing.check()
        _wait(settings, url, settings.session_url(url) or url)
        if settings.schema == "own" and settings.database_url:
            if settings.migrate:
                migrations.apply(_session_url(settings, url))
            else:
                startup.wait_for_schema(settings, url)
        token = asyncio.run(_with(settings, url, lambda database: _prepare(database, settings)))
        try:
            sockets = server.bind(settings.host, settings.port)
            _serve(settings, url, embedded, sockets=sockets, token=token)
        except OSError as problem:
            message = f"cannot listen on {settings.host}:{settings.port}: {problem.strerror}. Set BRIDGELOG_PORT."
            raise click.ClickException(message) from problem


async def _prepare(database: db.Database, settings: Settings) -> str | None:
    """What happens once, before any worker starts; the token of the first owner, where there is a new one."""
    await startup.check_connections(database, settings)
    return None if settings.database_url else await _first_owner(database)


def _serve(
    settings: Settings, url: str, embedded: Embedded | None, *, sockets: list[socket.socket], token: str | None
) -> None:
    """In this process, or in as many workers as are set."""
    port = server.port_of(sockets)

    def welcome() -> None:
        _welcome(f"http://{settings.host}:{port}", settings=settings, token=token)

    if settings.workers == 1:
        app = build_app(settings, database_url=url)
        _run(_work(app, settings, embedded, sockets=sockets, ready=welcome))
        return
    with tempfile.TemporaryDirectory(prefix="bridgelog-") as name:
        parent, folder = os.getpid(), Path(name)
        # Built here, so that what is wrong with it stops the start; a worker's copy opens its own connections.
        app = build_app(settings, database_url=url, metrics_folder=folder)

        def work(slot: int, beat: Callable[[], None]) -> None:
            metrics.share(folder, slot)
            mine = embedded if slot == 0 else None
            _run(_work(app, settings, mine, sockets=sockets, ready=beat, beat=beat))
            if os.getppid() != parent:  # which would have removed it
                shutil.rmtree(folder, ignore_errors=True)

        workers.Supervisor(
            work,
            count=settings.workers,
            patience=settings.drain_seconds + settings.shutdown_timeout + _STOP_SECONDS,
            timeout=settings.worker_timeout,
            ready=welcome,
            ended=lambda slot: metrics.forget(folder, slot),
        ).run()
    server.close(sockets)


async def _work(
    app: web.Application,
    settings: Settings,
    embedded: Embedded | None,
    *,
    sockets: list[socket.socket],
    ready: Callable[[], None],
    beat: Callable[[], None] | None = None,
) -> None:
    """Serve, and revive the embedded server where it is this process that has to.

    `ready` is called once it serves; `beat`, from then on, as long as the event loop turns.
    """
    tasks = [asyncio.create_task(_revive(embedded))] if embedded else []

    def begun(_: int) -> None:
        ready()
        if beat:
            tasks.append(asyncio.create_task(_keep_beating(beat)))

    await server.serve(
        app,
        sockets=sockets,
        drain_seconds=settings.drain_seconds,
        shutdown_timeout=settings.shutdown_timeout,
        ready=begun,
    )
    for task in tasks:
        task.cancel()


async def _keep_beating(beat: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(workers.BEAT_SECONDS)
        beat()


@main.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if any migration is pending.")
def migrate(*, check: bool) -> None:
    """Bring the database to the schema of this version."""
    settings = _settings()
    if settings.schema == "foreign":
        raise click.ClickException("BRIDGELOG_SCHEMA=foreign: the schema belongs to another system")
    with _database(settings) as (url, _), _told():
        # What only asks may go through a pooler, where there is nothing else.
        way = (settings.session_url(url) or url) if check else _session_url(settings, url)
        _wait(settings, way)
        if not check:
            for name in migrations.apply(way):
                click.echo(f"applied {name}")
            click.echo("the schema is current")
            return
        missing = migrations.pending(way)
    for name in missing:
        click.echo(f"pending {name}")
    if missing:
        sys.exit(1)
    click.echo("the schema is current")


@main.group()
def users() -> None:
    """Who may sign in."""


@users.command("add")
@click.argument("username")
@click.option(
    "--role", "roles", type=click.Choice(ROLES), multiple=True, required=True, help="May be given several times."
)
@click.option("--id", "user_id", metavar="UUID", help="The user's id; a new one by default.")
@click.option("--name", default="", help="The person's name.")
def add_user(username: str, roles: tuple[str, ...], user_id: str | None, name: str) -> None:
    """Add a user, and print their id."""
    if not username.strip():
        raise click.BadParameter("must not be empty", param_hint="USERNAME")
    for what, text in (("USERNAME", username), ("--name", name)):
        if not text.isprintable():
            raise click.BadParameter("must not contain control characters", param_hint=what)
        if len(text) > 512:
            raise click.BadParameter("must have at most 512 characters", param_hint=what)
    if erasure_store.is_reserved(username):
        message = "must not be erased- and a UUID: so are those called who were erased"
        raise click.BadParameter(message, param_hint="USERNAME")
    new_id = _user_id(user_id)

    async def add(connection: db.Connection) -> None:
        await user_store.add(
            connection,
            user_id=new_id,
            username=username,
            name=name,
            roles=sorted(set(roles) - {"member"}),
            created_at=datetime.now(UTC),
        )

    _in_transaction(add)
    click.echo(new_id)


@users.command("list")
def list_users() -> None:
    """Everyone, with id, status and roles."""

    async def read(database: db.Database) -> list[user_store.User]:
        async with database.connection() as connection:
            return await user_store.list_all(connection)

    settings = _settings()
    with _current_database(settings) as (url, _), _told():
        found = _run(_with(settings, url, read))
    for user in found:
        roles = ",".join(user.roles) or "member"
        click.echo("\t".join(map(logs.visible, [str(user.id), user.username, user.status, roles, user.name])))


@users.command("suspend")
@click.argument("username")
def suspend_user(username: str) -> None:
    """Let a user's tokens no longer sign in."""
    _set_status(username, "suspended")


@users.command("activate")
@click.argument("username")
def activate_user(username: str) -> None:
    """Let a suspended user in again."""
    _set_status(username, "active")


@users.command("erase")
@click.argument("username")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase_user(username: str, *, yes: bool) -> None:
    """Remove a person's names, tokens and content everywhere, and keep the counts.

    USERNAME may also be the id of a user, or of an initiator who is none. Safe to repeat, by the id: the name goes first.
    """
    settings = _settings()
    initiator_id = parse_uuid(username)

    async def find(database: db.Database) -> UUID | None:
        async with database.connection() as connection:
            found = await user_store.find_id(connection, username=_findable(username))
            if found is None and initiator_id and await erasure_store.is_known(connection, user_id=initiator_id):
                return initiator_id
            return found

    async def erase(database: db.Database, found: UUID) -> Mapping[str, int]:
        with click.progressbar(length=0, label="erasing", file=sys.stderr) as bar:
            return await erasure.erase(
                database, user_id=found, progress=lambda removed: bar.update(removed["interceptions"])
            )

    with _current_database(settings) as (url, _), _told():
        found = _run(_with(settings, url, find))
        if found is None:
            raise click.ClickException(f"there is no user {logs.visible(username)}: see bridgelog users list")
        if not yes:
            question = f"Erase {logs.visible(username)} ({found})? What is removed cannot be brought back."
            click.confirm(question, abort=True, err=True)
        click.echo(f"If this is interrupted, go on with: bridgelog users erase {found}", err=True)
        removed = _run(_with(settings, url, lambda database: erase(database, found)))
    for kind in ("tokens", *erasure_store.KINDS):
        click.echo(f"{kind}\t{removed[kind]}")


@main.group()
def tokens() -> None:
    """What users sign in with."""


@tokens.command("create")
@click.argument("username")
@click.option("--days", type=click.IntRange(1, 36500), help="How long it is valid; by default it does not expire.")
def create_token(username: str, days: int | None) -> None:
    """Print a new token of a user: the only time that it is shown."""

    async def create(connection: db.Connection) -> str:
        user_id = await user_store.find_id(connection, username=_findable(username))
        if user_id is None:
            raise click.ClickException(f"there is no user {logs.visible(username)}: see bridgelog users list")
        now = datetime.now(UTC)
        expires_at = now + timedelta(days=days) if days else token_store.NEVER
        return await token_store.create(connection, user_id=user_id, created_at=now, expires_at=expires_at)

    click.echo(_in_transaction(create))


@tokens.command("revoke")
@click.argument("token_id", metavar="ID")
def revoke_token(token_id: str) -> None:
    """Revoke a token by its id, the part before the dash."""

    async def revoke(connection: db.Connection) -> bool:
        return await token_store.revoke(connection, token_id=token_id.partition("-")[0])

    if not _in_transaction(revoke):
        raise click.ClickException("there is no token of that id")


@main.group()
def rollups() -> None:
    """What totals and deep pages are read from."""


@rollups.command("verify")
def verify_rollups() -> None:
    """Compare the rollups with a full count; exits 1, and says where, if they differ."""

    async def verify(database: db.Database) -> list[rollup_store.Difference]:
        async with database.snapshot() as connection:
            return await rollup_store.verify(connection, most=_MOST_DIFFERENCES)

    found = _at_length(verify)
    for wrong in found:
        kind = f"{wrong.provider} {wrong.provider_name} {wrong.model} {wrong.client}"
        whose = "everyone" if not wrong.initiator_id.int else wrong.initiator_id
        where = f"{wrong.level} {instants.format(wrong.starts_at)}, {whose}, {kind}"
        click.echo(f"{logs.visible(where)}: {wrong.rolled_up} rolled up, {wrong.counted} counted")
    if found:
        more = " or more" if len(found) == _MOST_DIFFERENCES else ""
        click.echo(f"the rollups differ in {len(found)} buckets{more}: run bridgelog rollups rebuild", err=True)
        sys.exit(1)
    click.echo("the rollups agree with a full count")


@rollups.command("rebuild")
def rebuild_rollups() -> None:
    """Set the rollups right; readers and writers go on meanwhile."""

    async def rebuild(database: db.Database) -> None:
        async with database.transaction() as connection:
            await rollup_store.rebuild(connection)

    _at_length(rebuild)
    click.echo("the rollups are rebuilt")


@main.group("retention")
def retention_group() -> None:
    """What is older than it may be."""


@retention_group.command("run")
@click.option("--dry-run", is_flag=True, help="Remove nothing; say what would go.")
def run_retention(*, dry_run: bool) -> None:
    """Remove once, now, what is older than BRIDGELOG_RETENTION and BRIDGELOG_CONTENT_RETENTION allow."""
    settings = _settings()
    limits = retention.Limits.of(settings, now=datetime.now(UTC))
    if limits.interceptions is None and limits.content is None:
        click.echo("BRIDGELOG_RETENTION and BRIDGELOG_CONTENT_RETENTION keep everything: nothing to remove")
        return
    if dry_run:
        rows, content = _at_length(lambda database: retention.due(database, limits))
        for what, dues in (("would delete", rows), ("would remove the content of", content)):
            for due in dues:
                span = f"{instants.format(due.oldest)} to {instants.format(due.newest)}"
                click.echo(f"{what}\t{due.kind}\t{due.found}\t{span}")
        if not rows and not content:
            click.echo("nothing to remove")
        return
    with click.progressbar(length=0, label="removing", file=sys.stderr) as bar:
        removed = _in_batches(
            lambda database: retention.remove(
                database,
                limits,
                patient=True,
                progress=lambda some: bar.update(some.deleted["interceptions"] + some.emptied.total()),
            ),
            settings,
        )
    for what, counted in (("deleted", removed.deleted), ("removed the content of", removed.emptied)):
        for kind, number in counted.items():
            click.echo(f"{what}\t{kind}\t{number}")
    if not removed.deleted and not removed.emptied:
        click.echo("nothing to remove")


@main.command()
@click.option("--interceptions", type=click.IntRange(min=1), required=True, help="How many there shall be.")
@click.option("--seed", type=click.IntRange(0, demo_data.SEEDS.stop - 1), default=1, show_default=True)
@click.option("--if-empty", is_flag=True, help="Do nothing where anything is recorded already.")
@click.option("--beside-others", is_flag=True, help="Also fill a database that holds other people's records.")
def demo(*, interceptions: int, seed: int, if_empty: bool, beside_others: bool) -> None:
    """Fill the database with invented interceptions, the same for the same seed."""

    async def fill(database: db.Database) -> None:
        if if_empty:
            async with database.connection() as connection:
                if await interception_store.any_exists(connection):
                    return
        newest = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        with click.progressbar(length=interceptions, label="inventing interceptions", file=sys.stderr) as bar:
            await demo_data.fill(
                database,
                interceptions=interceptions,
                seed=seed,
                newest=newest,
                progress=lambda done: bar.update(done - bar.pos),
                beside_others=beside_others,
            )
        await upkeep.catch_up(database, until=newest)

    settings = _settings()
    with _current_database(settings) as (url, _), _told():
        try:
            _run(_with(settings, _session_url(settings, url), fill))
        except demo_data.ForeignRecords:
            message = "the database holds other people's records: --beside-others fills it all the same"
            raise click.ClickException(message) from None


@main.command("import")
@click.argument("file", type=click.File("rb"))
def import_file(file: IO[bytes]) -> None:
    """Import finished interceptions from FILE (- is standard input): NDJSON, or a JSON array.

    Exits 1 if any record was rejected; standard error tells which, and why.
    """
    settings = _settings()
    with _current_database(settings) as (url, _), _told():
        size = Path(file.name).stat().st_size if Path(file.name).is_file() else 0
        report = _run(_with(settings, url, lambda database: _import(database, file, size=size)))
    for rejected in report.rejected:
        wrong = "; ".join(f"{validation.field} {validation.detail}" for validation in rejected.validations)
        click.echo(logs.visible(f"line {rejected.line}: {rejected.message} {wrong}".rstrip()), err=True)
    if untold := report.rejected_total - len(report.rejected):
        click.echo(f"… and {untold} more", err=True)
    click.echo(f"imported {report.imported}, unchanged {report.unchanged}, rejected {report.rejected_total}")
    if report.rejected_total:
        sys.exit(1)


async def _import(database: db.Database, file: IO[bytes], *, size: int) -> Report:
    with click.progressbar(length=size, label="importing", file=sys.stderr) as bar:

        async def chunks() -> AsyncIterator[bytes]:
            while chunk := await asyncio.to_thread(file.read, _READ_SIZE):
                yield chunk
                if size:
                    bar.update(len(chunk))

        return await import_stream(database, chunks())


def _settings() -> Settings:
    try:
        settings = configuration.read()
    except configuration.InvalidSettings as problem:
        raise click.ClickException(str(problem)) from problem
    logs.configure(settings)
    return settings


@contextlib.contextmanager
def _database(settings: Settings) -> Iterator[tuple[str, Embedded | None]]:
    """Where the database is, and the embedded server if it is that one's, for as long as the block lasts."""
    if settings.database_url:
        yield settings.database_url, None
        return
    embedded = Embedded(settings.data_dir)
    try:
        embedded.start()
    except EmbeddedError as problem:
        raise click.ClickException(str(problem)) from problem
    try:
        yield embedded.url, embedded
    finally:
        embedded.close()


def _session_url(settings: Settings, url: str) -> str:
    """Where locks of a session hold; a pooler of transactions would lose them."""
    found = settings.session_url(url)
    if found is None:
        message = "this does not go through pgbouncer: set BRIDGELOG_DIRECT_DATABASE_URL to PostgreSQL itself"
        raise click.ClickException(message)
    return found


def _wait(settings: Settings, *ways: str) -> None:
    """Until the database can be reached, by each of these ways to it."""
    if settings.database_url:
        for way in dict.fromkeys(ways):
            startup.wait_for_database(settings, way)


@contextlib.contextmanager
def _current_database(settings: Settings) -> Iterator[tuple[str, Embedded | None]]:
    """As `_database`; the embedded one has its schema current."""
    with _database(settings) as (url, embedded):
        if embedded:
            with _told():
                migrations.apply(url)
        yield url, embedded


async def _revive(embedded: Embedded) -> None:
    """Bring the embedded server back, should it be gone for good: its keeper killed, or tired of restarting it."""
    while True:
        await asyncio.sleep(_REVIVE_SECONDS)
        try:
            await asyncio.to_thread(embedded.start)
        except EmbeddedError as problem:
            log.warning("the embedded PostgreSQL cannot be started", reason=str(problem))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What a person at a terminal is told, instead of a traceback."""
    try:
        yield
    except errors.Refusal as refusal:
        raise click.ClickException(f"{refusal.message} {refusal.detail}".strip()) from refusal
    except (
        migrations.MigrationError,
        startup.StartupError,
        statements.StatementError,
        tracing.TracingMissing,
        configuration.InvalidSettings,
    ) as problem:
        raise click.ClickException(str(problem)) from problem


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)


async def _with(settings: Settings, url: str, work: Callable[[db.Database], Awaitable[T]]) -> T:
    if direct := settings.direct_database_url:
        settings, url = replace(settings, pgbouncer=False), direct
    database = await db.connect(settings, url, statements.load())
    try:
        return await work(database)
    finally:
        await database.close()


def _in_transaction(work: Callable[[db.Connection], Awaitable[T]]) -> T:
    settings = _settings()

    async def whole(database: db.Database) -> T:
        async with database.transaction() as connection:
            return await work(connection)

    with _current_database(settings) as (url, _), _told():
        return _run(_with(settings, url, whole))


def _at_length(work: Callable[[db.Database], Awaitable[T]]) -> T:
    """Do what reads everything, and may take its time."""
    settings = _settings()
    return _in_batches(work, replace(settings, statement_timeout=_DAY_SECONDS, lock_timeout=_DAY_SECONDS))


def _in_batches(work: Callable[[db.Database], Awaitable[T]], settings: configuration.Settings) -> T:
    """Do what keeps to the time-outs that are set, batch by batch."""
    if settings.schema == "foreign":
        raise click.ClickException("BRIDGELOG_SCHEMA=foreign: a database of another system has no rollups")
    with _current_database(settings) as (url, _), _told():
        return _run(_with(settings, url, work))


async def _first_owner(database: db.Database) -> str | None:
    """A token of the new owner `admin`, where there is no owner yet."""
    now = datetime.now(UTC)
    try:
        async with database.transaction() as connection:
            if await user_store.any_owner(connection):
                return None
            admin = uuid4()
            await user_store.add(
                connection, user_id=admin, username="admin", name="Administrator", roles=["owner"], created_at=now
            )
            return await token_store.create(connection, user_id=admin, created_at=now)
    except errors.UsernameTaken:
        return None


def _welcome(address: str, *, settings: Settings, token: str | None) -> None:
    """What a person needs next: shown on a terminal, and wherever a token was made."""
    click.echo(f"\nbridgelog serves {address}   (its documentation: {address}/docs)")
    if token:
        click.echo(f"The owner is admin; their token, which is shown this once:\n\n    {token}\n")
    elif settings.database_url is None:
        given = "BRIDGELOG_DATA_DIR" in os.environ
        where = f"BRIDGELOG_DATA_DIR={shlex.quote(str(settings.data_dir))} " if given else ""
        click.echo(f"Another token for its owner: {where}{shlex.quote(sys.argv[0])} tokens create admin\n")
    if settings.database_url is None:
        click.echo(
            f"Try:\n\n    curl '{address}/api/v2/aibridge/interceptions?limit=1' "
            f"-H 'Coder-Session-Token: {token or 'TOKEN'}'\n"
        )
    sys.stdout.flush()


def _findable(username: str) -> str:
    if problem := jsontext.text_problem(username):
        raise click.BadParameter(problem, param_hint="USERNAME")
    return username


def _user_id(text: str | None) -> UUID:
    if text is None:
        return uuid4()
    parsed = parse_uuid(text)
    if parsed is None or not parsed.int:
        raise click.BadParameter("must be a UUID such as 497f6eca-6276-4993-bfeb-53cbbbba6f08", param_hint="--id")
    return parsed


def _set_status(username: str, status: Any) -> None:
    async def turn(connection: db.Connection) -> bool:
        return await user_store.set_status(
            connection, username=_findable(username), status=status, updated_at=datetime.now(UTC)
        )

    if not _in_transaction(turn):
        raise click.ClickException(f"there is no user {logs.visible(username)}: see bridgelog users list")


if __name__ == "__main__":
    main()
