"""A request from its head to its end: who calls, what is asked, the record, the provider, and the answer as it comes.

Whatever is raised before an answer has begun becomes an error in the provider's shape (`routes`, `middleware`).
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy
from yarl import URL

from service import errors, jsontext
from service.auth import Caller
from service.bodies import read_chunks
from service.bridge import agents, encodings, sse
from service.bridge.protocols import BadQuestion, Protocol, Question, Reader
from service.bridge.providers import Instance
from service.bridge.recorder import Beginning, Recorder, Running
from service.bridge.request_log import MASK, Exchange, RequestLog
from service.bridge.upstream import Answer, Call, Upstream, headers_to_return, headers_to_send
from service.context import ADDRESS, AUTHENTICATOR, CALLER, LEFT, REQUEST_ID, SHARE
from service.limits import Rate, Slots
from service.metrics import Metrics
from service.settings import Settings
from service.store import tokens

# A longer event, or whole answer, is relayed like any, but not read.
_MOST_EVENT: Final = 8 * 1024 * 1024
_MOST_WHOLE: Final = 32 * 1024 * 1024
# What takes longer to parse than others should wait.
_AT_ONCE: Final = 64 * 1024
_MOST_MODELS: Final = 200
_LONGEST_LABEL: Final = 128
_LONGEST_USER_AGENT: Final = 1_024
_LONGEST_DETAIL: Final = 256
# As nginx logs a client that went away before the answer.
_CLIENT_LEFT: Final = 499

_BEARER: Final = re.compile(r"bearer +(.+)", re.IGNORECASE)


@dataclass(slots=True)
class Bridge:
    """What the bridge of one process works with."""

    settings: Settings
    recorder: Recorder
    upstream: Upstream
    request_log: RequestLog
    metrics: Metrics
    models: Models = field(default_factory=lambda: Models(_MOST_MODELS))
    rate: Rate | None = None
    slots: Slots | None = None


BRIDGE = web.AppKey("bridge", Bridge)


class Models:
    """The names of models that metrics tell: those for which a provider had an answer, and not too many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def confirm(self, model: str) -> None:
        """A provider has such a model."""
        if len(self._known) < self._most and len(model) <= _LONGEST_LABEL:
            self._known.add(model)

    def label(self, model: str) -> str:
        """Its name, or `other`."""
        return model if model in self._known else "other"


class ClientLeft(Exception):
    """The client has gone, or takes nothing any more."""


class ProviderBroke(Exception):
    """The answer broke off."""


# -- the two kinds of request ----------------------------------------------------------------------------------------


async def serve_recorded(request: web.Request, *, instance: Instance, protocol: Protocol) -> web.StreamResponse:
    """Relay a request that is recorded."""
    bridge = request.app[BRIDGE]
    caller, credential = await _admit(request, bridge, instance)
    body = await _read_body(request, bridge)
    began = time.perf_counter()
    question = await _understood(protocol, body)
    bridge.upstream.breaker.check(instance, protocol.path, question.model)
    with _slot(bridge, instance):
        running = await bridge.recorder.start(_beginning(request, instance, caller, credential, question))
        served = _Served(bridge, instance, protocol, question, credential, running, agents.client_of(request.headers))
        if question.prompt is not None:
            bridge.metrics.prompts.labels(instance.name, bridge.models.label(question.model)).inc()
        call = _call(request, instance, credential, path=protocol.path, body=question.body, model=question.model)
        try:
            with bridge.metrics.interceptions_inflight.labels(instance.name, protocol.path).track_inprogress():
                return await _relayed(request, call, served)
        finally:
            served.end(time.perf_counter() - began)


async def serve_through(request: web.Request, *, instance: Instance, path: str, label: str) -> web.StreamResponse:
    """Relay a request that is not recorded; `path` is below the base URL, `{tail}` standing for the rest of it."""
    bridge = request.app[BRIDGE]
    _, credential = await _admit(request, bridge, instance)
    below = _below(path, request.match_info.get("tail"))
    body = await _read_body(request, bridge)
    call = _call(request, instance, credential, path=below, body=body, model="passthrough")
    name, secrets = str(uuid.uuid4()), credential.secrets
    answer = None
    status = "none"
    with _slot(bridge, instance):
        try:
            async with _while_client_stays(request):
                answer = await bridge.upstream.ask(call, log_exchange=_exchanges(bridge, call, name, secrets))
                request[SHARE].give_back()
                status = str(answer.response.status)
                return await _relay(request, answer, bridge, None)
        except ClientLeft:
            return web.Response(status=_CLIENT_LEFT)
        except ProviderBroke:
            return _cut(request, bridge)
        finally:
            if answer:
                answer.close()
            bridge.metrics.passthrough.labels(instance.name, label, status).inc()


