"""Limits for callers: exact by a clock that the tests hold, per token, bounded in memory, and told in the headers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from fractions import Fraction
from ipaddress import ip_address, ip_network

import pytest
from conftest import API, Client, MakeClient, Person, interception
from hypothesis import given
from hypothesis import strategies as st

from service.context import RATE, SLOTS
from service.limits import Rate, Slots
from service.peers import client_address, neighbourhood
from service.settings import InvalidSettings, read
from service.store import users

SECOND = 1_000_000_000
AddPerson = Callable[..., Awaitable[Person]]


class Clock:
    """Nanoseconds, which pass when the test says so."""

    def __init__(self) -> None:
        self.now = 12_345 * SECOND

    def __call__(self) -> int:
        return self.now


def fields(headers: object) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("RateLimit-")}  # type: ignore[attr-defined]


# -- the rate, by itself ---------------------------------------------------------------------------------------------


@given(
    interval=st.integers(1, 10 * SECOND),
    burst=st.integers(1, 20),
    pauses=st.lists(st.integers(0, 30 * SECOND), max_size=60),
)
def test_it_is_a_token_bucket_to_the_nanosecond(interval: int, burst: int, pauses: list[int]) -> None:
    clock = Clock()
    rate = Rate(per_second=SECOND / interval, burst=burst, clock=clock)
    interval = max(1, round(SECOND / (SECOND / interval)))
    tokens = Fraction(burst)
    for pause in pauses:
        clock.now += pause
        tokens = min(Fraction(burst), tokens + Fraction(pause, interval))
        assert rate.look("key").granted == (tokens >= 1), "looking takes nothing"
        standing = rate.take("key")
        assert standing.granted == (tokens >= 1)
        wait = 0 if tokens >= 1 else math.ceil((1 - tokens) * interval)
        tokens -= standing.granted
        assert standing.remaining == math.floor(tokens)
        assert standing.reset == math.ceil((burst - tokens) * interval / SECOND)
        assert standing.retry_after == math.ceil(Fraction(wait, SECOND))
        if wait:
            # Not a nanosecond earlier than told, and then it is.
            clock.now += wait - 1
            assert not rate.look("key").granted
            clock.now += 1
            assert rate.look("key").granted
            tokens += Fraction(wait, interval)


@given(
    moments=st.lists(st.integers(0, 20 * SECOND), max_size=80).map(sorted),
    interval=st.integers(SECOND // 20, 3 * SECOND),
    burst=st.integers(1, 10),
)
def test_no_stretch_of_time_gives_more_than_burst_and_rate(moments: list[int], interval: int, burst: int) -> None:
    clock = Clock()
    rate = Rate(per_second=SECOND / interval, burst=burst, clock=clock)
    began, granted = clock.now, []
    for moment in moments:
        clock.now = began + moment
        if rate.take("key").granted:
            granted.append(moment)
    interval = round(SECOND / (SECOND / interval))
    for first in range(len(granted)):
        for last in range(first, len(granted)):
            assert last - first + 1 <= burst + (granted[last] - granted[first]) // interval


def test_a_key_takes_nothing_from_another() -> None:
    rate = Rate(per_second=1, burst=2, clock=Clock())
    assert [rate.take(key).granted for key in "aaabab"] == [True, True, False, True, False, True]


def test_it_remembers_so_many_keys_and_forgets_who_came_longest_ago() -> None:
    rate = Rate(per_second=1, burst=1, clock=Clock(), most_keys=100)
    assert rate.take("often").granted
    for number in range(10_000):
        rate.take(number)
        assert not rate.take("often").granted, "who comes often is not forgotten"
    assert len(rate._full_at) == 100
    assert not rate.take(9_999).granted
    assert rate.take(0).granted


def test_slots() -> None:
    slots = Slots(2)
    with slots.hold("a") as first, slots.hold("a") as second, slots.hold("a") as third, slots.hold("b") as other:
        assert (first, second, third, other) == (True, True, False, True)
    with contextlib.suppress(RuntimeError), slots.hold("a") as held:
        assert held
        raise RuntimeError
    assert slots._held == {}, "nothing is kept of who has none"


# -- the rate, over HTTP ---------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def limited(make_client: MakeClient, clock: Clock) -> Client:
    """Two requests a second, three at once, on the test's clock."""
    client = await make_client(rate_limit=2.0, rate_burst=3)
    client.app[RATE]._clock = clock
    return client


