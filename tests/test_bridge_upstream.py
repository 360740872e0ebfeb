"""The upstream client: what is tried again and when, what is left alone; and where providers come from."""

from __future__ import annotations

import asyncio
import email.utils
import functools
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from bridging import API, CHAT, KEY, MESSAGES, STREAM_HEAD, WAYS, Bridged, Way, chunk, raw_provider
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry, Counter, Gauge
from standin.app import EXCHANGES
from yarl import URL

from service import errors
from service.bridge.providers import Instance, configured
from service.bridge.upstream import Breaker, Call, Upstream
from service.settings import InvalidSettings, Settings

MakeBridge = Callable[..., Awaitable[Bridged]]
protocols = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)


def call_to(url: str) -> Call:
    instance = Instance("anthropic", "anthropic", url, KEY, allow_byok=False)
    return Call(instance, "POST", URL(f"{url}/v1/messages"), CIMultiDict(), b"{}", "/v1/messages", "m", counts=True)


async def waits(settings: Settings, *answers: bytes, retries: int = 2) -> tuple[list[float], int]:
    """The seconds that are waited while a provider gives these answers, one after the other, and the last status."""
    left, slept = list(answers), []

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 " + left.pop(0) + b"\r\nContent-Length: 0\r\n\r\n")

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    registry = CollectorRegistry()
    retried = Counter("retried", "", ("provider",), registry=registry)
    gauge = Gauge("state", "", ("p", "e", "m"), registry=registry)
    breaker = Breaker(failures=0, seconds=1, gauge=gauge, label=str)
    upstream = Upstream(
        replace(settings, upstream_retries=retries),
        breaker=breaker,
        retried=retried,
        sleep=sleep,
        jitter=lambda _, b: b,
    )
    async with raw_provider(answer) as url:
        got = await upstream.ask(call_to(url), log_exchange=lambda _: None)
        got.close()
        await upstream.close()
    assert left == []
    assert registry.get_sample_value("retried_total", {"provider": "anthropic"}) == (len(slept) or None)
    return slept, got.response.status


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_what_may_pass_is_tried_twice_more_with_doubling_pauses(settings: Settings, status: int) -> None:
    assert await waits(settings, *[b"%d No" % status] * 3) == ([0.5, 1.0], status)
    assert await waits(settings, b"%d No" % status, b"200 OK") == ([0.5], 200)
    assert await waits(settings, b"%d No" % status, retries=0) == ([], status)


@pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 403, 404, 413, 422])
async def test_what_will_not_pass_is_not_tried_again(settings: Settings, status: int) -> None:
    assert await waits(settings, b"%d Final" % status) == ([], status)


async def test_a_provider_says_when_to_come_again(settings: Settings) -> None:
    async def after(value: str) -> list[float]:
        return (await waits(settings, f"429 No\r\nRetry-After{value}".encode(), b"200 OK"))[0]

    assert await after(": 7") == [7.0]
    assert await after(": 0") == [0.0]
    assert await after(": 60") == [60.0]
    assert await after(": 1.5") == [1.5]
    assert await after("-Ms: 250\r\nRetry-After: 9") == [0.25]
    [seconds] = await after(": " + email.utils.formatdate(time.time() + 30, usegmt=True))
    assert 25 < seconds <= 30
    assert await after(": " + email.utils.formatdate(time.time() - 30, usegmt=True)) == [0.0]
    for nonsense in (": soon", ": -1", ": nan", ": inf", ":"):
        assert await after(nonsense) == [0.5]
    # Whoever asks for more patience is asked as one who says nothing; then the client hears of it.
    assert await after(": 61") == [0.5]
    assert await waits(settings, *[b"503 No\r\nRetry-After: 3600"] * 3) == ([0.5, 1.0], 503)