async def _relayed(request: web.Request, call: Call, served: _Served) -> web.StreamResponse:
    bridge, answer = served.bridge, None
    try:
        async with _while_client_stays(request):
            log_exchange = _exchanges(bridge, call, str(served.running.id), served.credential.secrets)
            answer = await bridge.upstream.ask(call, log_exchange=log_exchange)
            request[SHARE].give_back()
            served.answered(answer)
            response = await _relay(request, answer, bridge, served)
            served.finished()
            return response
    except ClientLeft:
        served.left()
        return web.Response(status=_CLIENT_LEFT)
    except ProviderBroke as problem:
        served.failed(str(problem))
        return _cut(request, bridge)
    except errors.ProviderUnavailable:
        served.failed("provider_unavailable")
        raise
    except asyncio.CancelledError:
        served.failed("bridge_stopped")
        raise
    finally:
        if answer:
            answer.close()


# -- who calls, with whose key, and what ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Credential:
    """What goes to the provider to sign in, and of which kind it is."""

    kind: str  # centralized or byok
    headers: dict[str, str] = field(repr=False)
    hint: str
    secrets: tuple[str, ...] = field(repr=False)  # the key, and the caller's token: to be masked


def bridge_token(headers: CIMultiDictProxy[str]) -> str | None:
    """A client's token: the first of what clients send a provider's key in that has the form of one."""
    given = (headers.get("Coder-Session-Token", ""), _bearer(headers) or "", headers.get("X-Api-Key", ""))
    return next((text.strip() for text in given if tokens.split(text.strip())), None)


def _bearer(headers: CIMultiDictProxy[str]) -> str | None:
    bearer = _BEARER.fullmatch(headers.get("Authorization", "").strip())
    return bearer[1] if bearer else None


async def _admit(request: web.Request, bridge: Bridge, instance: Instance) -> tuple[Caller, Credential]:
    token = bridge_token(request.headers)
    if token is None:
        raise errors.SignedOut("No token came: send one as you would send the provider's key.")
    caller = await request.app[AUTHENTICATOR].authenticate_for_bridge(token, address=request[ADDRESS])
    request[CALLER] = caller
    if bridge.rate and not (standing := bridge.rate.take(caller.token_id)).granted:
        raise errors.RateExceeded(retry_after=standing.retry_after)
    return caller, _credential(request.headers, instance, token=token)


def _credential(headers: CIMultiDictProxy[str], instance: Instance, *, token: str) -> Credential:
    own = {}
    if headers.get("Coder-Session-Token", "").strip() == token:
        # A token of ours is nobody's provider key, wherever it stands.
        for name, key in (("Authorization", _bearer(headers)), ("X-Api-Key", headers.get("X-Api-Key"))):
            if key and not tokens.split(key.strip()):
                own[name] = headers[name]
    if own:
        if not instance.allow_byok:
            raise errors.OwnKeyForbidden
        keys = tuple(_bearer(headers) or value if name == "Authorization" else value for name, value in own.items())
        return Credential("byok", own, _hint(keys[0]), (*keys, token))
    if instance.key is None:
        raise errors.KeyMissing(
            "Send your own as the provider wants it, and your token in the header Coder-Session-Token."
            if instance.allow_byok
            else ""
        )
    return Credential("centralized", instance.credentials, _hint(instance.key), (instance.key, token))


def _hint(key: str) -> str:
    """Enough of a key to tell it from another."""
    shown = 4 if len(key) >= 24 else 2 if len(key) >= 12 else 0
    return f"{key[:shown]}…{key[len(key) - shown :]}"


async def _read_body(request: web.Request, bridge: Bridge) -> bytes:
    """The body, unpacked where it came compressed."""
    most = bridge.settings.bridge_max_body
    if request.content_length is not None and request.content_length > most:
        raise errors.BodyTooLarge(f"The limit is {most} bytes.")
    if not request.can_read_body:
        return b""
    collected = bytearray()
    try:
        async with asyncio.timeout(bridge.settings.request_timeout):
            async for chunk in read_chunks(request):
                collected += chunk
                if len(collected) > most:
                    raise errors.BodyTooLarge(f"The limit is {most} bytes, counted unpacked.")
                request[SHARE].hold(len(collected))
    except TimeoutError:
        raise errors.RequestTooSlow("Its body did not arrive in time.") from None
    return bytes(collected)


