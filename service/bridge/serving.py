"""A request from its head to its end: who calls, what is asked, the record, the provider, and the answer as it comes.

Whatever is raised before an answer has begun becomes an error in the provider's shape (`routes`, `middleware`).
"""

from __future__ import annotations

import asyncio
import time
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web
from yarl import URL

from service import errors, jsontext
from service.auth import Caller
from service.bodies import read_chunks
from service.bridge import agents
from service.bridge.callers import Credential, bridge_token, credential
from service.bridge.protocols import BadQuestion, Protocol, Question
from service.bridge.providers import Instance
from service.bridge.recorder import Recorder
from service.bridge.relay import (
    PARSED_AT_ONCE,
    ClientLeft,
    ProviderBroke,
    Reading,
    cut,
    left,
    relay,
    while_client_stays,
)
from service.bridge.request_log import MASK, Exchange, RequestLog
from service.bridge.running import Beginning, Running
from service.bridge.upstream import Answer, Call, Upstream, headers_to_send
from service.context import ADDRESS, AUTHENTICATOR, CALLER, SHARE
from service.limits import Rate, Slots
from service.metrics import Metrics
from service.settings import Settings

# Not TRACE, whose answer would tell the key, nor what nobody here has heard of.
_PASSED_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_MOST_MODELS: Final = 200
_LONGEST_LABEL: Final = 128
_LONGEST_MODEL: Final = 512
_LONGEST_USER_AGENT: Final = 1_024
_LONGEST_DETAIL: Final = 256
# The model of what is not recorded: nobody has read which it is.
_PASSTHROUGH: Final = "passthrough"


@dataclass(slots=True)
class Bridge:
    """What the bridge of one process works with."""

    settings: Settings
    recorder: Recorder
    upstream: Upstream
    request_log: RequestLog
    metrics: Metrics
    models: Models
    rate: Rate | None = None
    slots: Slots | None = None


BRIDGE = web.AppKey("bridge", Bridge)


class Models:
    """The names of models that metrics tell: those for which a provider had an answer, and not too many."""

    def __init__(self, most: int = _MOST_MODELS) -> None:
        self._most = most
        self._known: set[str] = set()

    def confirm(self, model: str) -> None:
        """A provider has such a model."""
        if len(self._known) < self._most and len(model) <= _LONGEST_LABEL:
            self._known.add(model)

    def label(self, model: str) -> str:
        """Its name, or `other`."""
        return model if model in self._known or model == _PASSTHROUGH else "other"


# -- the two kinds of request ----------------------------------------------------------------------------------------


async def serve_recorded(request: web.Request, *, instance: Instance, protocol: Protocol) -> web.StreamResponse:
    """Relay a request that is recorded."""
    bridge = request.app[BRIDGE]
    caller, key = await _admit(request, bridge, instance)
    body = await _read_body(request, bridge)
    question = await _understood(protocol, body)
    call = _call(request, instance, key, endpoint=protocol.path, body=question.body, model=question.model)
    bridge.upstream.breaker.check(call)
    with _slot(bridge, instance):
        beginning = _beginning(request, instance, caller, key, question)
        served = _Served(bridge, beginning, call, protocol, question=question, key=key)
        # A body is not kept for as long as the answer streams.
        del body, question
        with bridge.metrics.of(bridge.metrics.interceptions_inflight, instance.name, protocol.path).track_inprogress():
            running = await bridge.recorder.start(beginning)
            try:
                return await _relayed(request, call, served, running)
            finally:
                served.end(running)


async def serve_through(request: web.Request, *, instance: Instance, path: str) -> web.StreamResponse:
    """Relay a request that is not recorded; `path` is below the base URL, `{tail}` standing for the rest of it."""
    bridge = request.app[BRIDGE]
    _, key = await _admit(request, bridge, instance)
    if request.method not in _PASSED_METHODS:
        raise web.HTTPMethodNotAllowed(request.method, _PASSED_METHODS)
    below = _below(path, request.match_info.get("tail"))
    body = await _read_body(request, bridge)
    call = _call(request, instance, key, endpoint=path, below=below, body=body, model=_PASSTHROUGH)
    bridge.upstream.breaker.check(call)
    answer, status = None, "none"
    with _slot(bridge, instance):
        try:
            with while_client_stays(request):
                answer = await _ask(request, bridge, call, name=str(uuid.uuid4()), key=key)
                status = str(answer.response.status)
                return await relay(request, answer, None)
        except ClientLeft:
            return left()
        except ProviderBroke:
            return cut(request)
        finally:
            if answer:
                answer.close()
            bridge.metrics.passthrough.labels(instance.name, path, status).inc()


