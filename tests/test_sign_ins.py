"""Wrong tokens: slowed by address, cheap for the database, and never at the cost of who holds a valid one."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from conftest import API, Client, MakeClient, Person
from rows import Sql

from service import auth, db, errors
from service.auth import Authenticator
from service.context import AUTHENTICATOR
from service.limits import Rate
from service.store import tokens

AddPerson = Callable[..., Awaitable[Person]]
ADDRESS = ip_address("192.0.2.1")
PATIENCE = 20.0


def guess(number: int) -> str:
    """A token that nobody has."""
    return f"{number:010d}-{number:022d}"


def wrong(person: Person) -> str:
    """A token with the id of somebody's, and another secret."""
    return f"{person.token.partition('-')[0]}-{'0' * 22}"


class Naps:
    """What the service would sleep, noted instead."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


async def strict(make_client: MakeClient, **changes: Any) -> tuple[Client, Naps]:
    """Five wrong tokens a minute; the clock stands still."""
    client = await make_client(**({"failed_sign_ins": 5} | changes))
    authenticator = client.app[AUTHENTICATOR]
    naps = authenticator._sleep = Naps()
    if authenticator._failures:
        authenticator._failures._clock = lambda: 0
    return client, naps


async def status(client: Client, token: str | None, **headers: str) -> int:
    given = {"Coder-Session-Token": token} if token else {}
    answer = await client.get(f"{API}/models", headers=given | {k.replace("_", "-"): v for k, v in headers.items()})
    if answer.status == 429:
        body = await answer.json()
        assert body["message"] == "Too many sign-ins have failed from this address. Please try again shortly."
        assert int(answer.headers["Retry-After"]) > 0
    return answer.status


# -- by address ------------------------------------------------------------------------------------------------------


async def test_too_many_wrong_tokens_are_slowed_and_refused(make_client: MakeClient, owner: Person) -> None:
    client, naps = await strict(make_client)
    assert [await status(client, guess(number)) for number in range(4)] == [401] * 4
    assert await status(client, wrong(owner)) == 401
    assert naps.taken == []
    assert [await status(client, token) for token in (guess(6), guess(0), wrong(owner))] == [429] * 3
    assert naps.taken == [1.0] * 3
    metrics = await (await client.get("/metrics")).text()
    assert 'bridgelog_refusals_total{refusal="TooManyFailedSignIns"} 3.0' in metrics


async def test_a_valid_token_signs_in_from_an_address_that_guesses(
    make_client: MakeClient, owner: Person, member: Person
) -> None:
    client, naps = await strict(make_client)
    assert await status(client, owner.token) == 200
    statuses = Counter([await status(client, guess(number)) for number in range(20)])
    assert statuses == {401: 5, 429: 15}
    naps.taken.clear()
    assert await status(client, owner.token) == 200
    assert naps.taken == [], "it has been seen valid, and is not slowed"
    assert await status(client, member.token) == 200, "it is new here: slowed, and let in"
    assert await status(client, member.token) == 200
    assert naps.taken == [1.0]


async def test_a_token_that_was_valid_is_a_guess_once_it_is_revoked(
    make_client: MakeClient, member: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, naps = await strict(make_client)
    assert await status(client, member.token) == 200
    monkeypatch.setattr(auth, "_TRUSTED_SECONDS", 0.0)
    sql("DELETE FROM api_keys")
    assert [await status(client, member.token) for _ in range(7)] == [401] * 5 + [429] * 2
    assert naps.taken == [1.0] * 2


async def test_what_is_no_guess_is_not_counted(
    make_client: MakeClient, member: Person, add_person: AddPerson, sql: Sql
) -> None:
    client, naps = await strict(make_client)
    expired = await add_person("expired")
    sql("UPDATE users SET status = 'suspended' WHERE id = %s", member.id)
    sql("UPDATE api_keys SET expires_at = now() WHERE user_id = %s", expired.id)
    for token in (None, "nonsense", "x" * 5_000, member.token, expired.token):
        assert [await status(client, token) for _ in range(10)] == [401] * 10
    assert naps.taken == []


async def test_it_can_be_turned_off(make_client: MakeClient) -> None:
    client, naps = await strict(make_client, failed_sign_ins=0)
    assert [await status(client, guess(number)) for number in range(30)] == [401] * 30
    assert naps.taken == []


@pytest.mark.parametrize("trusted", [True, False], ids=["behind a proxy that is known", "behind one that is not"])
async def test_the_address_is_the_clients_where_the_proxy_is_known(make_client: MakeClient, *, trusted: bool) -> None:
    proxies = (ip_network("127.0.0.0/8"), ip_network("::1")) if trusted else ()
    client, _ = await strict(make_client, trusted_proxies=proxies)
    flood = [await status(client, guess(number), X_Forwarded_For="203.0.113.1") for number in range(8)]
    assert flood == [401] * 5 + [429] * 3
    # What a client puts in front of its own address changes nothing: the proxy appends to it.
    for forged in ("198.51.100.9", "198.51.100.10, 127.0.0.1"):
        assert await status(client, guess(9), X_Forwarded_For=f"{forged}, 203.0.113.1") == 429
    other = await status(client, guess(10), X_Forwarded_For="203.0.113.2")
    assert other == (401 if trusted else 429)


async def test_waiting_guesses_are_bounded(
    database: db.Database, owner: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_MOST_DELAYED_OF_ONE", 3)
    go_on = asyncio.Event()

    async def sleep(_: float) -> None:
        await go_on.wait()

    authenticator = Authenticator(
        database,
        member_read="own",
        failures=Rate(per_second=1 / 60, burst=1, clock=lambda: 0),
        most_delayed=4,
        sleep=sleep,
    )
    elsewhere, third_place = ip_address("192.0.2.2"), ip_address("192.0.2.3")
    for number, address in enumerate((ADDRESS, elsewhere, third_place)):
        with pytest.raises(errors.SignedOut):
            await authenticator.authenticate(guess(100 + number), address=address)
    waiting = [asyncio.create_task(authenticator.authenticate(guess(n), address=ADDRESS)) for n in (1, 2)]
    waiting.append(asyncio.create_task(authenticator.authenticate(owner.token, address=ADDRESS)))
    await asyncio.sleep(0)
    with pytest.raises(errors.TooManyFailedSignIns) as refused:
        await authenticator.authenticate(guess(4), address=ADDRESS)
    assert refused.value.retry_after == 1
    # Nobody elsewhere waits for them, unless there are too many in all.
    with pytest.raises(errors.SignedOut):
        await authenticator.authenticate(guess(5), address=ip_address("192.0.2.4"))
    waiting.append(asyncio.create_task(authenticator.authenticate(guess(6), address=elsewhere)))
    await asyncio.sleep(0)
    with pytest.raises(errors.TooManyFailedSignIns):
        await authenticator.authenticate(guess(7), address=third_place)
    go_on.set()
    first, second, third, fourth = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(first, errors.TooManyFailedSignIns)
    assert isinstance(second, errors.TooManyFailedSignIns)
    assert isinstance(third, auth.Caller)
    assert third.user_id == owner.id
    assert isinstance(fourth, errors.TooManyFailedSignIns)
    assert not authenticator._delayed


# -- what it costs the database --------------------------------------------------------------------------------------


class LookUps:
    """Counts the statements that look tokens up; each waits until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[set[str]] = []
        self.running = self.most_running = 0
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self._find = tokens.find
        monkeypatch.setattr(tokens, "find", self)

    async def __call__(self, connection: db.Connection, *, token_ids: Collection[str]) -> dict[str, tokens.Token]:
        self.asked.append(set(token_ids))
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        self.begun.set()
        try:
            await self.go_on.wait()
            return await self._find(connection, token_ids=token_ids)
        finally:
            self.running -= 1


