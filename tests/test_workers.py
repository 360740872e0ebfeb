"""Several worker processes behind one port: shared, replaced, ended together; and one scrape that tells about all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import API, Person
from served import PATIENCE, Service, StartService, alive, environment, needs_proc, until

pytestmark = needs_proc

Supervise = Callable[..., subprocess.Popen[str]]
MODELS = "bridgelog_http_requests_total,method=GET,route=/models,status=200"


def count_by_each(service: Service, owner: Person, *, times: int) -> None:
    """Ask each worker `times` times."""
    for worker in service.workers:
        with service.only(worker):
            for _ in range(times):
                assert service.get(f"{API}/models", owner.token)[0] == 200


def killed(service: Service, worker: int) -> None:
    """Kill a worker, and wait until another is in its place."""
    served = len(service.logged("a worker serves"))
    os.kill(worker, signal.SIGKILL)
    until(lambda: len(service.logged("a worker serves")) > served, "another worker")
    assert worker not in service.workers


def test_one_scrape_tells_the_exact_sum_and_nothing_is_lost_with_a_worker(
    start_service: StartService, owner: Person
) -> None:
    service = start_service("--workers", "3").wait_ready()
    first, second, third = service.workers
    count_by_each(service, owner, times=7)
    for worker in (first, second, third):
        with service.only(worker):
            told = service.metrics()
        assert told[MODELS] == 21, "whoever is asked"
        assert told["bridgelog_http_request_duration_seconds_count,method=GET,route=/models"] == 21
        assert told["bridgelog_statement_duration_seconds_count,statement=rollups/list_models"] == 21
        assert told["bridgelog_workers"] == 3
        assert told["bridgelog_database_connections_max"] == 30
    cpu = told["process_cpu_seconds_total"]

    killed(service, first)
    killed(service, second)
    told = service.metrics()
    assert told[MODELS] == 21, "what the dead have counted is still there"
    assert told["process_cpu_seconds_total"] >= cpu
    assert told["bridgelog_workers"] == 3, "and they themselves are not"
    assert told["bridgelog_database_connections_max"] == 30
    count_by_each(service, owner, times=3)
    assert service.metrics()[MODELS] == 30
    [folder] = service.temporary.iterdir()
    slots = {path.stem.rpartition("_")[2] for path in folder.iterdir()}
    assert slots == {"0", "1", "2"}, "the files of a dead worker are those of its successor"


def test_every_worker_speaks_the_same_protocol(start_service: StartService) -> None:
    service = start_service("--workers", "2").wait_ready()
    for worker in service.workers:
        with service.only(worker):
            status, headers, body = service.send(b"nonsense \x00\r\n\r\n")
            assert (status, json.loads(body)["message"]) == (400, "The request is not valid HTTP.")
            assert "server" not in headers
            long = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 70_000 + b"\r\n\r\n"
            status, headers, body = service.send(long)
            assert (status, json.loads(body)["message"]) == (431, "Request line or headers are too large.")
            assert "server" not in headers
            assert service.get("/readyz")[0] == 200


def test_the_setting_counts_and_one_worker_is_this_process(start_service: StartService) -> None:
    two = start_service(BRIDGELOG_WORKERS="2").wait_ready()
    one = start_service("--workers", "1", BRIDGELOG_WORKERS="2").wait_ready()
    assert len(two.workers) == 2
    assert one.workers == set()
    assert list(one.temporary.iterdir()) == []


def test_a_worker_that_is_told_to_stop_is_replaced(start_service: StartService) -> None:
    service = start_service("--workers", "2").wait_ready()
    before = service.workers
    for worker in before:
        os.kill(worker, signal.SIGTERM)
    until(lambda: len(service.workers) == 2 and not service.workers & before, "two others")
    assert [event["exit"] for event in service.logged("a worker ended; starting another")] == [0, 0]
    until(lambda: service.get("/readyz")[0] == 200, "they serve")


def test_sigterm_drains_all_of_them(start_service: StartService) -> None:
    service = start_service("--workers", "2", BRIDGELOG_DRAIN_SECONDS="600").wait_ready()
    workers = service.workers
    service.process.terminate()
    for worker in workers:
        with service.only(worker):
            until(lambda: service.get("/readyz")[0] == 503, "draining")
            # Still answered, and no connection is kept, so that the next one is opened elsewhere.
            status, headers, _ = service.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (status, headers["connection"]) == (200, "close")
    assert service.workers == workers
    service.process.terminate()  # a second one ends the draining
    assert service.process.wait(PATIENCE) == 0
    assert [worker for worker in workers if alive(worker)] == []
    assert list(service.temporary.iterdir()) == []
    assert len(service.logged("stopped")) == 2


def test_ctrl_c_is_one_signal_though_a_terminal_tells_the_whole_group(start_service: StartService) -> None:
    service = start_service("--workers", "2", BRIDGELOG_DRAIN_SECONDS="600").wait_ready()
    workers = service.workers
    os.killpg(service.process.pid, signal.SIGINT)
    for worker in workers:
        with service.only(worker):
            until(lambda: service.get("/readyz")[0] == 503, "draining")
    for _ in range(20):  # one that was hurried is gone by then
        for worker in workers:
            with service.only(worker):
                assert service.get("/healthz")[0] == 200
    assert service.workers == workers
    os.killpg(service.process.pid, signal.SIGINT)
    assert service.process.wait(PATIENCE) == 0


def test_a_killed_parent_leaves_no_worker_behind(start_service: StartService) -> None:
    service = start_service("--workers", "3").wait_ready()
    workers = service.workers
    service.process.kill()
    until(lambda: not [worker for worker in workers if alive(worker)], "the workers end")
    until(lambda: not list(service.temporary.iterdir()), "and their files are gone")
    # The port is free again.
    start_service("--workers", "3", BRIDGELOG_PORT=str(service.port)).wait_ready()


def test_a_port_in_use_is_told_plainly(start_service: StartService) -> None:
    first = start_service("--workers", "2").wait_ready()
    second = start_service("--workers", "2", BRIDGELOG_PORT=str(first.port))
    assert second.process.wait(PATIENCE) == 1
    assert f"cannot listen on 127.0.0.1:{first.port}" in second.errors


def test_the_embedded_server_is_shared_and_outlives_a_worker(start_service: StartService, tmp_path: Path) -> None:
    data = tmp_path / "data"
    service = start_service("--workers", "2", BRIDGELOG_DATABASE_URL="", BRIDGELOG_DATA_DIR=str(data)).wait_ready()
    token = service.output.partition("shown this once:")[2].split()[0]
    assert service.output.count(token) == 2, "shown, and in the example"
    for worker in service.workers:
        killed(service, worker)
    assert service.get(f"{API}/models", token)[0] == 200
    # Its keeper lost, and PostgreSQL with it, a worker starts another one.
    os.kill(int((data / "keeper.lock").read_text()), signal.SIGKILL)
    until(lambda: service.get(f"{API}/models", token)[0] != 200, "the database is away")
    until(lambda: service.get(f"{API}/models", token)[0] == 200, "and back")
    service.process.kill()
    until(lambda: not (data / "pgdata" / "postmaster.pid").exists(), "it ends with its last user")


_LOGGING = """
import io, json, sys
import structlog
from service import logs, settings