async def _relayed(request: web.Request, call: Call, served: _Served, running: Running) -> web.StreamResponse:
    answer = None
    try:
        with while_client_stays(request):
            answer = await _ask(request, served.bridge, call, name=str(running.id), key=served.key)
            served.answered(answer)
            served.reading.observe = lambda: running.observe(served.observed)
            response = await relay(request, answer, served.reading)
            served.finished()
            return response
    except ClientLeft:
        served.left()
        return left()
    except ProviderBroke as problem:
        served.failed(str(problem))
        return cut(request)
    except errors.ProviderUnavailable:
        served.failed("provider_unavailable")
        raise
    except asyncio.CancelledError:
        served.failed("bridge_stopped")
        raise
    finally:
        if answer:
            answer.close()


async def _ask(request: web.Request, bridge: Bridge, call: Call, *, name: str, key: Credential) -> Answer:
    def exchange(attempt: int) -> Exchange | None:
        return bridge.request_log.exchange(
            instance=call.instance.name,
            model=call.model,
            name=name if attempt == 1 else f"{name}-{attempt}",
            secrets=key.secrets,
        )

    answer = await bridge.upstream.ask(call, log_exchange=exchange)
    call.body = b""
    request[SHARE].give_back()
    return answer


# -- who calls, with whose key, and what ------------------------------------------------------------------------------


async def _admit(request: web.Request, bridge: Bridge, instance: Instance) -> tuple[Caller, Credential]:
    token = bridge_token(request.headers)
    if token is None:
        raise errors.SignedOut("No token came: send one as you would send the provider's key.")
    caller = await request.app[AUTHENTICATOR].authenticate_for_bridge(token, address=request[ADDRESS])
    request[CALLER] = caller
    if bridge.rate and not (standing := bridge.rate.take(caller.token_id)).granted:
        raise errors.RateExceeded(retry_after=standing.retry_after)
    return caller, credential(request.headers, instance, token=token)


async def _read_body(request: web.Request, bridge: Bridge) -> bytes:
    """The body, unpacked where it came compressed."""
    most = bridge.settings.bridge_max_body
    if request.content_length is not None and request.content_length > most:
        raise errors.BodyTooLarge(f"The limit is {most} bytes.")
    if not request.can_read_body:
        return b""
    collected = bytearray()
    try:
        # What has come whole needs no timer.
        async with nullcontext() if request.content.is_eof() else asyncio.timeout(bridge.settings.request_timeout):
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
        return protocol.read(body) if len(body) <= PARSED_AT_ONCE else await asyncio.to_thread(protocol.read, body)
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
    request: web.Request, instance: Instance, caller: Caller, key: Credential, question: Question
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
            "request_user_agent": key.mask(user_agent),
            "credential_kind": key.kind,
            "credential_hint": key.hint,
            "streaming": question.streaming,
        },
        started_at=datetime.now(UTC),
    )


def _call(
    request: web.Request,
    instance: Instance,
    key: Credential,
    *,
    endpoint: str,
    body: bytes,
    model: str,
    below: str | None = None,
) -> Call:
    """`below` is the path below the base URL, where it is not the endpoint itself."""
    query = request.rel_url.raw_query_string.replace(key.token, MASK)
    return Call(
        instance=instance,
        method=request.method,
        url=URL(f"{instance.base_url}{below or endpoint}{'?' + query if query else ''}", encoded=True),
        headers=headers_to_send(request.headers, credentials=key.headers, token=key.token),
        body=body,
        endpoint=endpoint,
        model=model[:_LONGEST_MODEL],
        # What is the matter with a caller's own key, such as its quota, is no reason to leave the others' requests alone.
        counts=key.kind == "centralized",
    )