async def test_a_flood_of_guesses_costs_one_statement_at_a_time(
    database: db.Database, owner: Person, member: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups = LookUps(monkeypatch)
    authenticator = Authenticator(database, member_read="own")
    first = asyncio.create_task(authenticator.authenticate(guess(0)))
    async with asyncio.timeout(PATIENCE):
        await look_ups.begun.wait()
        flood = [asyncio.create_task(authenticator.authenticate(guess(number))) for number in range(1, 1_000)]
        valid = [asyncio.create_task(authenticator.authenticate(who.token)) for who in [owner, member] * 20]
        await asyncio.sleep(0)
        look_ups.go_on.set()
        refused = await asyncio.gather(first, *flood, return_exceptions=True)
        callers = await asyncio.gather(*valid)
    assert {type(problem) for problem in refused} == {errors.SignedOut}
    assert [caller.user_id for caller in callers] == [owner.id, member.id] * 20
    assert [len(asked) for asked in look_ups.asked] == [1, 1_001]
    assert look_ups.most_running == 1


async def test_the_same_unknown_token_again_is_not_looked_up(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups = LookUps(monkeypatch)
    look_ups.go_on.set()
    monkeypatch.setattr(auth, "_TRUSTED_SECONDS", 3_600.0)
    authenticator = Authenticator(database, member_read="own")
    for _ in range(50):
        with pytest.raises(errors.SignedOut):
            await authenticator.authenticate(guess(1))
    assert len(look_ups.asked) == 1


async def test_what_is_remembered_is_bounded(database: db.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_MOST_REMEMBERED", 20)
    authenticator = Authenticator(database, member_read="own")
    for number in range(100):
        with pytest.raises(errors.SignedOut):
            await authenticator.authenticate(guess(number))
        assert len(authenticator._unknown) <= 20


async def test_the_oldest_is_forgotten_and_nobody_else(
    database: db.Database, owner: Person, member: Person, add_person: AddPerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_MOST_REMEMBERED", 2)
    monkeypatch.setattr(auth, "_TRUSTED_SECONDS", 0.0)  # each time it is looked up
    naps = Naps()
    failures = Rate(per_second=1, burst=1, clock=lambda: 0)
    authenticator = Authenticator(database, member_read="own", failures=failures, sleep=naps)
    third = await add_person("third")
    for person in (member, owner, member, third):  # the owner is the one who was not here for longest
        assert (await authenticator.authenticate(person.token, address=ADDRESS)).user_id == person.id
    with pytest.raises(errors.SignedOut):
        await authenticator.authenticate(guess(0), address=ADDRESS)
    for person in (member, third):
        await authenticator.authenticate(person.token, address=ADDRESS)
    assert naps.taken == [], "both are known"
    await authenticator.authenticate(owner.token, address=ADDRESS)
    assert naps.taken == [1.0], "the oldest is not any more"


async def test_the_oldest_unknown_token_is_forgotten_and_no_other(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups = LookUps(monkeypatch)
    look_ups.go_on.set()
    monkeypatch.setattr(auth, "_TRUSTED_SECONDS", 3_600.0)
    monkeypatch.setattr(auth, "_MOST_REMEMBERED", 2)
    authenticator = Authenticator(database, member_read="own")
    for number in (0, 1, 2, 1, 2, 0):
        with pytest.raises(errors.SignedOut):
            await authenticator.authenticate(guess(number))
    assert len(look_ups.asked) == 4


async def test_a_failed_look_up_is_told_to_all_who_waited_for_it_and_to_nobody_else(
    database: db.Database, owner: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups = LookUps(monkeypatch)
    authenticator = Authenticator(database, member_read="own")
    waiting = [asyncio.create_task(authenticator.authenticate(token)) for token in (owner.token, guess(1), guess(2))]
    async with asyncio.timeout(PATIENCE):
        await look_ups.begun.wait()
        # One of them goes away; it is the one for whom the look-up began.
        waiting[0].cancel()
        with monkeypatch.context() as broken:

            async def fail(*_: object, **__: object) -> None:
                raise errors.DatabaseUnavailable(retry_after=2)

            broken.setattr(look_ups, "_find", fail)
            look_ups.go_on.set()
            gone, *rest = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(gone, asyncio.CancelledError)
        assert [type(problem) for problem in rest] == [errors.DatabaseUnavailable] * 2
        assert (await authenticator.authenticate(owner.token)).user_id == owner.id


async def test_use_is_noted_once_for_all_who_came_together(
    database: db.Database, owner: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql("UPDATE api_keys SET last_used = '2020-01-01Z'")
    noted = []
    touch = tokens.touch

    async def count(*arguments: Any, **named: Any) -> None:
        noted.append(named["token_id"])
        await touch(*arguments, **named)

    monkeypatch.setattr(tokens, "touch", count)
    authenticator = Authenticator(database, member_read="own")
    await asyncio.gather(*(authenticator.authenticate(owner.token) for _ in range(30)))
    assert noted == [owner.token.partition("-")[0]]


# -- tokens themselves -----------------------------------------------------------------------------------------------


def test_every_letter_and_digit_is_as_likely() -> None:
    drawn = Counter("".join(tokens.random_text(32) for _ in range(20_000)))
    assert len(drawn) == 62
    expected = drawn.total() / 62
    # With 61 degrees of freedom a fair draw is above this once in 10^12 runs; leaving out one letter is far above.
    assert sum((count - expected) ** 2 / expected for count in drawn.values()) < 175


def test_tokens_come_from_the_secure_source_and_hold_130_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 62**tokens.SECRET_LENGTH > 2**130
    random.seed(1)
    first = tokens.random_text(22)
    random.seed(1)
    assert tokens.random_text(22) != first
    monkeypatch.setattr(secrets, "choice", lambda alphabet: alphabet[0])
    assert tokens.random_text(22) == "0" * 22