class Recorder(io.StringIO):
    def write(self, text):
        writes.append(text)
        return len(text)

writes = []
sys.stderr = Recorder()
logs.configure(settings.read())
structlog.get_logger().info("first", reason="with a\\nbreak")
structlog.get_logger().info("second")
print(json.dumps(writes))
"""


def test_an_event_is_one_write_so_that_those_of_workers_do_not_mix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOGGING], env=environment(), capture_output=True, text=True, check=True
    )
    writes = json.loads(done.stdout)
    assert [json.loads(line)["event"] for line in writes] == ["first", "second"]
    assert [line.count("\n") for line in writes] == [1, 1]


# -- the supervisor by itself ----------------------------------------------------------------------------------------

_PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import structlog
from service.workers import Supervisor

structlog.configure(
    processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
    logger_factory=structlog.PrintLoggerFactory(sys.stderr),
)
signal.alarm(60)  # whatever happens, the test does not wait for ever

def work(slot, begin):
    BODY

Supervisor(
    work, count=1, patience=0.3, timeout=TIMEOUT,
    ready=lambda: print("ready", flush=True), ended=lambda slot: print("ended", slot, flush=True),
).run()
print("over", flush=True)
"""


@pytest.fixture
def supervise() -> Supervise:
    def start(body: str, *, timeout: float = 0) -> subprocess.Popen[str]:
        program = _PROGRAM.replace("BODY", body).replace("TIMEOUT", str(timeout))
        return subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_a_worker_that_cannot_start_is_tried_less_and_less_often(
    supervise: Supervise,
) -> None:
    with supervise("raise LookupError") as parent:
        assert parent.stderr
        assert parent.stdout
        delays: list[float] = []
        while len(delays) < 4:
            event = json.loads(parent.stderr.readline())
            assert event["event"] in {"a worker failed", "a worker ended; starting another"}
            if "seconds" in event:
                delays.append(event["seconds"])
        assert delays == [0.1, 0.2, 0.4, 0.8]
        parent.terminate()
        assert "ready" not in parent.stdout.read()
        assert parent.wait(PATIENCE) == 0


