"""An interception while it is served: what is observed of it becomes rows, with their ids, in the words of the store."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol
from uuid import UUID

from service.bridge.protocols import Observed
from service.bridge.records import clean
from service.store import recording
from service.store.recording import Interception

_MOST_NAME: Final = 512
_MOST_CLIENT: Final = 64
_MOST_SESSION: Final = 256
_MICROSECOND: Final = timedelta(microseconds=1)

Children = dict[recording.Kind, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Beginning:
    """A request that is about to go upstream."""

    initiator_id: UUID
    token_id: str
    provider: str
    provider_name: str
    model: str
    client: str
    session_id: str | None
    answers_tool_call: str | None
    prompt: str | None
    metadata: dict[str, Any]
    started_at: datetime


class Sink(Protocol):
    """Who takes what is to be recorded; neither waits nor raises."""

    def add(self, interception_id: UUID, children: Mapping[recording.Kind, Sequence[Mapping[str, Any]]]) -> None:
        """Record children of an interception."""

    def end(
        self,
        interception_id: UUID,
        *,
        ended_at: datetime,
        metadata: Mapping[str, Any],
        children: Mapping[recording.Kind, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        """Record the last children of an interception, and its end."""


class Running:
    """An interception that is being served. Nothing here waits or raises; what comes after the end is left out."""

    def __init__(self, sink: Sink, interception_id: UUID, started_at: datetime) -> None:
        self.id = interception_id
        self._sink = sink
        self._latest = started_at
        self._observed = Observed()
        self._tools = 0
        self._thoughts = 0
        self._usage_told = False
        self._ended = False

    def observe(self, observed: Observed) -> None:
        """Record what is new of what an answer used, so far; to be called once for an answer, or as often as one likes.

        Its usage is recorded once: when the answer is complete, when another answer comes, or at the end.
        """
        if self._ended:
            return
        children: Children = {}
        self._look_at(observed, children)
        self._tell_new(children)
        if observed.complete:
            self._tell_usage(children)
        if children:
            self._sink.add(self.id, children)

    def end(self, *, status: str, detail: dict[str, Any], observed: Observed | None = None) -> None:
        """End it now: `status` (completed, failed, cancelled) and the members of `detail` go into its metadata.

        What is new of `observed` is recorded with it.
        """
        if self._ended:
            return
        self._ended = True
        children: Children = {}
        if observed is not None:
            self._look_at(observed, children)
        self._tell_new(children)
        self._tell_usage(children)
        self._sink.end(self.id, ended_at=self._now(), metadata=detail | {"status": status}, children=children)

    def _look_at(self, observed: Observed, children: Children) -> None:
        if observed is not self._observed:
            self._tell_usage(children)
            self._observed = observed
            self._tools = self._thoughts = 0
            self._usage_told = False

    def _tell_new(self, children: Children) -> None:
        seen = self._observed
        for tool in seen.tools[self._tools :]:
            children.setdefault("tool_usages", []).append(
                self._child()
                | {
                    "id": uuid.uuid4(),
                    "provider_response_id": seen.response_id,
                    "provider_tool_call_id": tool.call_id[:_MOST_NAME],
                    "server_url": tool.server_url,
                    "tool": tool.tool,
                    "input": tool.input,
                    "injected": tool.injected,
                    "metadata": tool.metadata,
                }
            )
        for thought in seen.thoughts[self._thoughts :]:
            children.setdefault("model_thoughts", []).append(
                self._child() | {"content": thought.content, "metadata": thought.metadata}
            )
        self._tools, self._thoughts = len(seen.tools), len(seen.thoughts)

    def _tell_usage(self, children: Children) -> None:
        usage = self._observed.usage
        if usage is None or self._usage_told:
            return
        self._usage_told = True
        children.setdefault("token_usages", []).append(
            self._child()
            | {
                "id": uuid.uuid4(),
                "provider_response_id": self._observed.response_id,
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cache_read_input_tokens": usage.cache_read_input_tokens,
                "cache_write_input_tokens": usage.cache_write_input_tokens,
                "metadata": usage.metadata,
            }
        )

    def _child(self) -> dict[str, Any]:
        return {"interception_id": self.id, "created_at": self._now()}

    def _now(self) -> datetime:
        """Later than any instant before, so that children keep their order and equal thoughts stay two."""
        self._latest = max(datetime.now(UTC), self._latest + _MICROSECOND)
        return self._latest


def interception_of(beginning: Beginning) -> Interception:
    """What is stored before the request goes upstream: the interception, with an id, and its prompt."""
    interception_id = uuid.uuid4()
    answers = beginning.answers_tool_call
    sent = {
        "id": interception_id,
        "initiator_id": beginning.initiator_id,
        "api_key_id": beginning.token_id,
        "provider": beginning.provider,
        "provider_name": beginning.provider_name,
        "model": beginning.model[:_MOST_NAME],
        "client": beginning.client[:_MOST_CLIENT],
        "metadata": beginning.metadata,
        "started_at": beginning.started_at,
        "client_session_id": beginning.session_id[:_MOST_SESSION] if beginning.session_id else None,
    }
    prompts = (
        []
        if beginning.prompt is None
        else [
            {
                "id": recording.child_id(interception_id, kind="user_prompts", position=0),
                "interception_id": interception_id,
                # It is recorded before there is an answer.
                "provider_response_id": "",
                "prompt": beginning.prompt,
                "metadata": {},
                "created_at": beginning.started_at,
            }
        ]
    )
    return Interception(
        sent=clean(sent),
        correlating_tool_call_id=clean(answers[:_MOST_NAME]) if answers else None,
        children=clean({"user_prompts": prompts}),
    )
