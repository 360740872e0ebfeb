"""The OpenAPI 3.1 document, made from the route table, the handlers' docstrings, the marshmallow schemas and the refusals.

What these do not tell about a call stands in CALLS, and only there; a test fails where a route has no entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import simplejson
from aiohttp import web
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from marshmallow import Schema, fields

from service import answers, errors, routes
from service.errors import Refusal, Validation
from service.handlers import documents, importing, interceptions, names, operations, recording, request_logging
from service.routes import Handler, Route
from service.schemas import answers as shapes
from service.schemas import examples, queries, records

Described = dict[str, Any]

_DESCRIPTION = """\
An audit log of AI requests. An **interception** is one request that passed a bridge: who caused it, which provider, model
and client, and when. It owns token usages, user prompts and tool usages.

**Paths.** The API is served below each of the `servers`, with the same answers; their URLs are relative to this document.
A path that does not exist is a 404; another method than those listed is a 405, whose header `Allow` names them.

**Sign-in.** A token goes into the header `Coder-Session-Token`, or `Authorization: Bearer`, or the cookie
`coder_session_token`; the first that is present counts. Whoever is not signed in gets a 401 below these paths, whatever
they ask for.

**Errors** are a `Response`, from every layer: a message, and where there is more to say a detail and validations.

**Requests are traced** by `X-Request-Id`: an id of 1 to 64 characters of `[A-Za-z0-9._-]` that a request brings is
answered; else one is made.

**Limits.** An operator may limit how many requests a token makes a second, and how many at once: 429 with `Retry-After`.

**Values.** Instants are RFC 3339, from the year 1 to 9999 in UTC, in which they are answered, and kept to the microsecond.
UUIDs are read in either case and answered in lower case; the all-zero one is none. Text, that of metadata included, cannot
hold U+0000; metadata nests 64 levels at most and holds numbers within the range of double precision. Integers have no
fraction, not even `.0`. Bodies may come compressed (gzip, deflate).
"""

_TAGS = {
    "Interceptions": "What was intercepted, of everyone or of the caller, as their roles allow.",
    "Recording": "What a bridge or an importer calls. Every call can be repeated: the same content changes nothing.",
    "Request logging": "The switch for logging upstream requests.",
    "Operations": "What operators and machines ask, without sign-in.",
}

_SECURITY = {
    "session_token": {"type": "apiKey", "in": "header", "name": "Coder-Session-Token"},
    "bearer": {"type": "http", "scheme": "bearer"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": "coder_session_token"},
}

# Where BRIDGELOG_RATE_LIMIT is set, these are on every answer to whoever is signed in.
_RATE_LIMIT: dict[str, Described] = {
    "RateLimit-Limit": {
        "description": "How many requests the token may make at once.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "RateLimit-Policy": {
        "description": "The same, and after how many seconds of rest all of them are back: `100;w=2`.",
        "schema": {"type": "string"},
    },
    "RateLimit-Remaining": {
        "description": "How many of them are left.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "RateLimit-Reset": {
        "description": "Seconds until all of them are back.",
        "schema": {"type": "integer", "minimum": 0},
    },
}
# The first three are on every answer that they are listed for; of the others it is said when.
_HEADERS: dict[str, Described] = {
    "X-Request-Id": {
        "description": "The id of the request, under which the log tells more.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "Location": {
        "description": "The interception, relative to the request.",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "WWW-Authenticate": {
        "description": "How to sign in.",
        "required": True,
        "schema": {"type": "string", "enum": ["Bearer"]},
    },
    "Link": {
        "description": "The pages around this one (RFC 8288), relative to the request: with `after_id` next, else first, "
        "prev, next and last; none where nothing follows.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds to wait, where waiting helps.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Allow": {"description": "The methods of this path.", "required": True, "schema": {"type": "string"}},
    "ETag": {"description": "For If-None-Match.", "required": True, "schema": {"type": "string"}},
    **_RATE_LIMIT,
}
_HEADERS_OF_STATUS = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    429: ("Retry-After", *_RATE_LIMIT),
    503: ("Retry-After",),
}

# -- The calls -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Content:
    """What an answer or a body consists of: a schema (a marshmallow class, or JSON Schema around such), and examples."""

    schema: Any
    media_type: str = answers.JSON
    examples: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no refusal; its headers by name, X-Request-Id apart, which all have."""

    description: str
    content: Content | None
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """What the route table and the docstring do not tell about a call.

    `refusals` are those of its own: what every call, or every one that asks for sign-in, can refuse is added. `keyed`: it
    reads Idempotency-Key.
    """

    tag: str
    answers: Mapping[int, Answer]
    refusals: tuple[type[Refusal], ...] = ()
    query: type[Schema] | None = None
    body: tuple[Content, ...] = ()
    body_required: bool = True
    keyed: bool = False
    details: str = ""


