"""TLS to a real PostgreSQL: verified where the URL asks for it, by everything that connects; passwords told to nobody."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import trustme

from service import db, errors, migrations, statements
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
    port: int
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
        return f"postgresql://{signed_in}@{host or self.named}:{self.port}/bridgelog?{query}"


@pytest.fixture(scope="module")
def tls() -> Iterator[Tls]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[4]))
    if not found:
        pytest.skip("no PostgreSQL of Debian's packages is here, and the embedded one is built without TLS")
    folder = Path(tempfile.mkdtemp(prefix="bridgelog-tls-"))
    named, unnamed = "127.0.0.1", "127.0.0.2"
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "other.pem"))
    certificates = {
        "server": authority.issue_cert(named),
        "carol": authority.issue_cert("carol@example.com", common_name="carol"),
        "stranger": trustme.CA().issue_cert("carol@example.com", common_name="carol"),
    }
    for name, certificate in certificates.items():
        certificate.cert_chain_pems[0].write_to_path(str(folder / f"{name}.crt"))
        certificate.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        (folder / f"{name}.key").chmod(0o600)
    try:
        with _postgres(found[-1], folder, addresses=f"{named},{unnamed}") as port:
            own = f"postgresql://bridgelog@/bridgelog?host={folder}&port={port}"
            with psycopg.connect(own.replace("/bridgelog?", "/postgres?"), autocommit=True) as connection:
                connection.execute("CREATE DATABASE bridgelog")
            migrations.apply(own)
            with psycopg.connect(own, autocommit=True) as connection:
                connection.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'".encode())
                connection.execute("CREATE ROLE carol LOGIN")
                connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO app, carol")
            yield Tls(named, unnamed, port, folder)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _postgres(programs: Path, folder: Path, *, addresses: str) -> Iterator[int]:
    """A server with TLS, on a port of its own. It refuses to be root, and is nobody then."""
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    initdb: list[str | Path] = [
        programs / "initdb",
        "-D",
        data,
        "-U",
        "bridgelog",
        "-E",
        "UTF8",
        "--locale=C",
        "-A",
        "trust",
        "--no-sync",
    ]
    subprocess.run(initdb, cwd=folder, check=True, capture_output=True, **account)
    for name in ("server.crt", "server.key", "ca.pem"):
        shutil.copy2(folder / name, data / name)
        os.chown(data / name, data.stat().st_uid, data.stat().st_gid)
    (data / "pg_hba.conf").write_text(RULES, encoding="utf-8")
    settings = {
        "fsync": "off",
        "listen_addresses": addresses,
        "port": str(port),
        "unix_socket_directories": str(folder),
        "ssl": "on",
        "ssl_ca_file": "ca.pem",
    }
    command: list[str | Path] = [programs / "postgres", "-D", data]
    command += [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
    with (
        (folder / "server.log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **account) as server,
    ):
        try:
            until = time.monotonic() + 60
            while True:
                with contextlib.suppress(psycopg.OperationalError):
                    psycopg.connect(f"postgresql://bridgelog@/postgres?host={folder}&port={port}").close()
                    break
                assert server.poll() is None, (folder / "server.log").read_text(encoding="utf-8")
                assert time.monotonic() < until
                time.sleep(0.05)
            yield port
        finally:
            server.send_signal(signal.SIGINT)


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
        await connect(tls.url(**changes), settings)  # type: ignore[misc]
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
            env={
                "PATH": os.defpath,
                "BRIDGELOG_DATABASE_URL": url,
                "BRIDGELOG_LOG_FORMAT": log_format,
                "BRIDGELOG_STARTUP_TIMEOUT": "0.1",
            },
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
