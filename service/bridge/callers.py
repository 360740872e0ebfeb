"""Who calls the bridge, by which token, and with whose key the provider is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from multidict import CIMultiDictProxy

from service import errors
from service.bridge.providers import Instance
from service.bridge.request_log import MASK
from service.store import tokens

_BEARER: Final = re.compile(r"bearer +(.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Credential:
    """What goes to the provider to sign in, and of which kind it is."""

    kind: str  # centralized or byok
    headers: dict[str, str] = field(repr=False)
    hint: str
    secrets: tuple[str, ...] = field(repr=False)  # the key, and the caller's token: to be masked
    token: str = field(repr=False)  # the caller's

    def mask(self, text: str) -> str:
        """The text without them."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        return text


def bridge_token(headers: CIMultiDictProxy[str]) -> str | None:
    """A client's token: the first of what clients send a provider's key in that has the form of one."""
    given = (headers.get("Coder-Session-Token", ""), _bearer(headers) or "", headers.get("X-Api-Key", ""))
    return next((text.strip() for text in given if tokens.split(text.strip())), None)


def _bearer(headers: CIMultiDictProxy[str]) -> str | None:
    bearer = _BEARER.fullmatch(headers.get("Authorization", "").strip())
    return bearer[1] if bearer else None


def credential(headers: CIMultiDictProxy[str], instance: Instance, *, token: str) -> Credential:
    """The instance's key, or the caller's own where they brought one. Raises OwnKeyForbidden and KeyMissing."""
    own = {}
    if headers.get("Coder-Session-Token", "").strip() == token:
        # A token of ours is nobody's provider key, wherever it stands.
        for name, key in (("Authorization", _bearer(headers)), ("X-Api-Key", headers.get("X-Api-Key"))):
            if key and token not in key and not tokens.split(key.strip()):
                own[name] = headers[name]
    if own:
        if not instance.allow_byok:
            raise errors.OwnKeyForbidden
        keys = tuple(_bearer(headers) or value if name == "Authorization" else value for name, value in own.items())
        return Credential("byok", own, _hint(keys[0]), (*keys, token), token)
    if instance.key is None:
        raise errors.KeyMissing(
            "Send your own as the provider wants it, and your token in the header Coder-Session-Token."
            if instance.allow_byok
            else ""
        )
    return Credential("centralized", instance.credentials, _hint(instance.key), (instance.key, token), token)


def _hint(key: str) -> str:
    """Enough of a key to tell it from another."""
    shown = 4 if len(key) >= 24 else 2 if len(key) >= 12 else 0
    return f"{key[:shown]}…{key[len(key) - shown :]}"