async def _understood(protocol: Protocol, body: bytes) -> Question:
    try:
        return protocol.read(body) if len(body) <= _AT_ONCE else await asyncio.to_thread(protocol.read, body)
    except BadQuestion as problem:
        raise errors.InvalidBody(str(problem)) from None


@contextmanager
def _slot(bridge: Bridge, instance: Instance) -> Iterator[None]:
    if bridge.slots is None:
        yield
        return
    with bridge.slots.hold(instance.name) as held:
        if not held:
            raise errors.BridgeBusy(retry_after=1)
        yield


def _beginning(
    request: web.Request, instance: Instance, caller: Caller, credential: Credential, question: Question
) -> Beginning:
    user_agent = jsontext.cleaned(request.headers.get("User-Agent", ""))[:_LONGEST_USER_AGENT]
    return Beginning(
        initiator_id=caller.user_id,
        token_id=caller.token_id,
        provider=instance.type,
        provider_name=instance.name,
        model=question.model,
        client=agents.client_of(request.headers),
        session_id=agents.session_of(request.headers, question.session_id),
        answers_tool_call=question.answers_tool_call,
        prompt=question.prompt,
        metadata={
            "request_user_agent": _without(user_agent, credential.secrets),
            "credential_kind": credential.kind,
            "credential_hint": credential.hint,
            "streaming": question.streaming,
        },
        started_at=datetime.now(UTC),
    )


def _call(
    request: web.Request, instance: Instance, credential: Credential, *, path: str, body: bytes, model: str
) -> Call:
    query = request.rel_url.raw_query_string
    url = URL(f"{instance.base_url}{path}{'?' + query if query else ''}", encoded=True)
    headers = headers_to_send(request.headers, credentials=credential.headers)
    return Call(instance, request.method, url, headers, body, path, model)


def _below(path: str, tail: str | None) -> str:
    """The path of a request below the base URL; raises UnknownPath where it could lead out of what is allowed."""
    if tail is None:
        return path
    segments = tail.split("/")
    for segment in segments:
        # What aiohttp leaves encoded (a slash, a percent sign) could be decoded into a step by whoever is asked.
        if segment in {"", ".", ".."} or not segment.isprintable() or any(mark in segment for mark in "\\%?#"):
            raise errors.UnknownPath
    quoted = URL.build(path="/" + "/".join(segments)).raw_path[1:]
    return path.replace("{tail}", quoted)


def _exchanges(bridge: Bridge, call: Call, name: str, secrets: tuple[str, ...]) -> Any:
    def exchange(attempt: int) -> Exchange | None:
        return bridge.request_log.exchange(
            instance=call.instance.name,
            model=call.model,
            name=name if attempt == 1 else f"{name}-{attempt}",
            secrets=secrets,
        )

    return exchange


# -- the client that may leave ----------------------------------------------------------------------------------------


@asynccontextmanager
async def _while_client_stays(request: web.Request) -> AsyncIterator[None]:
    """Raises ClientLeft, wherever the block is waiting, once the client has gone."""
    if request.transport is None or request.transport.is_closing():
        raise ClientLeft
    task, left = asyncio.current_task(), False

    def leave() -> None:
        nonlocal left
        left = True
        if task:
            task.cancel()

    request[LEFT] = leave
    try:
        yield
    except asyncio.CancelledError:
        if not left or (task and task.uncancel() > 0):
            raise
        raise ClientLeft from None
    finally:
        request[LEFT] = _nobody_waits


def _nobody_waits() -> None:
    """The client of a request that is as good as done has gone."""


def _cut(request: web.Request, bridge: Bridge) -> web.StreamResponse:
    """End an answer that broke off so that the client knows: what was sent is sent, and the connection closed."""
    if transport := request.transport:
        transport.close()
        asyncio.get_running_loop().call_later(bridge.settings.send_timeout, transport.abort)
    return web.Response(status=_CLIENT_LEFT)