@protocols
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_answer_after_failures_is_one_interception(
    bridge: Bridged, provider: TestServer, way: Way, *, stream: bool
) -> None:
    async with bridge.ask(way, "standin-flaky-2+after-0", stream=stream) as response:
        assert response.status == 200
        await response.read()
    assert [exchange.status for exchange in provider.app[EXCHANGES]] == [503, 503, 200]
    assert len({exchange.body for exchange in provider.app[EXCHANGES]}) == 1
    [row] = await bridge.recorded()
    assert (row["metadata"]["status"], row["metadata"]["attempts"]) == ("completed", 3)
    assert len(row["token_usages"]) == 1
    kind = "anthropic" if way is MESSAGES else "openai"
    assert f'bridgelog_upstream_retries_total{{provider="{kind}"}} 2.0' in await bridge.metrics()


@protocols
async def test_what_finally_fails_is_the_providers_own_answer(bridge: Bridged, provider: TestServer, way: Way) -> None:
    async with bridge.ask(way, "standin-error-429+after-0") as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "0")
        assert (await response.json())["error"]["message"] == "The stand-in was told to fail."
    assert len(provider.app[EXCHANGES]) == 3
    [row] = await bridge.recorded()
    assert row["metadata"]["provider_status"] == 429
    assert row["metadata"]["error_type"] == "rate_limit_error"


@protocols
async def test_a_provider_that_gives_no_answer_is_a_502_in_its_shape(
    make_bridge: MakeBridge, provider: TestServer, way: Way
) -> None:
    bridge = await make_bridge(provider, upstream_retries=1)
    async with bridge.ask(way, "standin-reset") as response:
        assert response.status == 502
        told = await response.json()
    assert told["error"]["type"] in {"api_error", "server_error"}
    assert told["error"]["message"].startswith(errors.ProviderUnavailable().message)
    assert len(provider.app[EXCHANGES]) == 2
    [row] = await bridge.recorded()
    assert (row["metadata"]["status"], row["metadata"]["error_type"]) == ("failed", "provider_unavailable")


async def test_a_provider_that_is_not_there_is_a_502(make_bridge: MakeBridge) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        bridge = await make_bridge(url, upstream_retries=1)
        async with bridge.ask(MESSAGES, "m") as response:
            assert response.status == 502
            assert url not in await response.text()
    assert (await bridge.recorded())[0]["metadata"]["error_type"] == "provider_unavailable"


@pytest.mark.parametrize("answer", [b"\x00\x01garbage\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/9.9 200 OK", b""])
async def test_what_is_no_http_is_a_502(make_bridge: MakeBridge, answer: bytes) -> None:
    async def say(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with raw_provider(say) as url:
        bridge = await make_bridge(url, upstream_retries=0)
        async with bridge.ask(MESSAGES, "m") as response:
            assert response.status == 502
    [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "failed"


async def test_a_provider_that_says_nothing_is_given_up_and_not_asked_again(
    make_bridge: MakeBridge, provider: TestServer
) -> None:
    bridge = await make_bridge(provider, upstream_timeout=0.2)
    async with bridge.ask(MESSAGES, "standin-stall") as response:
        assert response.status == 502
        assert "too long" in (await response.json())["error"]["message"]
    assert len(provider.app[EXCHANGES]) == 1
    await bridge.recorded()


async def test_a_stream_that_falls_silent_for_good_breaks_off(make_bridge: MakeBridge) -> None:
    gone = asyncio.Event()

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(b"data: {}\n\n"))
        with suppress(ConnectionError, TimeoutError):
            await asyncio.sleep(5)
        gone.set()

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url, upstream_timeout=0.3, bridge_keep_alive=0.05)
        response = await bridge.ask(MESSAGES, "m", stream=True)
        got = b""
        with suppress(Exception):
            while piece := await response.content.readany():
                got += piece
        response.close()
        assert got.startswith(b"data: {}\n\nevent: ping")
        [row] = await bridge.recorded()
    assert (row["metadata"]["status"], row["metadata"]["error_type"]) == ("failed", "provider_silent")


@pytest.mark.parametrize("status", [b"101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c", b"099 Odd"])
async def test_a_status_that_ends_no_request_is_a_502(make_bridge: MakeBridge, status: bytes) -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url, upstream_retries=0)
        async with bridge.ask(MESSAGES, "m") as response:
            assert response.status == 502
        [row] = await bridge.recorded()
    assert row["metadata"]["error_type"] == "provider_unavailable"