async def test_more_than_the_rate_is_429(limited: Client, owner: Person, clock: Clock) -> None:
    for remaining in (2, 1, 0):
        answer = await limited.get(f"{API}/models", headers=owner.headers)
        assert answer.status == 200
        assert "Retry-After" not in answer.headers
        assert fields(answer.headers) == {
            "RateLimit-Limit": "3",
            "RateLimit-Policy": "3;w=2",
            "RateLimit-Remaining": str(remaining),
            "RateLimit-Reset": {2: "1", 1: "1", 0: "2"}[remaining],
        }
    for _ in range(3):
        answer = await limited.get(f"{API}/models", headers=owner.headers)
        assert answer.status == 429
        assert await answer.json() == {"message": "This token has made too many requests. Please try again shortly."}
        assert answer.headers["Retry-After"] == "1"
        assert answer.headers["RateLimit-Remaining"] == "0"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Request-Id"]
    clock.now += SECOND // 2
    assert (await limited.get(f"{API}/models", headers=owner.headers)).status == 200
    assert (await limited.get(f"{API}/models", headers=owner.headers)).status == 429
    metrics = await (await limited.get("/metrics")).text()
    assert 'bridgelog_refusals_total{refusal="RateExceeded"} 4.0' in metrics


async def test_the_rate_is_of_a_token_and_of_all_its_calls(
    limited: Client, owner: Person, member: Person, add_person: AddPerson
) -> None:
    statuses = [
        (await limited.get(f"{API}/nothing", headers=owner.headers)).status,
        (await limited.post(f"{API}/interceptions", json={}, headers=owner.headers)).status,
        (await limited.get(f"{API}/interceptions?limit=x", headers=owner.headers)).status,
        (await limited.get(f"{API}/interceptions", headers={"Authorization": f"bearer {owner.token}"})).status,
        (await limited.get(f"{API}/nothing", headers=owner.headers)).status,
    ]
    assert statuses == [404, 400, 400, 429, 429]
    assert (await limited.get(f"{API}/models", headers=member.headers)).status == 200


async def test_who_is_not_signed_in_and_operations_are_not_counted(limited: Client) -> None:
    for _ in range(6):
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
            answer = await limited.get(path)
            assert answer.status == 200
            assert fields(answer.headers) == {}
        answer = await limited.get(f"{API}/models")
        assert answer.status == 401
        assert fields(answer.headers) == {}


async def test_by_default_there_is_no_limit(client: Client, owner: Person) -> None:
    assert RATE not in client.app
    assert SLOTS not in client.app
    assert fields((await client.get(f"{API}/models", headers=owner.headers)).headers) == {}


@pytest.mark.parametrize(("per_second", "burst"), [(0.5, 1), (1.0, 1), (2.5, 3), (100.0, 100)])
async def test_the_burst_is_that_of_a_second_where_none_is_set(
    make_client: MakeClient, owner: Person, per_second: float, burst: int
) -> None:
    client = await make_client(rate_limit=per_second)
    answer = await client.get(f"{API}/models", headers=owner.headers)
    assert answer.headers["RateLimit-Limit"] == str(burst)