async def _send(response: web.StreamResponse, data: bytes, *, patience: float) -> None:
    """Waits until the client has taken most of it: so long nothing more is read from the provider."""
    try:
        async with asyncio.timeout(patience):
            await response.write(data)
    except (ConnectionError, TimeoutError) as problem:
        raise ClientLeft from problem


# -- the answer -------------------------------------------------------------------------------------------------------


class _Served:
    """A recorded request, from the time that it is recorded: what is known of it, and how it ended."""

    def __init__(
        self,
        bridge: Bridge,
        instance: Instance,
        protocol: Protocol,
        question: Question,
        credential: Credential,
        running: Running,
        client: str,
    ) -> None:
        self.bridge = bridge
        self.protocol = protocol
        self.question = question
        self.credential = credential
        self.running = running
        self.reader: Reader = protocol.reader(question)
        self._instance = instance
        self._client = client
        self._status = "failed"
        self._detail: dict[str, Any] = {"error_type": "bridge_failed"}
        self._answered: dict[str, Any] = {}
        self._provider_status = 0
        self.unread = False  # nothing can be said of the answer but that it came

    def answered(self, answer: Answer) -> None:
        """The head of the answer is there."""
        self._provider_status = answer.response.status
        headers = answer.response.headers
        told = headers.get("Request-Id") or headers.get("X-Request-Id")
        self._answered = {"provider_status": answer.response.status}
        if told:
            self._answered["provider_request_id"] = self._plain(told)
        if answer.attempts > 1:
            self._answered["attempts"] = answer.attempts
        if answer.response.status < 300:
            self.bridge.models.confirm(self.question.model)

    def observe(self) -> None:
        """Record what was read so far."""
        self.running.observe(self.reader.observed)

    def finished(self) -> None:
        """The answer was relayed to its end."""
        observed = self.reader.observed
        if observed.error is not None:
            self.failed(observed.error)
        elif self._provider_status >= 300:
            self.failed("unexpected_status")
        elif observed.complete or self.unread:
            self._status, self._detail = "completed", {}
        else:
            self.failed("incomplete_answer")

    def left(self) -> None:
        """The client went away; it has what it wants where it waited for the last event."""
        if self.reader.observed.complete:
            self.finished()
        else:
            self._status, self._detail = "cancelled", {}

    def failed(self, error_type: str) -> None:
        """It failed."""
        told = self.reader.observed.error or error_type
        self._status, self._detail = "failed", {"error_type": self._plain(told)}

    def end(self, seconds: float) -> None:
        """Record the end, and count."""
        observed, metrics = self.reader.observed, self.bridge.metrics
        self.observe()
        self.running.end(status=self._status, detail=self._answered | self._detail)
        name, model = self._instance.name, self.bridge.models.label(self.question.model)
        metrics.interceptions.labels(name, model, self._status, self.protocol.path, self._client).inc()
        metrics.interceptions_duration.labels(name, model).observe(seconds)
        if observed.tools:
            metrics.tool_calls.labels(name, model).inc(len(observed.tools))
        if usage := observed.usage:
            for kind, count in (
                ("input", usage.input_tokens),
                ("output", usage.output_tokens),
                ("cache_read", usage.cache_read_input_tokens),
                ("cache_write", usage.cache_write_input_tokens),
            ):
                metrics.tokens.labels(name, model, kind).inc(count)

    def _plain(self, text: str) -> str:
        return _without(jsontext.cleaned(text)[:_LONGEST_DETAIL], self.credential.secrets)