async def test_what_comes_unasked_on_an_idle_connection_is_nobodys_answer(make_bridge: MakeBridge) -> None:
    answered = []

    def whole(body: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        answered.append(writer)
        writer.write(whole(b"{}"))

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url)
        async with bridge.ask(MESSAGES, "m") as response:
            assert await response.read() == b"{}"
        answered[0].write(whole(b'{"of": "another"}'))
        await asyncio.sleep(0.2)
        for _ in range(2):
            async with bridge.ask(MESSAGES, "m") as response:
                assert await response.read() == b"{}"
    assert len({*answered}) == 2


# -- the circuit breaker ----------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_through_later() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("state", "", ("provider", "endpoint", "model"), registry=registry)
    clock = Clock()
    breaker = Breaker(failures=3, seconds=10, gauge=gauge, label=str, clock=clock)
    call = call_to("http://x")

    def state() -> float | None:
        names = {"provider": "anthropic", "endpoint": "/v1/messages", "model": "m"}
        return registry.get_sample_value("state", names)

    def refused() -> int | None:
        try:
            breaker.check(call)
        except errors.BreakerOpen as problem:
            return problem.retry_after
        return None

    for status in (429, 503, 500, 504, 529):  # 500 is none of those that count
        breaker.note(call, status)
    assert (state(), refused()) == (0, None)
    breaker.note(call, 429)
    assert (state(), refused()) == (2, 10)
    breaker.check(replace(call, model="another"))
    clock.now = 9.5
    assert refused() == 1
    clock.now = 10
    assert (refused(), state()) == (None, 1)  # one is let through …
    assert refused() == 10  # … and no other while it is under way
    breaker.note(call, 503)
    assert (refused(), state()) == (10, 2)
    clock.now = 20
    assert refused() is None
    breaker.note(call, 200)
    assert (refused(), refused(), state()) == (None, None, None)


def test_a_breaker_forgets_what_it_has_not_seen_for_long() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("s", "", ("p", "e", "m"), registry=registry)
    breaker = Breaker(failures=2, seconds=10, gauge=gauge, label=str)
    for number in range(1_500):
        breaker.note(replace(call_to("http://x"), model=f"m{number}"), 429)
    [family] = registry.collect()
    assert len(family.samples) == 1_000
    breaker.note(replace(call_to("http://x"), model="m0"), 429)
    breaker.check(replace(call_to("http://x"), model="m0"))  # it was forgotten, so this was the first
    breaker.note(replace(call_to("http://x"), model="m1499"), 429)
    with pytest.raises(errors.BreakerOpen):
        breaker.check(replace(call_to("http://x"), model="m1499"))


def test_models_that_nobody_has_answered_for_are_told_together_by_the_worst() -> None:
    states: dict[str, float] = {}

    class Files(Gauge):
        """As the files of several workers: what is removed stays there, with what was set last."""

        def labels(self, *labelvalues: object, **_: object) -> Any:
            return SimpleNamespace(set=functools.partial(states.__setitem__, str(labelvalues[2])))

        def remove(self, *labelvalues: object) -> None:
            assert labelvalues[2] in states

    clock = Clock()
    label = {"known": "known"}
    breaker = Breaker(
        failures=2,
        seconds=10,
        gauge=Files("s", "", ("p", "e", "m"), registry=None),
        label=lambda model: label.get(model, "other"),
        clock=clock,
    )

    def note(model: str, *statuses: int) -> None:
        for status in statuses:
            breaker.note(replace(call_to("http://x"), model=model), status)

    note("known", 429)
    note("x" * 1_000, 429, 429)
    note("y", 429)
    assert states == {"known": 0, "other": 2}
    note("y", 429)
    clock.now = 10
    breaker.check(replace(call_to("http://x"), model="y"))
    assert states["other"] == 2  # the first is open still
    label["y"] = "y"
    note("y", 200)
    assert states == {"known": 0, "other": 2}
    note("x" * 1_000, 200)
    assert states == {"known": 0, "other": 0}


