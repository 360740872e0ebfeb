"""The bridge's routes below each prefix of the API, by instance: what is recorded, and what is passed through."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from service.bridge import protocols, serving
from service.bridge.providers import Instance

# What type has which path of its own below the name of the instance, and which calls are passed through: an allow-list,
# for the key may be powerful.
_BELOW: Final = {"anthropic": "", "openai": "/v1"}
_PASSED: Final = {
    "anthropic": ("/v1/models", "/v1/models/{tail}", "/v1/messages/count_tokens", "/api/event_logging/{tail}"),
    "openai": ("/models", "/models/{tail}", "/responses/{tail}", "/conversations", "/conversations/{tail}"),
}


@dataclass(frozen=True, slots=True)
class Door:
    """A route of the bridge: `path` is below each prefix, `shape` makes an error's body of a status and a sentence."""

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    shape: Callable[[int, str], bytes]


def doors(instances: Iterable[Instance]) -> Iterator[Door]:
    """Every route of these instances."""
    for instance in instances:
        below = f"/{instance.name}{_BELOW[instance.type]}"
        spoken = [protocol for protocol in protocols.BY_NAME.values() if protocol.provider == instance.type]
        for protocol in spoken:
            handler = functools.partial(serving.serve_recorded, instance=instance, protocol=protocol)
            yield Door("POST", below + protocol.path, handler, protocol.error)
        for path in _PASSED[instance.type]:
            passed = functools.partial(serving.serve_through, instance=instance, path=path)
            yield Door("*", below + path.replace("{tail}", "{tail:.+}"), passed, spoken[0].error)