def _without(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


async def _relay(request: web.Request, answer: Answer, bridge: Bridge, served: _Served | None) -> web.StreamResponse:
    """Send the answer on as it comes. Raises ClientLeft and ProviderBroke, and whatever it raises, the answer has begun."""
    upstream = answer.response
    response = web.StreamResponse(
        status=upstream.status, reason=upstream.reason, headers=headers_to_return(upstream.headers)
    )
    response.headers["X-Bridgelog-Request-Id"] = request[REQUEST_ID]
    response.headers.setdefault("Cache-Control", "no-store")
    streaming = upstream.content_type == "text/event-stream"
    unpacker = encodings.unpacker(upstream.headers.get("Content-Encoding", ""))
    packed = upstream.headers.get("Content-Encoding", "identity").strip().lower() != "identity"
    # The only stream that cannot go as it comes: an event is to be left out of it.
    opened = bool(streaming and packed and unpacker and served and served.question.hides_usage)
    if opened:
        response.headers.popall("Content-Encoding", None)
    if streaming:
        # For nginx, which would collect them.
        response.headers["X-Accel-Buffering"] = "no"
    elif (length := upstream.headers.get("Content-Length", "")).isascii() and length.isdigit():
        response.content_length = int(length)
    try:
        try:
            await response.prepare(request)
        except ConnectionError as problem:
            raise ClientLeft from problem
        if served is None or unpacker is None:
            if served:
                served.unread = True
            await _pass_on(response, answer, bridge)
        elif streaming:
            stream = _Stream(response, answer, bridge, served, unpacker, packed=packed, opened=opened)
            await stream.relay()
        else:
            await _pass_on_read(request, response, answer, bridge, served, unpacker)
    except (ClientLeft, ProviderBroke, asyncio.CancelledError):
        raise
    except BaseException:
        # No other answer can follow what has been sent of this one.
        _cut(request, bridge)
        raise
    return response


async def _pass_on(response: web.StreamResponse, answer: Answer, bridge: Bridge) -> None:
    patience = bridge.settings.send_timeout
    while chunk := await _next(answer):
        await _send(response, chunk, patience=patience)


async def _pass_on_read(
    request: web.Request,
    response: web.StreamResponse,
    answer: Answer,
    bridge: Bridge,
    served: _Served,
    unpacker: encodings.Unpacker,
) -> None:
    patience, whole, kept = bridge.settings.send_timeout, bytearray(), True
    while chunk := await _next(answer):
        if kept:
            for piece in unpacker.feed(chunk):
                whole += piece
            kept = len(whole) <= _MOST_WHOLE
            request[SHARE].keep(len(whole))
        await _send(response, chunk, patience=patience)
    if not kept:
        served.unread = True
    elif len(whole) <= _AT_ONCE:
        served.reader.whole(bytes(whole), answer.response.status)
    else:
        await asyncio.to_thread(served.reader.whole, bytes(whole), answer.response.status)


class _Stream:
    """A stream of events on its way to the client."""

    def __init__(
        self,
        response: web.StreamResponse,
        answer: Answer,
        bridge: Bridge,
        served: _Served,
        unpacker: encodings.Unpacker,
        *,
        packed: bool,
        opened: bool,
    ) -> None:
        self._response = response
        self._answer = answer
        self._bridge = bridge
        self._served = served
        self._unpacker = unpacker
        self._packed = packed
        self._opened = opened
        self._decoder = sse.Decoder(_MOST_EVENT)
        self._between = True  # two events, where something may be said

    async def relay(self) -> None:
        """To its end."""
        settings = self._bridge.settings
        raw = self._packed and not self._opened
        patience = None if raw else settings.bridge_keep_alive
        while True:
            chunk = await _next(self._answer, patience=patience)
            if chunk is None:
                out = self._served.protocol.keep_alive if self._between else b""
            elif chunk:
                out = self._read(chunk)
                self._served.observe()
            else:
                out = self._shown(self._decoder.close())
            if raw and chunk is not None:
                out = chunk
            if out:
                await _send(self._response, out, patience=settings.send_timeout)
            if chunk == b"":
                return

    def _read(self, chunk: bytes) -> bytes:
        if not self._packed:
            return self._shown(self._decoder.feed(chunk))
        return b"".join([self._shown(self._decoder.feed(piece)) for piece in self._unpacker.feed(chunk)])

    def _shown(self, events: Iterator[sse.Event]) -> bytes:
        """What the client sees of these events; the reader sees them all."""
        shown = []
        for event in events:
            self._between = not event.open
            if self._served.reader.event(event):
                shown.append(event.raw)
        return b"".join(shown)


async def _next(answer: Answer, *, patience: float | None = None) -> bytes | None:
    """The next bytes of an answer; none at its end; None where it is silent for so long. Raises ProviderBroke."""
    try:
        async with asyncio.timeout(patience) as bound:
            chunk = await answer.response.content.readany()
    except (aiohttp.ClientError, OSError, TimeoutError) as problem:
        if bound.expired() and not isinstance(problem, aiohttp.ClientError):
            return None
        if answer.exchange:
            answer.exchange.fail(type(problem).__name__)
        reason = "provider_silent" if isinstance(problem, aiohttp.SocketTimeoutError) else "provider_connection_lost"
        raise ProviderBroke(reason) from problem
    if answer.exchange and chunk:
        answer.exchange.add(chunk)
    return chunk
