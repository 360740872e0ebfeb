"""Request logging: what is on disk while the switch is on, and what is not."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from bridging import API, CHAT, KEY, MESSAGES, OPENAI_KEY, STREAM_HEAD, Bridged, chunk, raw_provider
from conftest import Person
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from standin.app import EXCHANGES
from yarl import URL

from service.bridge.request_log import MASK, RequestLog, _Masker, file_name
from service.settings import Settings

MakeBridge = Callable[..., Awaitable[Bridged]]


async def turn(bridge: Bridged, owner: Person, *, on: bool) -> None:
    """Turn the switch, and wait until the bridge knows."""
    async with bridge.session.post(
        f"{bridge.url}{API}/log-requests", json={"enabled": on}, headers=owner.headers
    ) as response:
        assert response.status == 200
    while f"bridgelog_request_logging_enabled {float(on)}" not in await bridge.metrics():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def dumps(folder: Path, count: int) -> dict[str, bytes]:
    """That many files below the folder by their path in it, once they are there and nothing is added any more."""

    def found() -> dict[str, bytes]:
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    before: dict[str, bytes] = {}
    files = found()
    for _ in range(200):
        if len(files) >= count and files == before:
            break
        await asyncio.sleep(0.1)
        before, files = files, found()
    assert len(files) == count, files.keys()
    return files


async def test_an_exchange_is_dumped_while_the_switch_is_on(
    bridge: Bridged, provider: TestServer, owner: Person, tmp_path: Path
) -> None:
    folder = tmp_path / "dumps"
    async with bridge.ask(CHAT, "standin-tools", stream=True) as response:
        await response.read()
    assert not folder.exists()
    await turn(bridge, owner, on=True)
    headers = {"User-Agent": "codex/1", "OpenAI-Organization": "org"}
    async with bridge.ask(CHAT, "standin-tools", stream=True, headers=headers) as response:
        body = await response.read()
    identifier = (await bridge.recorded(2))[1]["id"]
    files = await dumps(folder, 2)
    sent, got = sorted(files)
    stamp, _, rest = Path(sent).name.partition("-")
    assert rest == f"{identifier}.req.txt"
    assert abs(int(stamp) / 1000 - time.time()) < 60
    assert (sent, got) == (
        f"openai/standin-tools/{stamp}-{rest}",
        f"openai/standin-tools/{stamp}-{identifier}.resp.txt",
    )
    exchange = provider.app[EXCHANGES][1]
    assert files[sent] == (
        b"POST /openai/v1/chat/completions HTTP/1.1\r\n"
        b"Accept: */*\r\nAccept-Encoding: identity\r\nAuthorization: ***\r\nContent-Length: %d\r\n"
        b"Content-Type: application/json\r\nHost: 127.0.0.1:%d\r\nOpenAI-Organization: org\r\nUser-Agent: codex/1\r\n\r\n"
        b"%s"
    ) % (len(exchange.body), provider.port or 0, exchange.body)
    head, _, streamed = files[got].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert streamed.endswith(b"data: [DONE]\n\n")
    assert len(streamed) > len(body)  # the usage chunk that the client does not see
    for path in [folder, *folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    await turn(bridge, owner, on=False)
    async with bridge.ask(CHAT, "standin-tools") as response:
        await response.read()
    await bridge.recorded(3)
    assert (await dumps(folder, 2)).keys() == files.keys()


async def test_each_attempt_has_a_dump_and_a_failed_one_its_error(
    make_bridge: MakeBridge, provider: TestServer, owner: Person, tmp_path: Path
) -> None:
    bridge = await make_bridge(provider, upstream_retries=1)
    await turn(bridge, owner, on=True)
    async with bridge.ask(MESSAGES, "standin-flaky-1+after-0") as response:
        assert response.status == 200
    async with bridge.ask(MESSAGES, "standin-reset") as response:
        assert response.status == 502
    first, second = await bridge.recorded(2)
    files = await dumps(tmp_path / "dumps", 8)
    names = sorted(Path(name).name.partition("-")[2] for name in files)
    ends = ("-2.req.txt", "-2.resp.txt", ".req.txt", ".resp.txt")
    errors = ("-2.error.txt", "-2.req.txt", ".error.txt", ".req.txt")
    assert names == sorted([first["id"] + end for end in ends] + [second["id"] + end for end in errors])


async def test_passed_through_calls_are_dumped_too(bridge: Bridged, owner: Person, tmp_path: Path) -> None:
    await turn(bridge, owner, on=True)
    async with bridge.session.get(
        f"{bridge.url}{API}/openai/v1/models?api_key=sk-in-the-url&limit=2", headers={"X-Api-Key": bridge.token}
    ) as response:
        assert response.status == 200
    files = await dumps(tmp_path / "dumps", 2)
    [request] = [content for name, content in files.items() if name.endswith(".req.txt")]
    assert request.startswith(b"GET /openai/v1/models?api_key=***&limit=2 HTTP/1.1\r\n")
    assert {Path(name).parent for name in files} == {Path("openai/passthrough")}


async def test_what_is_under_way_when_the_switch_goes_off_is_written_no_further(
    make_bridge: MakeBridge, owner: Person, tmp_path: Path
) -> None:
    goes_on = asyncio.Event()

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(b"data: before\n\n") + chunk(b": " + b"x" * 100 + b"\n\n"))
        await goes_on.wait()
        writer.write(chunk(b"data: after\n\n") + chunk(b""))

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url)
        await turn(bridge, owner, on=True)
        response = await bridge.ask(MESSAGES, "m", stream=True)
        await response.content.readany()
        before = await dumps(tmp_path / "dumps", 2)
        await turn(bridge, owner, on=False)
        goes_on.set()
        assert b"data: after" in await response.read()
        await bridge.recorded()
        files = await dumps(tmp_path / "dumps", 2)
    assert files == before
    [told] = [content for name, content in files.items() if name.endswith(".resp.txt")]
    assert b"data: before" in told
    assert b"after" not in told


async def test_a_dump_that_cannot_be_written_fails_no_request(
    make_bridge: MakeBridge, provider: TestServer, owner: Person, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file", encoding="utf-8")
    bridge = await make_bridge(provider, request_log_dir=blocked / "dumps")
    await turn(bridge, owner, on=True)
    for _ in range(3):
        async with bridge.ask(MESSAGES, "m", stream=True) as response:
            assert (response.status, (await response.read())[-2:]) == (200, b"\n\n")
    await bridge.recorded(3)
    told = capsys.readouterr()
    assert (told.out + told.err).count("a request could not be logged in full") == 1  # and not once for each


NAMES = st.text(max_size=150) | st.sampled_from(
    ["..", ".", "", "../../etc", "a/b", "a\\b", "/etc/passwd", "~", "C:\\x"]
)


@given(NAMES)
def test_no_model_leads_out_of_its_folder(model: str) -> None:
    name = file_name(model)
    assert name == Path(name).name
    assert name not in {"", ".", ".."}
    assert not name.startswith(".")
    assert name.isascii()
    assert name.isprintable()
    assert len(name) <= 120


@given(NAMES, NAMES)
def test_two_models_have_two_folders(one: str, other: str) -> None:
    assert (file_name(one) == file_name(other)) == (one == other)


async def test_a_hostile_model_is_dumped_where_it_belongs(bridge: Bridged, owner: Person, tmp_path: Path) -> None:
    await turn(bridge, owner, on=True)
    for model in ("../../../escaped", "/etc/escaped", "a/../../b", "..", "\x00", "x" * 5_000):
        async with bridge.ask(CHAT, model) as response:
            assert response.status == 200
    files = await dumps(tmp_path / "dumps", 12)
    assert {len(Path(name).parts) for name in files} == {3}
    assert {Path(name).parts[0] for name in files} == {"openai"}
    assert sorted(os.listdir(tmp_path)) == ["dumps", "spool"]  # noqa: PTH208


# -- masks ------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=60), st.binary(max_size=60), st.lists(st.integers(1, 9), max_size=60))
def test_a_secret_is_masked_wherever_the_pieces_end(before: bytes, after: bytes, sizes: list[int]) -> None:
    masker = _Masker([KEY, OPENAI_KEY])
    whole, told = before + KEY.encode() + after + OPENAI_KEY.encode(), b""
    for size in [*sizes, len(whole)]:
        told += masker.feed(whole[:size])
        whole = whole[size:]
    told += masker.rest()
    assert KEY.encode() not in told
    assert OPENAI_KEY.encode() not in told
    assert told == before.replace(KEY.encode(), MASK.encode()) + MASK.encode() + after + MASK.encode()


def log_in(settings: Settings, folder: Path, **changes: object) -> RequestLog:
    log = RequestLog(replace(settings, request_log_dir=folder, **changes))  # type: ignore[arg-type]  # any setting
    log.enabled = True
    return log


def dump(log: RequestLog, name: str, body: bytes, *, headers: dict[str, str] | None = None) -> None:
    exchange = log.exchange(instance="i", model="m", name=name, secrets=[KEY])
    assert exchange
    exchange.ask("POST", URL("http://x/y"), CIMultiDict(headers or {}), body)
    exchange.answer(200, "OK", CIMultiDictProxy(CIMultiDict(headers or {})))
    exchange.add(b"answer")
    exchange.close()


SECRET_NAMES = [
    "Authorization",
    "Proxy-Authorization",
    "X-Api-Key",
    "Api-Key",
    "X-Auth-Token",
    "Cookie",
    "Set-Cookie",
    "Www-Authenticate",
    "Proxy-Authenticate",
    "Coder-Session-Token",
    "X-Goog-Api-Key",
    "Ocp-Apim-Subscription-Key",
    "X-Amz-Security-Token",
    "X-Client-Secret",
    "authentication-info",
]
PLAIN_NAMES = ["Anthropic-Ratelimit-Tokens-Remaining", "X-Request-Id", "Retry-After", "Anthropic-Version"]


def test_headers_that_sign_in_are_masked(settings: Settings, tmp_path: Path) -> None:
    log = log_in(settings, tmp_path / "d")
    dump(log, "n", b"{}", headers=dict.fromkeys(SECRET_NAMES + PLAIN_NAMES, "value-of-it"))
    log.close()
    for file in (tmp_path / "d").rglob("*.txt"):
        lines = file.read_text(encoding="utf-8").splitlines()
        assert {f"{name}: ***" for name in SECRET_NAMES} <= {*lines}
        assert {f"{name}: value-of-it" for name in PLAIN_NAMES} <= {*lines}


@pytest.mark.parametrize(
    "name", ["key", "api_key", "api-key", "apikey", "access_token", "token", "X-Amz-Signature", "sig"]
)
def test_what_signs_in_in_a_url_is_masked(settings: Settings, tmp_path: Path, name: str) -> None:
    log = log_in(settings, tmp_path / "d")
    exchange = log.exchange(instance="i", model="m", name="n", secrets=[])
    assert exchange
    exchange.ask("GET", URL(f"http://x/y?a=1&{name}=hunter2&b=2"), CIMultiDict(), b"")
    exchange.close()
    log.close()
    [file] = (tmp_path / "d").rglob("*.txt")
    assert f"/y?a=1&{name}=***&b=2 " in file.read_text(encoding="utf-8")


# -- what is kept -----------------------------------------------------------------------------------------------------

MIB = 1024 * 1024


def total(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_budget_bounds_what_is_kept(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    log = log_in(settings, folder, request_log_limit=MIB)
    for number in range(100):
        dump(log, f"n{number:03}", b"x" * 40_000)
    log.close()
    assert 0.5 * MIB < total(folder) <= MIB
    kept = sorted(file.name.split("-")[1] for file in folder.rglob("*.req.txt"))
    assert kept[-1] == "n099.req.txt"
    assert "n000.req.txt" not in kept


def test_one_dump_is_cut_short_before_it_takes_all(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    log = log_in(settings, folder, request_log_limit=MIB)
    dump(log, "n", b"x" * 3 * MIB)
    log.close()
    [request] = folder.rglob("*.req.txt")
    assert request.stat().st_size == MIB // 10


async def test_what_is_old_goes_also_while_the_switch_is_off(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    log = log_in(settings, folder, request_log_age=timedelta(hours=1))
    dump(log, "old", b"x")
    log.close()
    for file in folder.rglob("*.txt"):
        os.utime(file, (time.time() - 3_601,) * 2)
    log = log_in(settings, folder, request_log_age=timedelta(hours=1))
    log.enabled = False
    tidying = asyncio.create_task(log.keep_tidy())
    while any(folder.rglob("*.txt")):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    tidying.cancel()
    await asyncio.to_thread(log.close)
    assert list(folder.iterdir()) == []  # the folders of models that nobody asks for go too


def test_what_is_no_dump_is_not_deleted(settings: Settings, tmp_path: Path) -> None:
    """A directory may hold other things, which are neither old nor too much."""
    folder = tmp_path / "d"
    others = [
        "kept.txt",
        "i/1-kept.req.txt",
        "i/m/kept.txt",
        "i/m/n/1-kept.req.txt",
        "postgres/pg_wal/000000010000000000000001",
    ]
    for other in others:
        file = folder / other
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * MIB)
        os.utime(file, (0, 0))
    (folder / "postgres" / "pg_notify").mkdir()
    log = log_in(settings, folder, request_log_limit=MIB)
    for number in range(40):
        dump(log, f"n{number:03}", b"x" * 40_000)
    log.close()
    kept = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    assert {*others} <= {*kept}
    assert len(kept) > len(others), "and they do not count"
    assert "n000" not in "".join(kept)
    assert (folder / "postgres" / "pg_notify").is_dir()