async def test_what_is_left_alone_is_a_503_and_not_recorded(make_bridge: MakeBridge, provider: TestServer) -> None:
    bridge = await make_bridge(provider, breaker_failures=2, breaker_seconds=20.0)
    async with bridge.ask(CHAT, "standin-error-503+after-0") as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "0")
    # Open after two: the third attempt was not made.
    assert len(provider.app[EXCHANGES]) == 2
    async with bridge.ask(CHAT, "standin-error-503+after-0") as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "20")
        assert (await response.json())["error"]["message"] == errors.BreakerOpen().message
    assert len(provider.app[EXCHANGES]) == 2
    async with bridge.ask(CHAT, "m") as response:
        assert response.status == 200
    await bridge.recorded(2)
    assert 'bridgelog_circuit_breaker_state{endpoint="/chat/completions",model="other"' in (await bridge.metrics())


async def test_what_is_passed_through_has_a_breaker_for_each_endpoint(make_bridge: MakeBridge) -> None:
    asked = []

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        asked.append(request.split(b" ")[1].decode())
        status = b"200 OK" if asked[-1] == "/v1/models" else b"529 Overloaded\r\nRetry-After: 0"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url, breaker_failures=2, breaker_seconds=20.0, upstream_retries=0)
        for path, status in (("/one", 529), ("/two", 529), ("/three", 503), ("", 200)):
            async with bridge.session.get(
                f"{bridge.url}{API}/anthropic/v1/models{path}", headers={"X-Api-Key": bridge.token}
            ) as response:
                assert response.status == status
                assert (errors.BreakerOpen().message in await response.text()) == (status == 503)
        metrics = await bridge.metrics()
    assert asked == ["/v1/models/one", "/v1/models/two", "/v1/models"]
    labels = 'endpoint="/v1/models/{tail}",model="passthrough",provider="anthropic"'
    assert f"bridgelog_circuit_breaker_state{{{labels}}} 2.0" in metrics
    assert metrics.count("bridgelog_circuit_breaker_state{") == 1


async def test_a_callers_own_key_opens_no_breaker_for_others(make_bridge: MakeBridge) -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n")

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url, breaker_failures=1, upstream_retries=0, allow_byok=True)
        models = f"{bridge.url}/api/v2/aibridge/anthropic/v1/models"
        own = {"Authorization": "", "Coder-Session-Token": bridge.token, "X-Api-Key": "sk-own-key-without-quota"}
        for headers, statuses in ((own, (429, 429)), ({"X-Api-Key": bridge.token}, (429, 503)), (own, (429, 429))):
            for status in statuses:
                async with bridge.ask(MESSAGES, "m" * 5_000, headers=headers) as response:
                    assert response.status == status
                async with bridge.session.get(models, headers=headers) as response:
                    assert response.status == status


# -- instances --------------------------------------------------------------------------------------------------------


def test_keys_alone_make_the_two_instances(settings: Settings) -> None:
    assert configured(settings, reserved=()) == ()
    [one, two] = configured(replace(settings, anthropic_key="a", openai_key="b"), reserved=())
    assert (one.name, one.base_url, one.credentials) == ("anthropic", "https://api.anthropic.com", {"X-Api-Key": "a"})
    assert (two.name, two.base_url, two.credentials) == (
        "openai",
        "https://api.openai.com/v1",
        {"Authorization": "Bearer b"},
    )
    assert [one.key for one in configured(replace(settings, allow_byok=True), reserved=())] == [None, None]
    assert "sk-secret" not in repr(configured(replace(settings, openai_key="sk-secret"), reserved=()))


YAML = """
providers:
  - name: anthropic-eu
    type: anthropic
    base_url: https://eu.example/anthropic/
    key_file: key
  - type: openai
    base_url: http://localhost:11434/v1
    key_env: LOCAL_KEY
    allow_byok: true
"""
TOML = """
[[providers]]
name = "anthropic-eu"
type = "anthropic"
base_url = "https://eu.example/anthropic/"
key_file = "key"

[[providers]]
type = "openai"
base_url = "http://localhost:11434/v1"
key_env = "LOCAL_KEY"
allow_byok = true
"""


