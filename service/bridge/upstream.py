"""The providers as the bridge calls them: which headers go and come back, what is tried again, and when it is not tried."""

from __future__ import annotations

import asyncio
import email.utils
import io
import math
import random
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import structlog
from multidict import CIMultiDict, CIMultiDictProxy
from prometheus_client import Counter, Gauge
from yarl import URL

from service import errors
from service.bridge.providers import Instance
from service.bridge.request_log import Exchange
from service.settings import Settings

log = structlog.get_logger("bridgelog.upstream")

_TRIED_AGAIN: Final = frozenset({408, 409, 429})
_BREAKING: Final = frozenset({429, 503, 504, 529})
_LONGEST_WAIT: Final = 60.0
_FIRST_WAIT: Final = 0.5
_MOST_BREAKERS: Final = 1_000
_CLOSED, _HALF_OPEN, _OPEN = range(3)  # as the metric has them
# A client that gets more than this as one piece of bytes sends it as such, in one go on the event loop.
_IN_ONE_PIECE: Final = 512 * 1024
# What is read of an answer that is not handed on, and for how long: then its connection can be used again.
_DISCARDED_BYTES: Final = 64 * 1024
_DISCARDING_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 30.0

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# What signs somebody in, here or there.
CREDENTIALS: Final = frozenset(
    {"authorization", "x-api-key", "api-key", "x-auth-token", "x-goog-api-key", "coder-session-token", "cookie"}
)
# content-encoding: the body has been unpacked by then. expect: it has been met.
_NOT_SENT: Final = (
    _HOP_BY_HOP
    | CREDENTIALS
    | {"host", "content-length", "content-encoding", "accept-encoding", "expect"}
    # The proxies before this service add them: whose address a request comes from is nobody's business up there.
    | {"forwarded", "via", "x-real-ip"}
    # A provider that heeds one would take a GET for what this service passes no route for.
    | {"x-http-method", "x-http-method-override", "x-method-override"}
)
_NOT_SENT_PREFIXES: Final = ("x-ai-bridge-", "x-forwarded-")
# What a provider says of its own address, and would be taken for this one's. And location: clients would follow it, with
# the token that they hold.
_NOT_RETURNED: Final = _HOP_BY_HOP | {
    "alt-svc",
    "clear-site-data",
    "content-length",
    "content-location",
    "location",
    "nel",
    "refresh",
    "report-to",
    "reporting-endpoints",
    "server",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "x-accel-buffering",
    "x-accel-redirect",
    "x-bridgelog-request-id",
    "x-sendfile",
}


def headers_to_send(headers: CIMultiDictProxy[str], *, credentials: Mapping[str, str], token: str) -> CIMultiDict[str]:
    """What goes to the provider of a client's headers, with those that carry the key; none in which its token stands."""
    dropped = _NOT_SENT | _named_in_connection(headers)
    sent: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        lower = name.lower()
        # Bytes that are no UTF-8 come as surrogates, and cannot be sent.
        if lower in dropped or lower.startswith(_NOT_SENT_PREFIXES) or token in value:
            continue
        if _is_sendable(value):
            sent.add(name, value)
    sent.update(credentials)
    # Without it a server may choose, and what an answer used could not be read of some encodings.
    sent["Accept-Encoding"] = "identity"
    return sent


def headers_to_return(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """What comes back to the client of a provider's headers."""
    dropped = _NOT_RETURNED | _named_in_connection(headers)
    returned: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        lower = name.lower()
        # Whom the provider lets read its answers is not who may read this service's.
        if lower not in dropped and not lower.startswith("access-control-") and _is_sendable(value):
            returned.add(name, value)
    return returned


def _named_in_connection(headers: CIMultiDictProxy[str]) -> set[str]:
    return {
        name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",") if name.strip()
    }


def _is_sendable(value: str) -> bool:
    if value.isascii() and value.isprintable():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return not _CONTROL.search(value)


@dataclass(slots=True)
class Call:
    """One request to a provider."""

    instance: Instance
    method: str
    url: URL
    headers: CIMultiDict[str]
    body: bytes
    endpoint: str  # the path below the base URL as the route has it, `{tail}` standing for what is open in it
    model: str
    counts: bool  # for the circuit breaker


