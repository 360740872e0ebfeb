"""A rolling update: the previous release's service works on the schema of this tree, beside this tree's service.

The previous release is the newest tag `v*` that is not this commit. Where there is none, the present tree takes its place,
so that the whole way is walked all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from recorder import CHILD_CALLS, CHILDREN, ndjson, running, whole
from rows import Sql
from wheels import ROOT, Environment, copy_checkout, install

from service import db, migrations

# One worker builds it, once.
pytestmark = pytest.mark.xdist_group("packaging")

API = "/api/v2/aibridge"


def git(*arguments: str, tree: Path = ROOT) -> list[str] | None:
    """The lines that git prints; None where it fails, or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def previous_release(tree: Path = ROOT) -> tuple[str | None, str]:
    """The tag of the release before this tree, or None; and why it is that."""
    tags = git("tag", "--list", "v[0-9]*", "--sort=-version:refname", tree=tree)
    here = git("tag", "--list", "v[0-9]*", "--points-at", "HEAD", tree=tree)
    if tags is None or here is None:
        return None, "this is no git checkout: the present tree stands for the previous release"
    for tag in tags:
        if tag not in here:
            return tag, f"the previous release is {tag}"
    if git("rev-parse", "--is-shallow-repository", tree=tree) == ["true"]:
        return None, "a shallow clone without tags: the present tree stands for the previous release"
    return None, "there is no release before this one: the present tree stands for it"


def extract(tag: str, folder: Path, tree: Path = ROOT) -> None:
    """The tree of a tag."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", tag], cwd=tree, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The previous release, installed."""
    work = tmp_path_factory.mktemp("previous")
    tag, why = previous_release()
    print(why)
    if tag is None:
        copy_checkout(work / "tree")
    else:
        extract(tag, work / "tree")
    return install(work / "tree", work)