@pytest.mark.parametrize(("name", "content"), [("p.yaml", YAML), ("p.toml", TOML)])
def test_a_file_describes_instances(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "key").write_text("sk-from-file\n", encoding="utf-8")
    monkeypatch.setenv("LOCAL_KEY", "sk-from-env")
    assert configured(replace(settings, providers_file=tmp_path / name), reserved=()) == (
        Instance("anthropic-eu", "anthropic", "https://eu.example/anthropic", "sk-from-file", allow_byok=False),
        Instance("openai", "openai", "http://localhost:11434/v1", "sk-from-env", allow_byok=True),
    )


async def test_several_instances_of_a_type_are_served(
    make_bridge: MakeBridge, provider: TestServer, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("sk-of-the-second", encoding="utf-8")
    (tmp_path / "p.yaml").write_text(
        f"providers: [{{name: second-one, type: anthropic, base_url: '{provider.make_url('/anthropic')}', key_file: key}}]",
        encoding="utf-8",
    )
    bridge = await make_bridge(provider, providers_file=tmp_path / "p.yaml")
    async with bridge.ask(replace(MESSAGES, path="/second-one/v1/messages"), "m") as response:
        assert response.status == 200
    assert provider.app[EXCHANGES][0].headers["x-api-key"] == ["sk-of-the-second"]
    [row] = await bridge.recorded()
    assert (row["provider"], row["provider_name"]) == ("anthropic", "second-one")


SECRET = "sk-hunter2"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "providers: {}",
        f"providers: [{{type: openai, key: {SECRET}}}]",
        f"providers: [{{type: openai, {SECRET}: 1}}]",
        f"providers: [{{type: {SECRET}}}]",
        f"providers: [{{name: '{SECRET}_', type: openai}}]",
        "providers: [{name: models, type: openai}]",
        "providers: [{name: log-requests, type: openai}]",
        "providers: [{name: Upper, type: openai}]",
        "providers: [{name: a--b, type: openai}]",
        'providers: [{name: "a\\n", type: openai}]',
        "providers: [{type: openai}, {type: openai}]",
        "providers: [{type: openai, key_env: BRIDGELOG_TEST_UNSET}]",
        f"providers: [{{type: openai, key_file: {SECRET}}}]",
        f"providers: [{{type: openai, key_file: key, key_env: {SECRET}}}]",
        f"providers: [{{type: openai, base_url: 'https://{SECRET}@host/'}}]",
        f"providers: [{{type: openai, base_url: 'https://host/?key={SECRET}'}}]",
        f"providers: [{{type: openai, base_url: 'ftp://{SECRET}'}}]",
        f"providers: [{{type: openai, base_url: 'https://host:{SECRET}'}}]",
        f"providers: [{{type: openai, base_url: '{SECRET}'}}]",
        f"providers: ['{SECRET}']",
        f"providers: [{{{SECRET}",
        f"{SECRET}: \x00",
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_not_quoted(settings: Settings, tmp_path: Path, content: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(content, encoding="utf-8")
    (tmp_path / "key").write_text("two words", encoding="utf-8")
    with pytest.raises(InvalidSettings) as refused:
        configured(replace(settings, providers_file=file), reserved=("models", "log-requests"))
    assert SECRET not in str(refused.value)
    with pytest.raises(InvalidSettings):
        configured(replace(settings, providers_file=tmp_path / "missing"), reserved=())


def test_a_key_with_a_line_end_in_it_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\nX-Evil: 1", encoding="utf-8")
    (tmp_path / "p.toml").write_text('[[providers]]\ntype = "openai"\nkey_file = "key"\n', encoding="utf-8")
    with pytest.raises(InvalidSettings) as refused:
        configured(replace(settings, providers_file=tmp_path / "p.toml"), reserved=())
    assert SECRET not in str(refused.value)
