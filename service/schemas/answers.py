"""The shapes of answers, for the OpenAPI document. Nothing is dumped through them; tests hold real answers against them.

The members of an interception are the columns of sql/interceptions/list_matching.sql.
"""

from __future__ import annotations

from marshmallow import RAISE, Schema, fields
from marshmallow.validate import OneOf, Range

from service.schemas.records import Array, Flag, Identifier, Instant, Metadata, Text, Tokens


class Answer(Schema):
    """What all answers have in common: they hold every member that is described, and no other."""

    class Meta:
        unknown = RAISE


class User(Answer):
    """A user; one who has no row in users has empty names."""

    id = Identifier(required=True)
    username = Text(required=True)
    name = Text(required=True)
    avatar_url = Text(required=True)


class _Child(Answer):
    id = Identifier(required=True)
    interception_id = Identifier(required=True)
    provider_response_id = Text(required=True)
    metadata = Metadata(required=True)
    created_at = Instant(required=True)


class TokenUsage(_Child):
    """Tokens that one upstream answer used."""

    input_tokens = Tokens(required=True, metadata={"description": "Tokens sent, cached ones left out."})
    output_tokens = Tokens(required=True, metadata={"description": "Tokens received."})
    cache_read_input_tokens = Tokens(
        required=True, metadata={"description": "Tokens read from the provider's cache; 0 where unknown."}
    )
    cache_write_input_tokens = Tokens(required=True, metadata={"description": "Tokens written to it; 0 where unknown."})


class ToolUsage(_Child):
    """A tool call that the model made."""

    server_url = Text(required=True, metadata={"description": "The MCP server of the tool; empty where there is none."})
    tool = Text(required=True)
    input = Text(required=True)
    injected = Flag(required=True, metadata={"description": "Whether the bridge added the tool to the request."})
    invocation_error = Text(required=True, metadata={"description": "Empty where there is none."})


class UserPrompt(_Child):
    """What the user asked."""

    prompt = Text(required=True)


class Interception(Answer):
    """One AI request that passed a bridge, and what it owns, oldest first."""

    id = Identifier(required=True)
    initiator_id = Identifier(required=True)
    initiator = fields.Nested(User, required=True)
    api_key_id = Text(required=True, allow_none=True)
    provider = Text(required=True)
    provider_name = Text(required=True)
    model = Text(required=True)
    client = Text(required=True, allow_none=True)
    metadata = Metadata(required=True)
    started_at = Instant(required=True)
    ended_at = Instant(
        required=True, allow_none=True, metadata={"description": "Null while it runs; lists hold ended ones only."}
    )
    token_usages = Array(fields.Nested(TokenUsage), required=True)
    tool_usages = Array(fields.Nested(ToolUsage), required=True)
    user_prompts = Array(fields.Nested(UserPrompt), required=True)


class InterceptionPage(Answer):
    """A page of interceptions, newest first."""

    results = Array(fields.Nested(Interception), required=True)
    total = fields.Integer(
        required=True, strict=True, validate=Range(min=0), metadata={"description": "How many match in all."}
    )
    count = fields.Integer(
        required=True, strict=True, validate=Range(min=0), metadata={"description": "The same number."}
    )


class ChildIds(Answer):
    """The ids of what was recorded, in the order sent; none for model thoughts, which have no ids."""

    ids = Array(Identifier(), required=True)


class Validation(Answer):
    """One field that is wrong (a dotted path for a body, the name for a query parameter), and why."""

    field = Text(required=True)
    detail = Text(required=True)


class Response(Answer):
    """A message: what every error is, and what a call says that has nothing else to tell."""

    message = Text(required=True, metadata={"description": "A full sentence."})
    detail = Text(metadata={"description": "What more there is to say."})
    validations = Array(fields.Nested(Validation), metadata={"description": "What is wrong, field by field."})


class RejectedRecord(Answer):
    """A record that an import did not store."""

    line = fields.Integer(
        required=True,
        strict=True,
        validate=Range(min=1),
        metadata={"description": "Counts from 1, blank lines too; in a JSON array it is the element."},
    )
    message = Text(required=True)
    validations = Array(fields.Nested(Validation), required=True)


class ImportReport(Answer):
    """What became of the records of an import."""

    imported = fields.Integer(
        required=True, strict=True, validate=Range(min=0), metadata={"description": "New, or extended."}
    )
    unchanged = fields.Integer(
        required=True, strict=True, validate=Range(min=0), metadata={"description": "Stored before, with this content."}
    )
    rejected_total = fields.Integer(required=True, strict=True, validate=Range(min=0))
    rejected = Array(fields.Nested(RejectedRecord), required=True, metadata={"description": "The first 1,000 of them."})


class RequestLoggingState(Answer):
    """Whether upstream requests are logged; since when and by whom is null before the first change."""

    enabled = Flag(required=True)
    changed_at = Instant(required=True, allow_none=True)
    changed_by = Identifier(required=True, allow_none=True, metadata={"description": "The id of a user."})


class Status(Answer):
    """How the process is."""

    status = fields.String(required=True, validate=OneOf(["ok", "ready"]))