@dataclass(frozen=True)
class Served:
    """A running service, and a token of an owner."""

    address: str
    token: str

    def call(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"{self.address}{path}", data=body, method=method, headers={"Coder-Session-Token": self.token}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as refused:
            return refused.code, json.load(refused)

    def post(self, path: str, body: object) -> int:
        status, answer = self.call("POST", f"{API}{path}", json.dumps(body).encode())
        assert status < 300, answer
        return status

    def get(self, path: str) -> Any:
        status, answer = self.call("GET", f"{API}{path}")
        assert status == 200, answer
        return answer


Start = Callable[[], contextlib.AbstractContextManager[tuple[Served, Served]]]


@contextlib.contextmanager
def served(command: list[str | Path], *, cwd: Path, environment: dict[str, str], token: str) -> Iterator[Served]:
    environment = environment | {"BRIDGELOG_PORT": "0", "BRIDGELOG_DRAIN_SECONDS": "0"}
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "serves" in line), "")
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found, process.communicate(timeout=30)[1]
        yield Served(found[0], token)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def command(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of this tree."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env={
            "PATH": os.defpath,
            "BRIDGELOG_DATABASE_URL": url,
            "BRIDGELOG_PORT": "0",
            "BRIDGELOG_STARTUP_TIMEOUT": "0",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def exercise(service: Served) -> list[dict[str, Any]]:
    """Record step by step and whole, import, switch, list; what can be sent again."""
    assert service.call("GET", "/readyz")[0] == 200
    total = service.get("/interceptions?limit=1")["total"]
    finished, imported, begun = whole(), whole(model=f"model-{uuid4()}"), running(metadata={"a": 1})
    assert service.post("/interceptions", finished) == 201
    assert service.post("/interceptions", finished) == 200
    assert service.post("/interceptions", begun) == 201
    for kind, make in CHILDREN.items():
        assert service.post(f"/interceptions/{begun['id']}/{CHILD_CALLS[kind]}", make()) == 201
    end = {"ended_at": "2026-03-01T10:30:00Z", "metadata": {"b": 2}}
    assert service.post(f"/interceptions/{begun['id']}/end", end) == 200
    status, report = service.call("POST", f"{API}/interceptions/import", ndjson(imported, finished))
    assert (status, report["imported"], report["unchanged"]) == (200, 1, 1), report
    enabled = not service.get("/log-requests")["enabled"]
    assert service.post("/log-requests", {"enabled": enabled}) == 200
    assert service.get("/log-requests")["enabled"] is enabled
    page = service.get("/interceptions?limit=1000")
    assert page["total"] == total + 3
    assert {finished["id"], imported["id"], begun["id"]} <= {found["id"] for found in page["results"]}
    assert service.get(f"/interceptions?q=model:{imported['model']}")["total"] == 1
    assert imported["model"] in service.get("/models")
    assert "Claude Code" in service.get("/clients")
    return [finished, imported, begun]


@pytest.fixture
def both(previous: Environment, database_url: str) -> Start:
    """The previous release and this tree, serving one database that this tree has migrated."""

    @contextlib.contextmanager
    def start() -> Iterator[tuple[Served, Served]]:
        environment = previous.environ(BRIDGELOG_DATABASE_URL=database_url)
        previous.run("bridgelog", "users", "add", "olivia", "--role", "owner", BRIDGELOG_DATABASE_URL=database_url)
        token = previous.run("bridgelog", "tokens", "create", "olivia", BRIDGELOG_DATABASE_URL=database_url).strip()
        with (
            served(
                [previous.folder / "bin" / "bridgelog", "serve"],
                cwd=previous.elsewhere,
                environment=environment,
                token=token,
            ) as old,
            served([sys.executable, "-m", "service", "serve"], cwd=ROOT, environment=environment, token=token) as new,
        ):
            yield old, new

    return start


def test_the_previous_release_works_on_this_schema_beside_this_tree(
    both: Start,
    previous: Environment,
    database_url: str,
) -> None:
    with both() as (old, new):
        for one, other in ((old, new), (new, old), (old, new)):
            for body in exercise(one):
                assert other.post("/interceptions", body) == 200
            assert one.get("/interceptions?limit=1000") == other.get("/interceptions?limit=1000")
            assert one.get("/log-requests") == other.get("/log-requests")
    assert previous.run("bridgelog", "migrate", "--check", BRIDGELOG_DATABASE_URL=database_url) == (
        "the schema is current\n"
    )
    done = command(database_url, "rollups", "verify")
    assert done.stdout == "the rollups agree with a full count\n", done.stderr


def test_a_migration_that_takes_away_what_it_needs_would_be_found(both: Start, sql: Sql) -> None:
    sql("ALTER TABLE bridgelog_merged_metadata RENAME TO bridgelog_metadata_before_merging")
    with both() as (old, _), pytest.raises(AssertionError, match="lacks tables that this version needs"):
        exercise(old)


# -- which release is the previous one -------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., None]:
    """A repository of one file; a commit with the tags that are named."""
    tree = tmp_path / "repository"
    tree.mkdir()

    def commit(*tags: str) -> None:
        (tree / "file").write_text(str(uuid4()))
        for arguments in (
            ("init", "--quiet"),
            ("add", "file"),
            ("-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "m"),
            *(("tag", tag) for tag in tags),
        ):
            assert git(*arguments, tree=tree) is not None, arguments

    return commit


def test_which_release_is_the_previous_one(repository: Callable[..., None], tmp_path: Path) -> None:
    tree = tmp_path / "repository"
    repository("other")
    assert previous_release(tree)[0] is None
    repository("v0.1.0")
    assert previous_release(tree) == (None, "there is no release before this one: the present tree stands for it")
    content = (tree / "file").read_text()
    repository()
    assert previous_release(tree) == ("v0.1.0", "the previous release is v0.1.0")
    repository("v0.9.0")
    repository("v0.10.0")
    assert previous_release(tree)[0] == "v0.9.0"
    repository()
    assert previous_release(tree)[0] == "v0.10.0"
    extract("v0.1.0", tmp_path / "extracted", tree)
    assert (tmp_path / "extracted" / "file").read_text() == content
    shallow = tmp_path / "shallow"
    assert git("clone", "--quiet", "--depth=1", "--no-tags", f"file://{tree}", str(shallow), tree=tmp_path) is not None
    assert previous_release(shallow)[1].startswith("a shallow clone without tags")
    assert previous_release(tmp_path)[1].startswith("this is no git checkout")


# -- newer and older schemas -----------------------------------------------------------------------------------------


async def test_a_schema_that_is_newer_is_current_and_an_older_one_is_not(
    client: Any, database: db.Database, database_url: str, sql: Sql
) -> None:
    """An older service runs on beside a newer one; the newer one does not start before its migrations have run."""
    sql(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc)"
        " VALUES ('f', '9999.of-a-release-to-come', now())"
    )
    assert migrations.pending(database_url) == []
    assert migrations.apply(database_url) == []
    assert (await client.get("/readyz")).status == 200
    done = await asyncio.to_thread(command, database_url, "migrate", "--check")
    assert (done.returncode, done.stdout) == (0, "the schema is current\n"), done.stderr

    with psycopg.connect(database_url, autocommit=True) as raw:
        raw.execute("DELETE FROM _yoyo_migration WHERE migration_id = %s", [migrations.names()[-1]])
    assert migrations.pending(database_url) == [migrations.names()[-1]]
    answer = await client.get("/readyz")
    assert answer.status == 503
    assert (await answer.json())["message"] == "The database lacks tables that this version needs."
    done = await asyncio.to_thread(command, database_url, "serve")
    assert done.returncode == 1
    assert f"the database lacks 1 migrations, {migrations.names()[-1]} first: run bridgelog migrate" in done.stderr