_EVERYWHERE = (errors.MalformedRequest, errors.HeadersTooLarge, errors.InternalError)
_SIGNED_IN = (
    errors.SignedOut,
    errors.RateExceeded,
    errors.TooManyAtOnce,
    errors.TooManyFailedSignIns,
    errors.DatabaseUnavailable,
    errors.ConnectionLost,
    errors.Overloaded,
    errors.LockedOut,
    errors.SchemaBehind,
    errors.TookTooLong,
    errors.TooLarge,
)
_READING = (errors.InvalidQueryParameters, errors.InvalidLimit)
_WRITING = (errors.InvalidJSON, errors.InvalidBody, errors.RequestTooSlow, errors.BodyTooLarge, errors.ReadOnlyDatabase)
_RECORDING = (errors.RecordingForbidden, *_WRITING, errors.Contention)
# What no call does: a path, or a method, that is not in the route table.
_NO_CALL = (errors.UnknownPath, errors.MethodNotAllowed)

_KEY = {
    "in": "header",
    "name": "Idempotency-Key",
    "schema": {"type": "string"},
    "description": "Records that bring no id get one that depends on this and on nothing random: the same request with "
    "the same key is recognised as a repeat. One key is for one request.",
}
_NAMES = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
_STORED_BEFORE = "Nothing of it was new, or what was stored has been extended."


def _children(schema: type[Schema], example: dict[str, Any], *, details: str = "") -> Call:
    recorded = Content(shapes.ChildIds)
    return Call(
        "Recording",
        {201: Answer("Recorded.", recorded), 200: Answer("All of it was stored before, with this content.", recorded)},
        (*_RECORDING, errors.InterceptionNotFound, errors.Conflict),
        body=(
            Content(
                {"oneOf": [schema, {"type": "array", "items": schema}]},
                examples={"one": example, "several": [example, example | {"created_at": "2025-01-01T10:00:04.5Z"}]},
            ),
        ),
        keyed=schema is not records.ModelThought,
        details="An array is stored whole or not at all. `interception_id`, where it is given, is that of the path. With "
        "an `id` it can be sent again: the same content changes nothing, other content is a 409, whose validations begin "
        f"with the position. {details}",
    )


