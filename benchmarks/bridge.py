"""The bridge beside the stand-in provider asked directly, and beside a plain pass-through that records nothing.

Each figure is measured for the three in turn, round after round; medians over the rounds are told, and differences and
ratios within a round. All of it shares the machine: the load, the stand-in, PostgreSQL, and who is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import asyncpg
import click

from benchmarks.bridge_parts import EVENTS
from benchmarks.datasets import Dataset, beside, opened
from benchmarks.memory import resident
from benchmarks.sections import Bar, Section, table
from benchmarks.tools import API, ROOT, Measurement, median, ratio, run, summary
from service import migrations
from service.store import tokens, users

CLIENTS = 16
STREAMS = 200
_PROBES = 100
_SHORT = "standin-short"
_SLOW = "standin-slow-100"
_LONG = "standin-long-100+slow-50"
_SCRIPT = Path(__file__).parent / "scripts" / "ask.lua"
WHO = {"direct": "the stand-in, directly", "plain": "plain pass-through", "bridge": "the bridge"}


@dataclass(frozen=True)
class Way:
    """Somebody who can be asked: where, with which key, and as which process."""

    address: str
    key: str
    pid: int


@dataclass
class Round:
    """What one round found out about one of the three."""

    first_whole: Measurement
    first_stream: Measurement
    event: Measurement
    one: Measurement
    many: Measurement
    slow: Measurement
    long: Measurement


async def measure(sets: Sequence[Dataset], *, rounds: int, seconds: float) -> Section:
    """On a database of its own, which is empty at first."""
    started = datetime.now(UTC)
    url, token = await _database(sets[0].url)
    found: dict[str, list[Round]] = {who: [] for who in WHO}
    with _everybody(url, token) as (ways, clocks):
        for way in (*ways.values(), *clocks.values()):
            await _first_byte(way, _SHORT, stream=True, probes=1)  # connections, caches, and the first look at a token
        for _ in range(rounds):
            for who, way in ways.items():
                found[who].append(
                    Round(
                        first_whole=await _first_byte(way, _SHORT, stream=False),
                        first_stream=await _first_byte(way, _SHORT, stream=True),
                        event=await _events(clocks[who]),
                        one=await _rate(way, _SHORT, clients=1, seconds=seconds),
                        many=await _rate(way, _SHORT, clients=CLIENTS, seconds=seconds),
                        slow=await _rate(way, _SLOW, clients=CLIENTS, seconds=seconds),
                        long=await _streams_rate(way, seconds=seconds),
                    )
                )
            click.echo(".", nl=False, err=True)
        crowd = {who: await _crowd(way) for who, way in ways.items()}
    recorded = await _recorded(url)
    return _section(found, crowd, recorded=recorded, rounds=rounds, seconds=seconds, started=started)


# -- who is measured -------------------------------------------------------------------------------------------------


async def _database(url: str) -> tuple[str, str]:
    admin = await asyncpg.connect(beside(url, "postgres"))
    try:
        await admin.execute("DROP DATABASE IF EXISTS bench_bridge WITH (FORCE)")
        await admin.execute("CREATE DATABASE bench_bridge")
    finally:
        await admin.close()
    own = beside(url, "bench_bridge")
    await asyncio.to_thread(migrations.apply, own)
    now, user_id = datetime.now(UTC), uuid.uuid4()
    async with opened(own) as database, database.transaction() as connection:
        await users.add(connection, user_id=user_id, username="bench", name="", roles=["owner"], created_at=now)
        return own, await tokens.create(connection, user_id=user_id, created_at=now)


@contextmanager
def _everybody(url: str, token: str) -> Iterator[tuple[dict[str, Way], dict[str, Way]]]:
    """The three in front of the stand-in, and in front of the provider that tells the time."""
    with ExitStack() as stack:
        port = _free_port()
        standin = stack.enter_context(_process("-m", "tests.standin", "--port", str(port), ready=port))
        clock = stack.enter_context(_process("-m", "benchmarks.bridge_parts", "clock"))
        ways = []
        for provider in (Way(f"http://127.0.0.1:{port}/anthropic", "any", standin.pid), clock):
            plain = stack.enter_context(_process("-m", "benchmarks.bridge_parts", "pass_on", provider.address))
            bridge = stack.enter_context(_bridge(url, provider.address))
            ways.append(
                {
                    "direct": provider,
                    "plain": plain,
                    "bridge": Way(f"{bridge.address}{API}/anthropic", token, bridge.pid),
                }
            )
        yield ways[0], ways[1]


@contextmanager
def _process(*arguments: str, ready: int | None = None, environment: dict[str, str] | None = None) -> Iterator[Way]:
    """A program of Python, once it listens: on the port that it prints, or on that which it was told."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        port = ready or int(line)
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Way(f"http://127.0.0.1:{port}", "any", process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _bridge(url: str, provider: str) -> AbstractContextManager[Way]:
    port = _free_port()
    return _process(
        "-m",
        "service",
        "serve",
        ready=port,
        environment={
            "BRIDGELOG_DATABASE_URL": url,
            "BRIDGELOG_DATA_DIR": str(ROOT / ".data" / "bench" / f"bridge-{port}"),
            "BRIDGELOG_PORT": str(port),
            "BRIDGELOG_LOG_LEVEL": "warning",
            "BRIDGELOG_ANTHROPIC_KEY": "any",
            "BRIDGELOG_ANTHROPIC_BASE_URL": provider,
            "BRIDGELOG_DRAIN_SECONDS": "0",
        },
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- what is measured ------------------------------------------------------------------------------------------------


def _body(model: str, *, stream: bool) -> bytes:
    """A question as a coding agent asks it: its instructions and tools are most of it."""
    tools = [
        {"name": f"tool_{number}", "description": "What it does. " * 30, "input_schema": {"type": "object"}}
        for number in range(12)
    ]
    asked = {"model": model, "max_tokens": 1000, "system": "You are a coding agent. " * 200, "tools": tools}
    messages = [{"role": "user", "content": "Move the feature flags to a backend of their own."}]
    return json.dumps(asked | {"messages": messages, "stream": stream}).encode()


def _headers(way: Way) -> dict[str, str]:
    return {"X-Api-Key": way.key, "Content-Type": "application/json", "User-Agent": "claude-cli/2.0"}


async def _first_byte(way: Way, model: str, *, stream: bool, probes: int = _PROBES) -> Measurement:
    """From the request until the first byte of the answer's body, one after the other."""
    body, samples = _body(model, stream=stream), []
    async with aiohttp.ClientSession(headers=_headers(way)) as session:
        for _ in range(probes):
            began = time.perf_counter()
            async with session.post(f"{way.address}/v1/messages", data=body) as response:
                await response.content.readany()
                samples.append(1000 * (time.perf_counter() - began))
                assert response.status == 200, await response.text()
                await response.read()
    return summary(samples)


async def _events(way: Way) -> Measurement:
    """From the sending of an event until it is here, over the events of a stream."""
    samples = []
    async with (
        aiohttp.ClientSession(headers=_headers(way)) as session,
        session.post(f"{way.address}/v1/messages", data=_body("m", stream=True)) as response,
    ):
        async for line in response.content:
            if line.startswith(b'data: {"type":"content_block_delta"'):
                sent = int(json.loads(line[6:])["delta"]["text"])
                samples.append((time.monotonic_ns() - sent) / 1e6)
    assert len(samples) == EVENTS
    return summary(samples)


async def _rate(way: Way, model: str, *, clients: int, seconds: float) -> Measurement:
    """Whole answers, as many as so many clients get."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "60s", "-s", str(_SCRIPT)]
    environment = os.environ | {"BODY": _body(model, stream=False).decode(), "KEY": way.key}
    output = await asyncio.to_thread(run, [*command, f"{way.address}/v1/messages"], env=environment)
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"wrk met errors at {way.address}:\n{output}")
    return Measurement(float(output.partition("Requests/sec:")[2].split()[0]), 0, 0)


async def _streams_rate(way: Way, *, seconds: float) -> Measurement:
    """Streams of a hundred events without pauses, as many as so many clients get."""
    body, done = _body("standin-long-100", stream=True), 0
    until = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal done
        while time.perf_counter() < until:
            async with session.post(f"{way.address}/v1/messages", data=body) as response:
                assert (await response.read()).endswith(b'{"type": "message_stop"}\n\n')
            done += 1

    began = time.perf_counter()
    async with aiohttp.ClientSession(headers=_headers(way)) as session:
        await asyncio.gather(*[client(session) for _ in range(CLIENTS)])
    return Measurement(done / (time.perf_counter() - began), 0, 0)


@dataclass(frozen=True)
class Crowd:
    """Many streams at once: the seconds that all took, and the memory of the process before and at most, in MiB."""

    seconds: float
    before: float
    most: float


async def _crowd(way: Way) -> Crowd:
    """Streams that all run at once, of a hundred events with pauses; every one must come to its end."""
    body, before, most = _body(_LONG, stream=True), resident(way.pid), 0.0

    async def client(session: aiohttp.ClientSession) -> None:
        async with session.post(f"{way.address}/v1/messages", data=body) as response:
            assert response.status == 200
            assert (await response.read()).endswith(b'{"type": "message_stop"}\n\n')

    began = time.perf_counter()
    async with aiohttp.ClientSession(headers=_headers(way), connector=aiohttp.TCPConnector(limit=0)) as session:
        streams = asyncio.gather(*[client(session) for _ in range(STREAMS)])
        while not streams.done():
            most = max(most, resident(way.pid))
            await asyncio.sleep(0.1)
        await streams
    return Crowd(time.perf_counter() - began, before, most)


async def _recorded(url: str) -> int:
    raw = await asyncpg.connect(url)
    try:
        return int(await raw.fetchval("SELECT count(*) FROM aibridge_interceptions WHERE ended_at IS NOT NULL"))
    finally:
        await raw.close()


# -- the report ------------------------------------------------------------------------------------------------------


def _section(
    found: dict[str, list[Round]],
    crowd: dict[str, Crowd],
    *,
    recorded: int,
    rounds: int,
    seconds: float,
    started: datetime,
) -> Section:
    def runs(who: str, what: str) -> list[Measurement]:
        return [getattr(one, what) for one in found[who]]

    def added(what: str) -> float:
        """Milliseconds that the bridge takes longer than the plain pass-through, at p50, in the same round."""
        return statistics.median(
            ours.p50 - plain.p50 for ours, plain in zip(runs("bridge", what), runs("plain", what), strict=True)
        )

    times = [
        [
            WHO[who],
            *(f"{median(runs(who, what), 'p50'):.2f}" for what in ("first_whole", "first_stream", "event")),
            f"{median(runs(who, 'first_stream'), 'p99'):.2f}",
            f"{median(runs(who, 'event'), 'p99'):.2f}",
        ]
        for who in WHO
    ]
    rates = [
        [
            WHO[who],
            *(
                f"{median(runs(who, what), 'rate'):,.0f} ({ratio(runs(who, what), runs('plain', what)):.2f})"
                for what in ("one", "many", "slow", "long")
            ),
        ]
        for who in WHO
    ]
    memory = [[WHO[who], f"{one.seconds:.1f}", f"{one.before:.0f}", f"{one.most:.0f}"] for who, one in crowd.items()]
    whole, streamed = added("first_whole"), added("first_stream")
    rate, slow = (ratio(runs("bridge", what), runs("plain", what)) for what in ("many", "slow"))
    return Section(
        name="bridge",
        title="The bridge",
        measured=f"{started:%Y-%m-%d %H:%M} UTC; {rounds} rounds of {seconds:g} s for each rate, {_PROBES} requests for "
        "each time",
        lines=[
            (
                f"A question of {len(_body(_SHORT, stream=True)) / 1000:.0f} kB to the stand-in for Anthropic's Messages, "
                "over HTTP on one machine of a few cores, which the load, the stand-in, PostgreSQL and whoever is measured "
                "share. The plain pass-through is aiohttp that sends requests on and answers back, and records nothing; "
                "the bridge writes each interception to PostgreSQL, with fsync, before it asks: "
                f"{recorded:,} of them here."
            ),
            "",
            *table(
                [
                    "ms",
                    "first byte, whole",
                    "first byte, stream",
                    "an event",
                    "first byte, stream, p99",
                    "an event, p99",
                ],
                times,
            ),
            "",
            (
                "An event: from its sending by the provider, one every 5 ms, until it is with the client. The rates, by "
                "the second, and in brackets as a part of the plain pass-through's:"
            ),
            "",
            *table(
                [
                    "requests/s",
                    "whole, 1 client",
                    f"whole, {CLIENTS} clients",
                    "the same, 100 ms until the answer",
                    f"streams of 100 events, {CLIENTS} clients",
                ],
                rates,
            ),
            "",
            f"{STREAMS} streams at once, each of 100 events 50 ms apart:",
            "",
            *table(["", "seconds for all", "memory before, MiB", "at most, MiB"], memory),
        ],
        bars=[
            Bar(
                "the bridge: first byte of a stream within 3 ms of the plain pass-through, p50",
                f"{streamed:+.2f} ms",
                streamed <= 3,
            ),
            Bar(
                "the bridge: first byte of a whole answer within 3 ms of the plain pass-through, p50",
                f"{whole:+.2f} ms",
                whole <= 3,
            ),
            Bar(
                f"the bridge: at least 0.7 of its rate, whole answers that are there at once, {CLIENTS} clients",
                f"{rate:.2f}",
                rate >= 0.7,
            ),
            Bar(
                f"the bridge: likewise, answers that take 100 ms, {CLIENTS} clients",
                f"{slow:.2f}",
                slow >= 0.7,
            ),
        ],
    )