def test_a_worker_that_does_not_stop_is_killed(supervise: Supervise) -> None:
    with supervise("signal.signal(signal.SIGTERM, signal.SIG_IGN); begin(); time.sleep(60)") as parent:
        assert parent.stderr
        assert parent.stdout
        assert parent.stdout.readline() == "ready\n"
        parent.terminate()
        assert parent.stdout.read() == "ended 0\nover\n"
        assert "a worker did not stop in time; killing it" in parent.stderr.read()


def test_a_worker_that_hangs_is_not_left_behind_either(supervise: Supervise) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN); begin(); print(os.getpid(), flush=True); time.sleep(60)"
    with supervise(body) as parent:
        assert parent.stdout
        worker = int("".join(parent.stdout.readline() for _ in range(2)).replace("ready", ""))
        assert alive(worker)
        parent.kill()
        until(lambda: not alive(worker), "the worker ends")


_BEATS = "[(begin(), time.sleep(0.5)) for _ in range(BEATS)]"


def test_a_worker_whose_loop_hangs_says_where_and_is_replaced(supervise: Supervise) -> None:
    hangs = _BEATS.replace("BEATS", "3") + "; time.sleep(60)"
    with supervise(hangs, timeout=2) as parent:
        assert parent.stdout
        assert parent.stderr
        assert [parent.stdout.readline(), parent.stdout.readline()] == ["ready\n", "ended 0\n"]
        parent.terminate()
        told = parent.stderr.read()
        assert parent.wait(PATIENCE) == 0
    events = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    first, second, third = [event for event in events if event["event"].startswith("a worker")][:3]
    assert (first["event"], first["worker"]) == ("a worker serves", 0)
    assert (second["event"], second["pid"], second["seconds"]) == (
        "a worker does not answer; killing it",
        first["pid"],
        2,
    )
    assert (third["event"], third["exit"]) == ("a worker ended; starting another", -signal.SIGKILL)
    assert "in work" in told, "where it hangs"


@pytest.mark.parametrize(("timeout", "beats"), [(2, 12), (0, 1)], ids=["it beats", "nobody watches"])
def test_a_worker_that_works_for_long_is_left_alone(supervise: Supervise, timeout: float, beats: int) -> None:
    body = _BEATS.replace("BEATS", str(beats)) + ("" if timeout else "; time.sleep(5)") + "; print('done', flush=True)"
    with supervise(body, timeout=timeout) as parent:
        assert parent.stdout
        assert [parent.stdout.readline(), parent.stdout.readline()] == ["ready\n", "done\n"]
        parent.terminate()


def test_who_was_stopped_with_its_parent_is_not_to_blame(supervise: Supervise) -> None:
    with supervise(_BEATS.replace("BEATS", "200"), timeout=2) as parent:
        assert parent.stdout
        assert parent.stderr
        assert parent.stdout.readline() == "ready\n"
        worker = json.loads(parent.stderr.readline())["pid"]
        for process in (parent.pid, worker):
            os.kill(process, signal.SIGSTOP)
        time.sleep(4)
        for process in (parent.pid, worker):
            os.kill(process, signal.SIGCONT)
        time.sleep(1.5)
        assert alive(worker)
        parent.terminate()
        assert "does not answer" not in parent.stderr.read()


def test_a_served_worker_that_is_stopped_is_replaced(start_service: StartService) -> None:
    service = start_service("--workers", "2", BRIDGELOG_WORKER_TIMEOUT="2").wait_ready()
    stopped, other = service.workers
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: len(service.logged("a worker serves")) == 3, "another worker")
    [told] = service.logged("a worker does not answer; killing it")
    assert told["pid"] == stopped
    assert other in service.workers
    assert stopped not in service.workers
    assert service.get("/healthz")[0] == 200