CALLS: Mapping[Handler, Call] = {
    interceptions.list_interceptions: Call(
        "Interceptions",
        {200: Answer("A page, and how many match in all.", Content(shapes.InterceptionPage), ("Link",))},
        (*_READING, errors.InvalidCursor, errors.InvalidInterceptionsQuery),
        query=queries.PageQuery,
        details="Only those that have ended, and that the caller may see. `q` is made of `key:value` terms; words without "
        "a key mean `initiator`, which is `me`, a username or a UUID. Values that hold spaces or colons are quoted: "
        '`started_after:"2025-01-01T00:00:00Z"`. The cursor of `after_id` is the last interception already seen; one that '
        "the caller cannot see is a 400. Only one of `after_id` and `offset` may be given.",
    ),
    names.list_models: Call(
        "Interceptions",
        {200: Answer("The names.", Content(_NAMES))},
        (*_READING, errors.InvalidModelsQuery),
        query=queries.NamesQuery,
        details="`q` is the beginning of a name, alone or as `model:…`; one that holds spaces or colons is quoted.",
    ),
    names.list_clients: Call(
        "Interceptions",
        {200: Answer("The names.", Content(_NAMES))},
        (*_READING, errors.InvalidClientsQuery),
        query=queries.NamesQuery,
        details="`q` is the beginning of a name, alone or as `client:…`; one that holds spaces or colons is quoted.",
    ),
    request_logging.get_request_logging: Call(
        "Request logging",
        {200: Answer("The state.", Content(shapes.RequestLoggingState))},
        (errors.RequestLoggingHidden, errors.ReadOnlyDatabase),
    ),
    request_logging.set_request_logging: Call(
        "Request logging",
        {200: Answer("The state is as asked.", Content(shapes.Response))},
        (errors.RequestLoggingForbidden, *_WRITING),
        body=(Content(records.RequestLogging, examples={"on": {"enabled": True}, "off": {"enabled": False}}),),
    ),
    recording.record_interception: Call(
        "Recording",
        {
            201: Answer("Recorded.", Content(shapes.Interception), ("Location",)),
            200: Answer(_STORED_BEFORE, Content(shapes.Interception), ("Location",)),
        },
        (*_RECORDING, errors.Conflict),
        body=(
            Content(records.InterceptionBody, examples={"running": examples.RUNNING, "finished": examples.FINISHED}),
        ),
        keyed=True,
        details="What is read can be recorded. `initiator` creates the user or refreshes their names; both it and "
        "`initiator_id` must name the same one. `ended_at` is not before `started_at`, and `interception_id` in what is "
        "nested equals `id`. Other content than what is stored under an id is a 409, as is the username of another user.",
    ),
    importing.import_interceptions: Call(
        "Recording",
        {200: Answer("The stream was read to its end.", Content(shapes.ImportReport))},
        (errors.RecordingForbidden, errors.RequestTooSlow, errors.ReadOnlyDatabase, errors.Contention),
        body=(
            Content(
                {"type": "string", "description": "One interception a line, each with its `ended_at`."},
                media_type="application/x-ndjson",
                examples={"one line": simplejson.dumps(examples.FINISHED, separators=(",", ":")) + "\n"},
            ),
            Content(
                {"type": "array", "items": {"allOf": [records.InterceptionBody, {"required": ["ended_at"]}]}},
                examples={"array": [examples.FINISHED]},
            ),
        ),
        body_required=False,
        details="NDJSON and a JSON array are told apart by the first character, of any length. A record that is invalid, "
        "unfinished or in conflict, or has over 16 MiB, rejects itself in the report, not its neighbours. "
        "Missing users are created; those that exist are not changed.",
    ),
    recording.record_token_usages: _children(records.TokenUsage, examples.TOKEN_USAGE),
    recording.record_user_prompts: _children(records.UserPrompt, examples.USER_PROMPT),
    recording.record_tool_usages: _children(records.ToolUsage, examples.TOOL_USAGE),
    recording.record_model_thoughts: _children(
        records.ModelThought,
        examples.MODEL_THOUGHT,
        details="A thought has no id: one that is stored already changes nothing.",
    ),
    recording.end_interception: Call(
        "Recording",
        {200: Answer("It has ended.", Content(shapes.Interception), ("Location",))},
        (*_RECORDING, errors.InterceptionNotFound, errors.Conflict),
        body=(Content(records.EndBody, examples={"end": examples.END}),),
        details="The first end wins: the same again changes nothing, another is a 409. One before the start is a 400. "
        "`metadata` is merged into that of the interception.",
    ),
    operations.healthz: Call("Operations", {200: Answer("It is alive.", Content(shapes.Status))}),
    operations.readyz: Call(
        "Operations",
        {200: Answer("It is ready.", Content(shapes.Status))},
        (errors.NotReady, errors.Overloaded, errors.SchemaBehind, errors.TookTooLong, errors.TooLarge),
    ),
    operations.metrics: Call(
        "Operations", {200: Answer("The metrics.", Content({"type": "string"}, media_type="text/plain"))}
    ),
    documents.openapi: Call("Operations", {200: Answer("This document.", Content({"type": "object"}))}),
    documents.docs: Call(
        "Operations",
        {
            200: Answer("The page.", Content({"type": "string"}, media_type="text/html"), ("ETag",)),
            304: Answer("The one that the client has is current.", None, ("ETag",)),
        },
    ),
    documents.docs_asset: Call(
        "Operations",
        {
            200: Answer("The file.", Content({"type": "string"}, media_type="text/*"), ("ETag",)),
            304: Answer("The one that the client has is current.", None, ("ETag",)),
        },
    ),
}

