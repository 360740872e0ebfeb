"""Request bodies, validated: interceptions and what they own, ends, and the request-logging switch.

A body turns into the store's words with exactly the members that its sender gave, for a repeat is compared by these.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

from marshmallow import RAISE, Schema, ValidationError, fields, validates_schema
from marshmallow.validate import Length

from service import instants, jsontext
from service.errors import InvalidBody, Validation
from service.identifiers import parse_uuid
from service.store import erasure
from service.store.recording import KINDS, Initiator, Interception, Kind, child_id

_MOST_ELEMENTS = 10_000
_TOO_MANY = f"must have at most {_MOST_ELEMENTS:,} elements"
_MOST_TOLD = 100
_MAX_INTEGER = 2**63 - 1
_MOST_SHOWN = 200
_KEYED = UUID("fe815c5c-a33c-4bbc-85f0-4459f930b979")  # the namespace of ids that are made from a key

_TOLD: dict[str, str | list[Any] | dict[Any, Any]] = {"required": "is required", "null": "must not be null"}
_OF_OBJECTS = {"unknown": "is not a known member", "type": "must be an object"}


def _at_most(characters: int) -> Length:
    return Length(max=characters, error=f"must have at most {characters} characters")


def _not_reserved(username: str) -> None:
    if erasure.is_reserved(username):
        message = "must not be erased- and a UUID: so are those called who were erased"
        raise ValidationError(message)


class Text(fields.String):
    """Text that PostgreSQL can hold."""

    default_error_messages = _TOLD | {"invalid": "must be a string"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if problem := jsontext.text_problem(value):
            raise ValidationError(problem)
        return value


class Identifier(fields.UUID):
    """A UUID of 36 characters, in either case; the all-zero one identifies nothing."""

    default_error_messages = _TOLD

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> UUID:
        parsed = parse_uuid(value) if isinstance(value, str) else None
        if parsed is None:
            message = "must be a UUID such as 497f6eca-6276-4993-bfeb-53cbbbba6f08"
            raise ValidationError(message)
        if not parsed.int:
            message = "must not be the all-zero UUID"
            raise ValidationError(message)
        return parsed


class Instant(fields.AwareDateTime):
    """An RFC 3339 instant, cut to microseconds."""

    default_error_messages = _TOLD

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        if not isinstance(value, str):
            message = "must be an RFC 3339 instant such as 2025-01-01T00:00:00Z"
            raise ValidationError(message)
        try:
            return instants.parse(value)
        except instants.InstantError as problem:
            message = f"must be an RFC 3339 instant such as 2025-01-01T00:00:00Z: {_clipped(str(problem))}"
            raise ValidationError(message) from None


class Tokens(fields.Integer):
    """A count of tokens: a JSON integer from 0 to 2^63 - 1."""

    default_error_messages = _TOLD

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_INTEGER:
            message = f"must be an integer from 0 to {_MAX_INTEGER}"
            raise ValidationError(message)
        return value


class Flag(fields.Boolean):
    """true or false, and nothing that resembles them."""

    default_error_messages = _TOLD

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            message = "must be true or false"
            raise ValidationError(message)
        return value


class Metadata(fields.Dict):
    """A JSON object that PostgreSQL holds and gives back equal."""

    default_error_messages = _TOLD

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, object]:
        if not isinstance(value, dict):
            message = "must be an object"
            raise ValidationError(message)
        if problem := jsontext.object_problem(value):
            raise ValidationError(problem)
        return value


class Array(fields.List[Any]):
    """A JSON array, of at most so many elements: to check each of millions would take minutes."""

    default_error_messages = _TOLD | {"invalid": "must be an array"}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        if isinstance(value, list) and len(value) > _MOST_ELEMENTS:
            raise ValidationError(_TOO_MANY)
        return super()._deserialize(value, attr, data, **kwargs)


class Body(Schema):
    """What all bodies have in common: a member that is not known is refused by its name."""

    class Meta:
        unknown = RAISE

    error_messages = _OF_OBJECTS


class _Child(Body):
    interception_id = Identifier()
    metadata = Metadata()
    created_at = Instant(required=True)


class TokenUsage(_Child):
    """Tokens that one upstream answer used."""

    id = Identifier()
    provider_response_id = Text(required=True)
    input_tokens = Tokens(required=True, metadata={"description": "Tokens sent, cached ones left out."})
    output_tokens = Tokens(required=True, metadata={"description": "Tokens received."})
    cache_read_input_tokens = Tokens(
        metadata={"description": "Tokens read from the provider's cache; 0 where unknown."}
    )
    cache_write_input_tokens = Tokens(metadata={"description": "Tokens written to it; 0 where unknown."})


class UserPrompt(_Child):
    """What the user asked."""

    id = Identifier()
    provider_response_id = Text(required=True)
    prompt = Text(required=True)


class ToolUsage(_Child):
    """A tool call that the model made."""

    id = Identifier()
    provider_response_id = Text(required=True)
    provider_tool_call_id = Text(
        allow_none=True, validate=_at_most(512), metadata={"description": "The provider's id of the call; not listed."}
    )
    server_url = Text(allow_none=True, metadata={"description": "The MCP server of the tool, if it has one."})
    tool = Text(required=True)
    input = Text()
    injected = Flag(metadata={"description": "Whether the bridge added the tool to the request."})
    invocation_error = Text(allow_none=True)


class ModelThought(_Child):
    """What the model thought aloud; not listed. It has no id: interception, created_at and content are its identity."""

    content = Text(required=True)


CHILDREN: dict[Kind, type[_Child]] = {
    "token_usages": TokenUsage,
    "user_prompts": UserPrompt,
    "tool_usages": ToolUsage,
    "model_thoughts": ModelThought,
}


class InitiatorBody(Body):
    """The user who caused an interception. An empty username creates and changes no user."""

    id = Identifier(required=True)
    username = Text(required=True, validate=[_at_most(512), _not_reserved])
    name = Text()
    avatar_url = Text()


class InterceptionBody(Body):
    """An interception, running or finished, with whatever it owns."""

    id = Identifier()
    initiator_id = Identifier(metadata={"description": "Required, unless initiator is given."})
    initiator = fields.Nested(InitiatorBody, error_messages=_TOLD)
    api_key_id = Text(allow_none=True)
    provider = Text(required=True)
    provider_name = Text()
    model = Text(required=True, validate=_at_most(512))
    client = Text(allow_none=True, validate=_at_most(64))
    metadata = Metadata()
    started_at = Instant(required=True)
    ended_at = Instant(allow_none=True)
    client_session_id = Text(allow_none=True, validate=_at_most(256))
    correlating_tool_call_id = Text(
        allow_none=True,
        validate=_at_most(512),
        metadata={"description": "The provider's id of the tool call that this request answers."},
    )
    token_usages = Array(fields.Nested(TokenUsage, error_messages=_TOLD))
    user_prompts = Array(fields.Nested(UserPrompt, error_messages=_TOLD))
    tool_usages = Array(fields.Nested(ToolUsage, error_messages=_TOLD))
    model_thoughts = Array(fields.Nested(ModelThought, error_messages=_TOLD))

    @validates_schema(skip_on_field_errors=False, pass_original=True)
    def _whole(self, data: Mapping[str, Any], original: object, **kwargs: Any) -> None:
        if not isinstance(original, dict):
            return
        problems: dict[str, Any] = {}
        initiator = data.get("initiator") or {}
        if original.keys().isdisjoint({"initiator_id", "initiator"}):
            problems["initiator_id"] = ["is required, unless initiator with its id is given"]
        elif "initiator_id" in data and "id" in initiator and data["initiator_id"] != initiator["id"]:
            problems["initiator"] = {"id": ["must equal initiator_id where both are given"]}
        if data.get("ended_at") and data.get("started_at") and data["ended_at"] < data["started_at"]:
            problems["ended_at"] = ["must not be before started_at"]
        if "id" in data or "id" not in original:  # an id that is wrong itself is told once, not by each child
            for kind in KINDS:
                if strangers := _strangers(original.get(kind), interception_id=data.get("id")):
                    problems[kind] = strangers
        if problems:
            raise ValidationError(problems)


def _strangers(children: object, *, interception_id: UUID | None) -> dict[int, Any]:
    """The children, as they were sent, that name another interception; of ids that are no UUIDs the field tells itself."""
    strangers = {}
    for index, child in enumerate(children if isinstance(children, list) else ()):
        named = child.get("interception_id") if isinstance(child, dict) else None
        owner = parse_uuid(named) if isinstance(named, str) else None
        if owner is not None and owner != interception_id:
            strangers[index] = {"interception_id": ["must be the id of the interception that holds it"]}
    return strangers


class EndBody(Body):
    """The end of an interception, and metadata that is merged into its own."""

    ended_at = Instant(required=True)
    metadata = Metadata()


class RequestLogging(Body):
    """The state that the switch is to have."""

    enabled = Flag(required=True)


# A schema copies its fields when it is made, which takes longer than to load a body.
_INTERCEPTION = InterceptionBody()
_END = EndBody()
_CHILD = {kind: schema() for kind, schema in CHILDREN.items()}


def load_body(schema: Schema, value: object, *, at: str = "") -> dict[str, Any]:
    """A body's members; raises InvalidBody with a validation for each that is wrong, its path below `at`.

    Of more than a hundred the first are told.
    """
    try:
        loaded: dict[str, Any] = schema.load(value)  # type: ignore[arg-type]  # marshmallow refuses what is no object
    except ValidationError as invalid:
        validations = list(islice(_flatten(invalid.messages_dict, at=at), _MOST_TOLD))
        raise InvalidBody(validations=validations) from None
    return loaded


def load_interception(value: object, *, key: str | None = None) -> Interception:
    """An interception in the store's words; raises InvalidBody. Without an id it gets one, the same for the same `key`."""
    body = load_body(_INTERCEPTION, value)
    initiator = body.pop("initiator", None)
    correlating = body.pop("correlating_tool_call_id", None)
    nested = {kind: body.pop(kind, []) for kind in KINDS}
    body.setdefault("id", _new_id(key, "interception"))
    if initiator is not None:
        body["initiator_id"] = initiator["id"]
    return Interception(
        sent=body,
        initiator=Initiator(**initiator) if initiator and initiator["username"] else None,
        correlating_tool_call_id=correlating or None,
        children={
            kind: [
                _nested_child(child, interception_id=body["id"], kind=kind, position=position)
                for position, child in enumerate(children)
            ]
            for kind, children in nested.items()
        },
    )