def _below(path: str, tail: str | None) -> str:
    """The path of a request below the base URL; raises UnknownPath where it could lead out of what is allowed."""
    if tail is None:
        return path
    segments = tail.split("/")
    for segment in segments:
        # What aiohttp leaves encoded (a slash, a percent sign) could be decoded into a step by whoever is asked; and some
        # take ..;x, dots with spaces, or dots of other widths for one.
        plain = unicodedata.normalize("NFKC", segment)
        if not plain.strip(" .") or not segment.isprintable() or any(mark in plain for mark in "\\/%?#;"):
            raise errors.UnknownPath
    quoted = URL.build(path="/" + "/".join(segments)).raw_path[1:]
    return path.replace("{tail}", quoted)


# -- what becomes of it -----------------------------------------------------------------------------------------------


class _Served:
    """A recorded request, from the time that it is recorded: what is known of it, and how it ended."""

    def __init__(
        self,
        bridge: Bridge,
        beginning: Beginning,
        call: Call,
        protocol: Protocol,
        *,
        question: Question,
        key: Credential,
    ) -> None:
        self.bridge = bridge
        self.key = key
        reader = protocol.reader(question)
        self.observed = reader.observed
        self.reading = Reading(reader, _nothing, protocol.keep_alive, question.hides_usage)
        self._began = time.perf_counter()
        self._client = beginning.client
        self._model = call.model
        self._prompted = question.prompt is not None
        self._instance = call.instance.name
        self._route = protocol.path
        self._status = "failed"
        self._detail: dict[str, Any] = {"error_type": "bridge_failed"}
        self._answered: dict[str, Any] = {}

    def answered(self, answer: Answer) -> None:
        """The head of the answer is there."""
        status, headers = answer.response.status, answer.response.headers
        self._answered = {"provider_status": status}
        if told := headers.get("Request-Id") or headers.get("X-Request-Id"):
            self._answered["provider_request_id"] = self._plain(told)
        if answer.attempts > 1:
            self._answered["attempts"] = answer.attempts
        if status < 300:
            self.bridge.models.confirm(self._model)

    def finished(self) -> None:
        """The answer was relayed to its end."""
        if self.observed.error is not None or self._answered["provider_status"] >= 300:
            self.failed("unexpected_status")
        elif self.observed.complete or self.reading.unread:
            self._status, self._detail = "completed", {}
        else:
            self.failed("incomplete_answer")

    def left(self) -> None:
        """The client went away; it has what it wants where it waited for the last event."""
        if self.observed.complete:
            self.finished()
        else:
            self._status, self._detail = "cancelled", {}

    def failed(self, error_type: str) -> None:
        """It failed; what the provider says of it counts."""
        self._status, self._detail = "failed", {"error_type": self._plain(self.observed.error or error_type)}

    def end(self, running: Running) -> None:
        """Record the end, and count."""
        observed, metrics = self.observed, self.bridge.metrics
        running.end(status=self._status, detail=self._answered | self._detail, observed=observed)
        names = self._instance, self.bridge.models.label(self._model)
        of = metrics.of
        of(metrics.interceptions, *names, self._status, self._route, self._client).inc()
        of(metrics.interceptions_duration, *names).observe(time.perf_counter() - self._began)
        if self._prompted:
            of(metrics.prompts, *names).inc()
        if observed.tools:
            of(metrics.tool_calls, *names).inc(len(observed.tools))
        if usage := observed.usage:
            of(metrics.tokens, *names, "input").inc(usage.input_tokens)
            of(metrics.tokens, *names, "output").inc(usage.output_tokens)
            of(metrics.tokens, *names, "cache_read").inc(usage.cache_read_input_tokens)
            of(metrics.tokens, *names, "cache_write").inc(usage.cache_write_input_tokens)

    def _plain(self, text: str) -> str:
        return self.key.mask(jsontext.cleaned(text))[:_LONGEST_DETAIL]


def _nothing() -> None:
    """Nobody records yet."""
