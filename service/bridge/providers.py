"""The instances of providers: where they are, and with which key, from the settings and the providers' file."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml
from marshmallow import Schema, ValidationError, fields, validate
from yarl import URL

from service.settings import InvalidSettings, Settings, provider_key

_NAME: Final = r"[a-z0-9]+(-[a-z0-9]+)*"
_DEFAULTS: Final = {"anthropic": "https://api.anthropic.com", "openai": "https://api.openai.com/v1"}


@dataclass(frozen=True, slots=True)
class Instance:
    """A provider, or whatever speaks like one, at one address, with one key."""

    name: str
    type: str  # anthropic or openai
    base_url: str  # without a slash at its end
    key: str | None = field(repr=False)
    allow_byok: bool

    @property
    def credentials(self) -> dict[str, str]:
        """The headers that carry its key."""
        if self.key is None:
            return {}
        return {"X-Api-Key": self.key} if self.type == "anthropic" else {"Authorization": f"Bearer {self.key}"}


def configured(settings: Settings, *, reserved: Collection[str]) -> tuple[Instance, ...]:
    """Every instance; none may be named as in `reserved`. Raises InvalidSettings, which quotes no key.

    `anthropic` and `openai` are there where a key, an address, or callers who bring their own key make them of use.
    """
    instances = []
    for kind, key, base_url in (
        ("anthropic", settings.anthropic_key, settings.anthropic_base_url),
        ("openai", settings.openai_key, settings.openai_base_url),
    ):
        if key or base_url or settings.allow_byok:
            where = f'Environment variable "BRIDGELOG_{kind.upper()}_BASE_URL"'
            url = _base_url(base_url or _DEFAULTS[kind], where=where)
            instances.append(Instance(kind, kind, url, key, settings.allow_byok))
    if settings.providers_file:
        told = _from_file(settings.providers_file, allow_byok=settings.allow_byok)
        # What only the permission to bring a key has made gives way to what the file says.
        named = {instance.name for instance in told}
        implied = {"anthropic": settings.anthropic_key or settings.anthropic_base_url}
        implied["openai"] = settings.openai_key or settings.openai_base_url
        instances = [one for one in instances if one.name not in named or implied[one.name]] + told
    names = [instance.name for instance in instances]
    for name in names:
        if names.count(name) > 1:
            message = f"the provider {name} is configured more than once"
            raise InvalidSettings(message)
        if name in reserved:
            message = f"no provider may be named {name}: that is the name of another route"
            raise InvalidSettings(message)
    return tuple(instances)


class _Entry(Schema):
    """A provider in the file."""

    name = fields.String(validate=[validate.Regexp(f"{_NAME}\\Z"), validate.Length(max=64)])
    type = fields.String(required=True, validate=validate.OneOf(sorted(_DEFAULTS)))
    base_url = fields.String()
    key_file = fields.String(validate=validate.Length(min=1))
    key_env = fields.String(validate=validate.Length(min=1))
    allow_byok = fields.Boolean()

    declared: ClassVar = frozenset({"name", "type", "base_url", "key_file", "key_env", "allow_byok"})


def _from_file(path: Path, *, allow_byok: bool) -> list[Instance]:
    where = f"the providers' file {path}"
    content = _loaded(path, where=where)
    entries = content.get("providers") if isinstance(content, Mapping) and len(content) == 1 else None
    if not isinstance(entries, list):
        message = f"{where} must have one member, providers, which is a list"
        raise InvalidSettings(message)
    instances = []
    for number, entry in enumerate(entries, start=1):
        place = f"provider {number} of {where}"
        try:
            told: dict[str, Any] = _Entry().load(entry)
        except ValidationError as problem:
            # What is not known may be a key that stands in the wrong place.
            wrong = sorted(map(str, problem.messages)) if isinstance(problem.messages, dict) else []
            known = ", ".join(name for name in wrong if name in _Entry.declared) or "its members"
            message = f"{place} is not valid: look at {known}"
            raise InvalidSettings(message) from None
        instances.append(
            Instance(
                name=told.get("name", told["type"]),
                type=told["type"],
                base_url=_base_url(told.get("base_url", _DEFAULTS[told["type"]]), where=f"base_url of {place}"),
                key=_key(told, beside=path.parent, place=place),
                allow_byok=told.get("allow_byok", allow_byok),
            )
        )
    return instances


def _loaded(path: Path, *, where: str) -> object:
    try:
        text = path.read_text(encoding="utf-8")
        content: object = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as problem:
        message = f"{where} cannot be read: {problem.strerror}"
        raise InvalidSettings(message) from None
    except (ValueError, yaml.YAMLError):
        # What the parsers say quotes the text, in which somebody may have put a key.
        message = f"{where} is not valid {'TOML' if path.suffix == '.toml' else 'YAML'}"
        raise InvalidSettings(message) from None
    return content


def _key(told: Mapping[str, Any], *, beside: Path, place: str) -> str | None:
    if "key_file" in told and "key_env" in told:
        message = f"{place} has both key_file and key_env"
        raise InvalidSettings(message)
    if "key_env" in told:
        if (value := os.environ.get(told["key_env"])) is None:
            message = f"key_env of {place} names an environment variable that is not set"
            raise InvalidSettings(message)
        return provider_key(value, where=f"key_env of {place}")
    if "key_file" in told:
        try:
            value = (beside / told["key_file"]).read_text(encoding="utf-8")
        except (OSError, ValueError):
            message = f"key_file of {place} cannot be read"
            raise InvalidSettings(message) from None
        return provider_key(value, where=f"key_file of {place}")
    return None


def _base_url(text: str, *, where: str) -> str:
    message = f"{where} must be a URL such as https://host/path, without user, query and fragment"
    if not re.fullmatch(r"https?://[!-~]+", text):
        raise InvalidSettings(message)
    try:
        url = URL(text)
        port = url.port  # raises on one that is none
    except ValueError:
        raise InvalidSettings(message) from None
    if not url.host or not port or url.user or url.password or url.raw_query_string or url.raw_fragment:
        raise InvalidSettings(message)
    return str(url).rstrip("/")