def load_end(value: object) -> dict[str, Any]:
    """The end of an interception: `ended_at`, and `metadata` where it was sent; raises InvalidBody."""
    return load_body(_END, value)


def load_children(value: object, *, kind: Kind, interception_id: UUID, key: str | None = None) -> list[dict[str, Any]]:
    """The children of a call's body, one object or an array of them, each with an id; raises InvalidBody.

    Those that bring none get one, the same for the same `key`.
    """
    bodies = value if isinstance(value, list) else [value]
    if len(bodies) > _MOST_ELEMENTS:
        raise InvalidBody(validations=[Validation("body", _TOO_MANY)])
    schema = _CHILD[kind]
    problems: list[Validation] = []
    children = []
    for index, body in enumerate(bodies):
        at = f"{index}." if isinstance(value, list) else ""
        try:
            child = load_body(schema, body, at=at)
        except InvalidBody as invalid:
            problems.extend(invalid.validations)
            continue
        if child.setdefault("interception_id", interception_id) != interception_id:
            problems.append(Validation(f"{at}interception_id", "must be the id of the interception in the path"))
        if kind != "model_thoughts":
            child.setdefault("id", _new_id(key, f"{interception_id} {kind} {index}"))
        children.append(child)
        if len(problems) >= _MOST_TOLD:
            break
    if problems:
        raise InvalidBody(validations=problems[:_MOST_TOLD])
    return children


def _new_id(key: str | None, what: str) -> UUID:
    return uuid.uuid4() if key is None else uuid.uuid5(_KEYED, f"{what} {key}")


def _nested_child(child: dict[str, Any], *, interception_id: UUID, kind: Kind, position: int) -> dict[str, Any]:
    child["interception_id"] = interception_id
    if kind != "model_thoughts" and "id" not in child:
        child["id"] = child_id(interception_id, kind=kind, position=position)
    return child


def _flatten(messages: Mapping[Any, Any], *, at: str) -> Iterator[Validation]:
    """The schema's tree of messages as one validation a field, with its dotted path."""
    for name, below in messages.items():
        path = at.removesuffix(".") if name == "_schema" else f"{at}{name}"
        if isinstance(below, Mapping):
            yield from _flatten(below, at=f"{path}.")
        else:
            yield Validation(_clipped(path) or "body", str(below[0]).rstrip("."))


def _clipped(text: str) -> str:
    # What was sent is told in part at most, and may be what UTF-8 cannot encode: the name of an unknown member, say.
    shown = text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"
    return shown.encode("utf-8", "replace").decode()