_PATH_PARAMETERS: Mapping[str, Described] = {
    "interception_id": {
        "description": "The id of an interception; anything but a UUID is a path that does not exist.",
        "schema": {"type": "string", "format": "uuid"},
        "example": examples.RUNNING_ID,
    },
    "asset": {
        "description": "The name of the file.",
        "schema": {"type": "string", "enum": list(documents.ASSETS)},
        "example": "init.js",
    },
}
# The page fills them into its forms, so they go together.
_QUERY_EXAMPLES: Mapping[tuple[type, str], Any] = {
    (queries.PageQuery, "q"): examples.QUERY,
    (queries.PageQuery, "limit"): 25,
    (queries.NamesQuery, "limit"): 25,
}


# -- Making it -------------------------------------------------------------------------------------------------------


def document() -> Described:
    """The document, as JSON values. Raises KeyError on a route without an entry in CALLS."""
    plugin = _Plugin(schema_name_resolver=_component_name)
    spec = APISpec(
        title="bridgelog",
        version=version("bridgelog"),
        openapi_version="3.1.0",
        plugins=[plugin],
        info={"description": _DESCRIPTION, "license": {"name": "MIT", "identifier": "MIT"}},
        servers=[{"url": prefix.removeprefix("/")} for prefix in routes.PREFIXES],
        security=[{name: []} for name in _SECURITY],
        tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
    )
    for name, scheme in _SECURITY.items():
        spec.components.security_scheme(name, scheme)
    for name, header in _HEADERS.items():
        spec.components.header(name, header)
    for refusal in _NO_CALL:
        _refused(spec, (refusal,))
    for route in routes.API:
        _add(spec, route, common=(*_EVERYWHERE, *_SIGNED_IN))
    for route in routes.OPERATIONS:
        _add(spec, route, common=_EVERYWHERE, outside={"servers": [{"url": "."}], "security": []})
    described: Described = spec.to_dict()
    return described


@cache
def document_text() -> bytes:
    """The document as UTF-8 JSON text."""
    return answers.dump(document())


class _Converter(OpenAPIConverter):
    """apispec's, and what it cannot know of the fields and bodies of `service.schemas`."""

    def schema2jsonschema(self, schema: Any) -> Described:
        described: Described = super().schema2jsonschema(schema)  # type: ignore[no-untyped-call]  # apispec leaves it untyped
        kind = schema if isinstance(schema, type) else type(schema)
        described["description"] = " ".join((kind.__doc__ or "").split())
        if kind is records.InterceptionBody:
            described["anyOf"] = [{"required": ["initiator_id"]}, {"required": ["initiator"]}]
        return described

    def field2property(self, field: fields.Field[Any]) -> Described:
        described: Described = super().field2property(field)
        match field:
            case records.Text() if isinstance(field.root, records.Body):
                described["pattern"] = "^[^\\u0000]*$"
            case records.Tokens():
                described |= {"format": "int64", "minimum": 0, "maximum": 2**63 - 1}
            case _ if isinstance(field.parent, (queries.PageQuery, queries.NamesQuery)):
                # What absent means is in their descriptions; as a default it would be filled into forms, or read as null.
                described.pop("default", None)
                if isinstance(described["type"], list):
                    described["type"] = described["type"][0]
        return described

    def _field2parameter(self, field: fields.Field[Any], *, name: str, location: str) -> Described:
        described: Described = super()._field2parameter(field, name=name, location=location)
        described["allowEmptyValue"] = True
        example = _QUERY_EXAMPLES.get((field.parent.__class__, name))
        return described if example is None else described | {"example": example}


