"""TLS to a real PostgreSQL: verified where the URL asks for it, by everything that connects; passwords told to nobody."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import trustme

from service import db, errors, migrations, statements
from service import embedded as embedded_server
from service.embedded import Embedded
from service.settings import Settings

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8"),
    pytest.mark.xdist_group("tls"),
]

PASSWORD = "hunter2-l0ng-and-s3cret"
RULES = """
local   all all                 trust
hostssl all carol 127.0.0.0/8   cert
hostssl all all   127.0.0.0/8   scram-sha-256
"""


@dataclass(frozen=True)
class Tls:
    """A server with TLS alone, at an address that its certificate names and at one that it does not."""

    named: str
    unnamed: str
    folder: Path

    def url(
        self,
        *,
        user: str = "app",
        password: str | None = PASSWORD,
        host: str | None = None,
        mode: str = "verify-full",
        root: str = "ca",
        **more: str,
    ) -> str:
        signed_in = f"{user}:{password}" if password else user
        given = {"sslmode": mode, "sslrootcert": str(self.folder / f"{root}.pem"), **more}
        query = "&".join(f"{name}={quote(value, safe='/')}" for name, value in given.items())
        return f"postgresql://{signed_in}@{host or self.named}/bridgelog?{query}"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    folder = tmp_path_factory.mktemp("certificates")
    # Addresses instead of ports, of this process alone: the embedded server's port is fixed.
    network = f"127.{64 + os.getpid() // 65536 % 64}.{os.getpid() // 256 % 256}"
    named, unnamed = (f"{network}.{1 + os.getpid() % 120 + offset}" for offset in (0, 128))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "other.pem"))
    server = authority.issue_cert(named)
    carol = authority.issue_cert("carol@example.com", common_name="carol")
    stranger = trustme.CA().issue_cert("carol@example.com", common_name="carol")
    for name, certificate in (("server", server), ("carol", carol), ("stranger", stranger)):
        certificate.cert_chain_pems[0].write_to_path(str(folder / f"{name}.crt"))
        certificate.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        (folder / f"{name}.key").chmod(0o600)
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not programs:
        pytest.skip("no PostgreSQL of Debian's packages is here, and the embedded one is built without TLS")
    settings = {"fsync": "off", "listen_addresses": f"{named},{unnamed}"}
    with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as stack:
        patched.setattr(embedded_server, "binaries_directory", lambda: programs[-1].parent)
        embedded = stack.enter_context(Embedded(tmp_path_factory.mktemp("postgres"), settings=settings))
        with psycopg.connect(embedded.url, autocommit=True) as connection:
            [data, rules] = [
                Path(str(connection.execute(f"SHOW {name}".encode()).fetchone()[0]))  # type: ignore[index]
                for name in ("data_directory", "hba_file")
            ]
            owner = data.stat()
            for name in ("server.crt", "server.key", "ca.pem"):
                shutil.copy2(folder / name, data / name)
                os.chown(data / name, owner.st_uid, owner.st_gid)
            rules.write_text(RULES, encoding="utf-8")
            connection.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'".encode())
            connection.execute("CREATE ROLE carol LOGIN")
            connection.execute("GRANT ALL ON SCHEMA public TO app, carol")
            connection.execute("ALTER SYSTEM SET ssl_ca_file = 'ca.pem'")
            connection.execute("ALTER SYSTEM SET ssl = on")
            connection.execute("SELECT pg_reload_conf()")
        migrations.apply(embedded.url)
        with psycopg.connect(embedded.url, autocommit=True) as connection:
            connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO app, carol")
        yield Tls(named, unnamed, folder)


async def by_the_pool(url: str, settings: Settings) -> None:
    database = await db.connect(settings, url, statements.load())
    try:
        async with database.connection() as connection:
            assert await connection._raw.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    finally:
        await database.close()


async def by_the_listener(url: str, _: Settings) -> None:
    async with db.listen(url, "channel"):
        pass


async def by_migrations(url: str, _: Settings) -> None:
    assert migrations.pending(url) == []


DOORS = pytest.mark.parametrize("connect", [by_the_pool, by_the_listener, by_migrations])
REFUSED = (errors.DatabaseUnavailable, migrations.MigrationError)


@DOORS
async def test_the_server_that_its_certificate_names_is_spoken_to(
    tls: Tls, connect: Callable[..., object], settings: Settings
) -> None:
    for mode in ("verify-full", "verify-ca", "require"):
        await connect(tls.url(mode=mode), settings)  # type: ignore[misc]
    # The other address is that server too, and may be one whose name nobody asks for.
    await connect(tls.url(host=tls.unnamed, mode="verify-ca"), settings)  # type: ignore[misc]


@DOORS
@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "unnamed"},
        {"root": "other"},
        {"root": "other", "mode": "verify-ca"},
        {"root": "missing"},
        {"mode": "disable"},
        {"password": "another"},
    ],
    ids=str,
)
async def test_another_one_is_refused_and_no_password_is_told(
    tls: Tls,
    connect: Callable[..., object],
    settings: Settings,
    wrong: dict[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    changes = wrong | ({"host": tls.unnamed} if "host" in wrong else {})
    if "password" in wrong:
        changes["password"] = PASSWORD[:-1]
    with pytest.raises(REFUSED) as refused:
        await connect(tls.url(**changes), settings)  # type: ignore[misc, arg-type]
    told = f"{refused.value} {getattr(refused.value, 'detail', '')} {capfd.readouterr()}"
    assert PASSWORD[:-1] not in told


@DOORS
async def test_a_client_certificate_signs_in(tls: Tls, connect: Callable[..., object], settings: Settings) -> None:
    def url(name: str) -> str:
        files = {"sslcert": str(tls.folder / f"{name}.crt"), "sslkey": str(tls.folder / f"{name}.key")}
        return tls.url(user="carol", password=None, **files)

    await connect(url("carol"), settings)  # type: ignore[misc]
    with pytest.raises(REFUSED):
        await connect(url("stranger"), settings)  # type: ignore[misc]
    with pytest.raises(REFUSED):
        await connect(tls.url(user="carol", password=None), settings)  # type: ignore[misc]


@pytest.mark.parametrize("command", [["migrate"], ["users", "list"], ["serve"], ["tokens", "create", "x"]], ids=str)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_commands_say_what_is_wrong_and_no_password(tls: Tls, command: list[str], log_format: str) -> None:
    for url, expected in (
        (tls.url(password=PASSWORD[:-1]), "password authentication failed|unavailable"),
        (tls.url(host=tls.unnamed), "does not match|unavailable"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "service", *command],
            env={"PATH": os.defpath, "BRIDGELOG_DATABASE_URL": url, "BRIDGELOG_LOG_FORMAT": log_format},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        told = done.stdout + done.stderr
        assert done.returncode == 1
        assert any(words in told for words in expected.split("|")), told
        assert "Traceback" not in told
        assert PASSWORD[:-1] not in told