# -- how many at once ------------------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Semaphore, asyncio.Event]:
    """Searches by a username wait within their handler: released once for each that has begun, until the event."""
    begun, go_on = asyncio.Semaphore(0), asyncio.Event()
    find_id = users.find_id

    async def wait_and_find(*arguments: object, **named: object) -> object:
        begun.release()
        await go_on.wait()
        return await find_id(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(users, "find_id", wait_and_find)
    return begun, go_on


@pytest.mark.parametrize("guard", ["removed", "in place"])
async def test_no_more_than_so_many_at_once(
    make_client: MakeClient,
    owner: Person,
    member: Person,
    held: tuple[asyncio.Semaphore, asyncio.Event],
    guard: str,
) -> None:
    begun, go_on = held
    guarded = guard == "in place"
    client = await make_client(concurrency_limit=3, pool_size=10)
    slots = client.app[SLOTS]
    if not guarded:
        slots._most = 1_000
    search = f"{API}/interceptions?q=olivia"
    open_requests = [asyncio.create_task(client.get(search, headers=owner.headers)) for _ in range(8)]
    async with asyncio.timeout(20):
        for _ in range(3):
            await begun.acquire()
        if not guarded:
            for _ in range(5):
                await begun.acquire()
        # Another token has slots of its own, and operations need none.
        assert (await client.get(f"{API}/models", headers=member.headers)).status == 200
        assert (await client.get("/healthz")).status == 200
        while guarded and sum(task.done() for task in open_requests) < 5:
            await asyncio.wait(open_requests, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
        go_on.set()
        answers = await asyncio.gather(*open_requests)
    assert Counter(answer.status for answer in answers) == ({200: 3, 429: 5} if guarded else {200: 8})
    for answer in answers:
        if answer.status == 429:
            assert answer.headers["Retry-After"] == "1"
            assert (await answer.json())["message"] == (
                "This token has too many requests open at once. Please try again shortly."
            )
    assert slots._held == {}
    assert (await client.get(search, headers=owner.headers)).status == 200


async def test_a_streamed_import_is_one_request_and_holds_one_slot(
    make_client: MakeClient, owner: Person, clock: Clock
) -> None:
    client = await make_client(rate_limit=1.0, rate_burst=3, concurrency_limit=1)
    client.app[RATE]._clock = clock
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def lines() -> AsyncIterator[bytes]:
        for number in range(200):
            if number == 100:
                begun.set()
                await go_on.wait()
            yield json.dumps(interception()).encode() + b"\n"

    importing = asyncio.create_task(client.post(f"{API}/interceptions/import", data=lines(), headers=owner.headers))
    async with asyncio.timeout(20):
        await begun.wait()
        while not client.app[SLOTS]._held:  # noqa: ASYNC110  # the import has not reached the service yet
            await asyncio.sleep(0.01)
        answer = await client.get(f"{API}/models", headers=owner.headers)
        assert answer.status == 429
        assert "at once" in (await answer.json())["message"]
        go_on.set()
        report = await importing
    assert report.status == 200
    assert (await report.json())["imported"] == 200
    clock.now += 3 * SECOND
    answer = await client.get(f"{API}/models", headers=owner.headers)
    assert (answer.status, answer.headers["RateLimit-Remaining"]) == (200, "2")


async def test_a_slot_is_free_again_whatever_the_end(
    make_client: MakeClient, owner: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await make_client(concurrency_limit=1)

    async def crash(*_: object, **__: object) -> None:
        raise RuntimeError

    for path, status in (("nothing", 404), ("interceptions?limit=x", 400), ("log-requests", 200)):
        assert (await client.get(f"{API}/{path}", headers=owner.headers)).status == status
    with monkeypatch.context() as patched:
        patched.setattr(users, "find_id", crash)
        assert (await client.get(f"{API}/interceptions?q=olivia", headers=owner.headers)).status == 500
    assert (await client.get(f"{API}/interceptions?q=olivia", headers=owner.headers)).status == 200


# -- addresses -------------------------------------------------------------------------------------------------------

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("::1"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),  # nobody's word but a proxy's counts
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),  # what the client itself sent is not believed
        ("10.0.0.1", ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["198.51.100.7", "10.9.9.9"], "198.51.100.7"),  # two proxies
        ("10.0.0.1", ["198.51.100.7, 10.9.9.9,fd00::5"], "198.51.100.7"),
        ("10.0.0.1", ["10.1.1.1, 10.2.2.2"], "10.1.1.1"),  # none but proxies: the farthest
        ("10.0.0.1", ["198.51.100.7, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7, unknown, 10.2.2.2"], "10.2.2.2"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", [",,, ,"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("10.0.0.1", ["2001:DB8:0::7"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("::1", ["fe80::1%\x1b[2Jeth0"], "fe80::1"),
        ("fe80::1%eth0", [], "fe80::1"),
        ("10.0.0.1", ["198.51.100.7\x00"], "10.0.0.1"),
        ("10.0.0.1", ["١٩٨.51.100.7"], "10.0.0.1"),
        ("", ["198.51.100.7"], None),
        (None, ["198.51.100.7"], None),
    ],
)
def test_whose_address_it_is(peer: str | None, forwarded: list[str], expected: str | None) -> None:
    found = client_address(peer, forwarded, trusted=TRUSTED)
    assert (str(found) if found else None) == expected


@given(st.lists(st.text(max_size=40), max_size=5), st.sampled_from(["10.0.0.1", "192.0.2.1", "::1"]))
def test_no_header_breaks_it(forwarded: list[str], peer: str) -> None:
    found = client_address(peer, forwarded, trusted=TRUSTED)
    assert found is not None
    assert str(found).isprintable()
    if peer == "192.0.2.1":
        assert str(found) == peer


def test_ipv6_is_limited_by_the_network_of_a_host() -> None:
    def source(text: str) -> object:
        return neighbourhood(ip_address(text))

    assert source("2001:db8::1") == source("2001:db8::ffff:ffff:ffff:ffff")
    assert source("2001:db8::1") != source("2001:db8:0:1::1")
    assert source("192.0.2.1") != source("192.0.2.2")


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RATE_LIMIT", "-1"),
        ("RATE_LIMIT", "nan"),
        ("RATE_LIMIT", "inf"),
        ("RATE_LIMIT", "0.0001"),
        ("RATE_LIMIT", "1e-320"),
        ("RATE_LIMIT", "1e7"),
        ("RATE_LIMIT", ""),
        ("RATE_BURST", "-1"),
        ("RATE_BURST", "1.5"),
        ("CONCURRENCY_LIMIT", "-1"),
        ("FAILED_SIGN_INS", "-1"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),  # has host bits: 10.0.0.0/8 or 10.0.0.1?
        ("TRUSTED_PROXIES", "proxy.example"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "*"),
    ],
)
def test_what_cannot_be_a_limit_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"BRIDGELOG_{name}", value)
    with pytest.raises(InvalidSettings, match=f"BRIDGELOG_{name}"):
        read()


def test_proxies_are_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGELOG_TRUSTED_PROXIES", " 10.0.0.0/8, 192.0.2.1,::1 ")
    assert read().trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("192.0.2.1"), ip_network("::1"))
    monkeypatch.setenv("BRIDGELOG_TRUSTED_PROXIES", "")
    assert read().trusted_proxies == ()