class _Plugin(MarshmallowPlugin):
    Converter = _Converter


def _component_name(schema: Any) -> str:
    """A schema's name in the document: its class's, and that of a body ends in Body, since answers share the other."""
    kind: type[Schema] = schema if isinstance(schema, type) else type(schema)
    return kind.__name__.removesuffix("Body") + "Body" if issubclass(kind, records.Body) else kind.__name__


def _add(
    spec: APISpec, route: Route, *, common: Sequence[type[Refusal]], outside: Mapping[str, Any] | None = None
) -> None:
    call = CALLS[route.handler]
    resource = web.DynamicResource(route.path)
    summary = " ".join((route.handler.__doc__ or "").split("\n\n")[0].split())
    operation: Described = {
        "operationId": route.handler.__name__,
        "tags": [call.tag],
        "summary": summary.removesuffix("."),
        **({"description": call.details.strip()} if call.details else {}),
        **(outside or {}),
    }
    parameters = [
        {"in": "path", "name": name, "required": True, **described}
        for name, described in _PATH_PARAMETERS.items()
        if f"{{{name}}}" in resource.canonical
    ]
    if call.query:
        parameters.append({"in": "query", "schema": call.query})
    if call.keyed:
        parameters.append(_KEY)
    if parameters:
        operation["parameters"] = parameters
    if call.body:
        operation["requestBody"] = {
            "required": call.body_required,
            "content": {content.media_type: _content(content) for content in call.body},
        }
    by_status: dict[int, list[type[Refusal]]] = {}
    unknown = (errors.UnknownPath,) if "{" in resource.canonical else ()
    for refusal in (*common, *call.refusals, *unknown):
        by_status.setdefault(refusal.status, []).append(refusal)
    responses = {status: _answered(answer) for status, answer in call.answers.items()}
    responses |= {status: {"$ref": _refused(spec, refusals)} for status, refusals in by_status.items()}
    operation["responses"] = {str(status): responses[status] for status in sorted(responses)}
    spec.path(path=resource.canonical, operations={route.method.lower(): operation})


def _answered(answer: Answer) -> Described:
    described: Described = {"description": answer.description, "headers": _headers(answer.headers)}
    if answer.content:
        described["content"] = {answer.content.media_type: _content(answer.content)}
    return described


def _refused(spec: APISpec, refusals: Sequence[type[Refusal]]) -> str:
    """Where the answer that stands for these refusals, of one status, is described; it is shared between calls."""
    name = "Or".join(refusal.__name__ for refusal in refusals)
    if name not in spec.components.responses:
        status = HTTPStatus(refusals[0].status)
        content = Content(shapes.Response, examples={refusal.__name__: _example(refusal) for refusal in refusals})
        spec.components.response(
            name,
            {
                "description": "\n".join(
                    [f"{status.phrase}:", "", *(f"- {refusal().message}" for refusal in refusals)]
                ),
                "headers": _headers(_HEADERS_OF_STATUS.get(status, ())),
                "content": {answers.JSON: _content(content)},
            },
        )
    return f"#/components/responses/{name}"


def _example(refusal: type[Refusal]) -> Described:
    wrong = {
        errors.InvalidBody: [Validation("model", "is required")],
        errors.InvalidQueryParameters: [Validation("after_id", 'Query param "after_id" must be a valid uuid')],
        errors.Conflict: [Validation("model", "differs from what is stored under this id")],
    }
    return answers.envelope(refusal(validations=wrong.get(refusal, ())))


def _headers(wanted: Sequence[str]) -> Described:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *wanted)}


def _content(content: Content) -> Described:
    described: Described = {"schema": content.schema}
    if content.examples:
        described["examples"] = {name: {"value": value} for name, value in content.examples.items()}
    return described