@dataclass(slots=True)
class Answer:
    """What the provider answered; its body is still to come. Close it, whatever happens."""

    response: aiohttp.ClientResponse
    exchange: Exchange | None
    attempts: int

    def close(self) -> None:
        """Done with it: a connection whose answer was read to its end can be used again, any other is closed."""
        if self.response.content.at_eof():
            self.response.release()
        else:
            self.response.close()
        if self.exchange:
            self.exchange.close()


class Breaker:
    """Leaves alone what has failed so many times in a row: for so many seconds, and until one request of it is answered.

    Counted for each instance, endpoint and model; of too many, the longest unused are forgotten. With `failures` 0 it does
    nothing. `label` is the model as the gauge tells it, for clients may write there what they like; of several that it
    tells alike it tells the worst.
    """

    def __init__(
        self,
        *,
        failures: int,
        seconds: float,
        gauge: Gauge,
        label: Callable[[str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures = failures
        self._seconds = seconds
        self._gauge = gauge
        self._label = label
        self._clock = clock
        self._known: OrderedDict[tuple[str, str, str], _Circuit] = OrderedDict()

    def check(self, call: Call) -> None:
        """Raises BreakerOpen where such calls are left alone; one is let through when their time is over."""
        circuit = self._circuit(call)
        if circuit is None or circuit.open_until is None:
            return
        now = self._clock()
        if now < circuit.open_until:
            raise errors.BreakerOpen(retry_after=max(1, math.ceil(circuit.open_until - now)))
        # The one that is let through has as long to tell how it went; after that, another one is.
        circuit.open_until = now + self._seconds
        circuit.state = _HALF_OPEN
        self._tell(circuit.labels)

    def is_open(self, call: Call) -> bool:
        """Whether a request of that kind would not be let through."""
        circuit = self._circuit(call)
        return circuit is not None and circuit.open_until is not None

    def _circuit(self, call: Call) -> _Circuit | None:
        return self._known.get(_kind(call)) if call.counts else None

    def note(self, call: Call, status: int) -> None:
        """An answer came."""
        if not self._failures or not call.counts:
            return
        kind = _kind(call)
        if status not in _BREAKING:
            if circuit := self._known.pop(kind, None):
                self._tell(circuit.labels)
            return
        if kind not in self._known:
            self._known[kind] = _Circuit((call.instance.name, call.endpoint, self._label(call.model)))
        circuit = self._known[kind]
        self._known.move_to_end(kind)
        circuit.failures += 1
        if circuit.failures >= self._failures:
            if circuit.open_until is None:
                log.warning("a circuit breaker opened", provider=kind[0], endpoint=kind[1], status=status)
            circuit.open_until = self._clock() + self._seconds
            circuit.state = _OPEN
        self._tell(circuit.labels)
        if len(self._known) > _MOST_BREAKERS:
            self._tell(self._known.popitem(last=False)[1].labels)

    def _tell(self, labels: tuple[str, str, str]) -> None:
        states = [circuit.state for circuit in self._known.values() if circuit.labels == labels]
        # With several workers a series that is removed stays in their files, with what it had last.
        self._gauge.labels(*labels).set(max(states, default=_CLOSED))
        if not states:
            self._gauge.remove(*labels)


@dataclass(slots=True)
class _Circuit:
    labels: tuple[str, str, str]
    failures: int = 0
    open_until: float | None = None  # by the breaker's clock; None while it is closed
    state: int = _CLOSED


def _kind(call: Call) -> tuple[str, str, str]:
    return call.instance.name, call.endpoint, call.model


class _Connector(aiohttp.TCPConnector):
    """Keeps connections, but none on which something came that nobody had asked for: the next to ask would get it."""

    async def _get(self, *args: Any, **kw: Any) -> Any:
        while True:
            connection = await super()._get(*args, **kw)
            if connection is None or connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()


class Upstream:
    """Calls providers, over connections that it keeps."""

    def __init__(
        self,
        settings: Settings,
        *,
        breaker: Breaker,
        retried: Counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.breaker = breaker
        self._retried = retried
        self._retries = settings.upstream_retries
        self._sleep = sleep
        self._jitter = jitter
        self._session = aiohttp.ClientSession(  # noqa: TID251  # the bridge's calls are those that the service makes
            connector=_Connector(limit=0, keepalive_timeout=_IDLE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=settings.upstream_connect_timeout, sock_read=settings.upstream_timeout
            ),
            # The client gets the bytes that came.
            auto_decompress=False,
            skip_auto_headers=("Accept", "Content-Type", "User-Agent"),
            max_line_size=64 * 1024,
            max_field_size=64 * 1024,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def ask(self, call: Call, *, log_exchange: Callable[[int], Exchange | None]) -> Answer:
        """The provider's answer, as soon as its head is there; tried again where that may help.

        `log_exchange` is asked, for each attempt, where it is to be logged. Raises ProviderUnavailable.
        """
        attempt = 0
        while True:
            attempt += 1
            exchange = log_exchange(attempt)
            try:
                response = await self._send(call, exchange)
            except (aiohttp.ClientError, OSError, TimeoutError) as problem:
                if exchange:
                    exchange.fail(type(problem).__name__)
                    exchange.close()
                # Who has said nothing for so long would not be quicker a second time.
                if isinstance(problem, aiohttp.SocketTimeoutError) or attempt > self._retries:
                    log.warning(
                        "a provider gave no answer",
                        provider=call.instance.name,
                        reason=type(problem).__name__,
                        attempts=attempt,
                    )
                    late = isinstance(problem, aiohttp.SocketTimeoutError)
                    raise errors.ProviderUnavailable(
                        "It took too long." if late else "It could not be reached, or closed the connection."
                    ) from problem
                wait = self._backoff(attempt)
            except BaseException:
                if exchange:
                    exchange.close()
                raise
            else:
                answer = Answer(response, exchange, attempt)
                try:
                    self.breaker.note(call, response.status)
                    patience = self._wait(response, attempt)
                    if patience is None or self.breaker.is_open(call):
                        return answer
                    wait = patience
                    await _discard(answer)
                except BaseException:
                    answer.close()
                    raise
                answer.close()
            self._retried.labels(call.instance.name).inc()
            await self._sleep(wait)

    async def _send(self, call: Call, exchange: Exchange | None) -> aiohttp.ClientResponse:
        if exchange:
            exchange.ask(call.method, call.url, call.headers, call.body)
        bare = call.method in {"GET", "HEAD", "OPTIONS"} and not call.body
        response = await self._session.request(
            call.method,
            call.url,
            headers=call.headers,
            data=None if bare else call.body if len(call.body) <= _IN_ONE_PIECE else io.BytesIO(call.body),
            allow_redirects=False,
        )
        if exchange:
            exchange.answer(response.status, response.reason or "", response.headers)
        if response.status < 200:
            # Nobody has asked for another protocol, and no client could tell where such an answer ends.
            response.close()
            message = "the provider gave no final answer"
            raise aiohttp.ClientError(message)
        return response

    def _wait(self, response: aiohttp.ClientResponse, attempt: int) -> float | None:
        """The seconds until it is tried again; None where it is not."""
        status = response.status
        if attempt > self._retries or not (status in _TRIED_AGAIN or status >= 500):
            return None
        told = _retry_after(response.headers)
        # For one that asks for more patience the client does not wait here: what it answers next tells the client.
        return told if told is not None and told <= _LONGEST_WAIT else self._backoff(attempt)

    def _backoff(self, attempt: int) -> float:
        wait = _FIRST_WAIT * 2 ** (attempt - 1)
        return self._jitter(0.75 * wait, wait)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a provider asks to wait, from now on; None where it says nothing that can be understood."""
    for name, unit in (("Retry-After-Ms", 0.001), ("Retry-After", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if 0 <= seconds < math.inf:
            return seconds
    try:
        moment = email.utils.parsedate_to_datetime(headers.get("Retry-After", ""))
        return max(0.0, moment.timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


async def _discard(answer: Answer) -> None:
    """Read the rest of an answer that is not handed on, if it is short and comes soon."""
    left = _DISCARDED_BYTES
    with suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(_DISCARDING_SECONDS):
            while left > 0 and (chunk := await answer.response.content.readany()):
                left -= len(chunk)
                if answer.exchange:
                    answer.exchange.add(chunk)
