"""The search language of the query parameter `q`: text to a filter, or to every reason why it is none.

    query   =  *" " [ term *( 1*" " term ) ] *" "
    term    =  word / key 1*":" value             ; a word is a value of the call's default key
    word, key, value  =  1*( plain / quoted )     ; double quotes at either end are taken off
    plain   =  any character except space (U+0020), ":" and the double quote
    quoted  =  <"> *( any character except <"> ) ( <"> / end of the query )

A quoted term is thereby a word, whatever colons it holds: `"a:b"`. There is no escape character. The words of a query,
wherever they stand, are joined with single spaces and count as one value; empty ones count as nothing. Keys are read
in lower case, values as they are typed.

A query that breaks the grammar is refused with its first mistake alone, on the field `q`. Otherwise all values that are
wrong are reported together, each on its key: first the keys of the call in their own order, then the unknown ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

from service import instants
from service.errors import InvalidClientsQuery, InvalidInterceptionsQuery, InvalidModelsQuery, Refusal, Validation
from service.identifiers import parse_uuid

MAX_LENGTH = 8192
"""The most characters that a query may have."""

_NO_UUID = UUID(int=0)


@dataclass(frozen=True, slots=True)
class InterceptionFilter:
    """Which interceptions are wanted: those that agree with each member that is not None.

    Both instants are inclusive bounds of when it started. The client `Unknown` also stands for having none.
    """

    initiator_id: UUID | None = None
    provider: str | None = None
    provider_name: str | None = None
    model: str | None = None
    client: str | None = None
    started_after: datetime | None = None
    started_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class InterceptionSearch:
    """A query that has been read, save for its initiator: `me` takes the caller to settle, a username the database.

    Whoever holds one looks up `username`, if there is one, and calls `resolve`: the only way to the filter, and the
    place where mistakes are raised, since an unknown username is reported together with all the others.

        asked = search.parse_interceptions(q)
        user_id = await users.find_id(connection, username=asked.username) if asked.username is not None else None
        wanted = asked.resolve(caller_id=caller.id, user_id=user_id)
    """

    username: str | None
    by_caller: bool
    others: InterceptionFilter
    validations: tuple[Validation, ...]

    def resolve(self, *, caller_id: UUID, user_id: UUID | None) -> InterceptionFilter:
        """The filter. `user_id` is whom `username` names, as far as the caller may know; None where nobody.

        Raises `InvalidInterceptionsQuery` with everything that is wrong.
        """
        validations = self.validations
        if self.username is not None and user_id is None:
            detail = (
                f'Query param "initiator" has invalid value: user "{self.username}" either does not exist, '
                "or you are unauthorized to view them"
            )
            validations = (Validation("initiator", detail), *validations)  # in front, as the first of the keys
        if validations:
            raise InvalidInterceptionsQuery(validations=validations)
        if self.by_caller:
            return replace(self.others, initiator_id=caller_id)
        if self.username is not None:
            return replace(self.others, initiator_id=user_id)
        return self.others


def parse_interceptions(q: str) -> InterceptionSearch:
    """Read a query of …/interceptions; words without a key mean `initiator`.

    Raises `InvalidInterceptionsQuery` for a query that breaks the grammar or is too long; wrong values are raised by
    the search's `resolve`.
    """
    values = _Values(q, default_key="initiator", refusal=InvalidInterceptionsQuery)
    initiator = values.text("initiator")
    initiator_id = parse_uuid(initiator) if initiator is not None else None
    by_caller = initiator == "me"
    others = InterceptionFilter(
        initiator_id=initiator_id if initiator_id != _NO_UUID else None,
        provider=values.text("provider"),
        provider_name=values.text("provider_name"),
        model=values.text("model"),
        client=values.text("client"),
        started_after=values.instant("started_after"),
        started_before=values.instant("started_before"),
    )
    if others.started_after and others.started_before and others.started_before <= others.started_after:
        values.refuse(
            "started_before",
            'Query param "started_before" has invalid value: "started_before" must be after "started_after" if set',
        )
    values.refuse_unknown_keys()
    return InterceptionSearch(
        username=initiator if initiator_id is None and not by_caller else None,
        by_caller=by_caller,
        others=others,
        validations=tuple(values.validations),
    )


def parse_prefix(q: str, *, key: Literal["model", "client"]) -> str:
    """Read a query of …/models or …/clients, whose one key words without a key mean too: the prefix asked for.

    The empty prefix is no filter. Raises `InvalidModelsQuery` or `InvalidClientsQuery`.
    """
    refusal = InvalidModelsQuery if key == "model" else InvalidClientsQuery
    values = _Values(q, default_key=key, refusal=refusal)
    prefix = values.text(key)
    values.refuse_unknown_keys()
    if values.validations:
        raise refusal(validations=values.validations)
    return prefix or ""


class _Values:
    """The values of a query, taken key by key, and the validations that this gives rise to."""

    def __init__(self, q: str, *, default_key: str, refusal: type[Refusal]) -> None:
        """Raise `refusal` for a query that is too long or breaks the grammar."""
        self.validations: list[Validation] = []
        try:
            self._given = _read_terms(q, default_key=default_key)
        except _GrammarError as error:
            raise refusal(validations=[Validation("q", str(error))]) from None

    def refuse(self, key: str, detail: str) -> None:
        self.validations.append(Validation(key, detail))

    def text(self, key: str) -> str | None:
        """Take the one value of `key`; None where it is not given, empty, or refused."""
        given = self._given.pop(key, [])
        if len(given) > 1:
            self.refuse(
                key,
                f'Query param "{key}" provided more than once, found {len(given)} times. '
                "Only provide 1 instance of this query param.",
            )
            return None
        value = given[0] if given else ""
        if _printable(value) != value or "\0" in value:
            self.refuse(
                key,
                f'Query param "{key}" must not contain U+0000 or unpaired surrogates. '
                "Remove them, and percent-encode the query as UTF-8.",
            )
            return None
        return value or None

    def instant(self, key: str) -> datetime | None:
        """Take the one value of `key` as an instant; None where `text` says so, or refused."""
        value = self.text(key)
        if value is None:
            return None
        value = value.upper()
        try:
            return instants.parse(value)
        except instants.InstantError as error:
            self.refuse(
                key,
                f'Query param "{key}" must be a valid date format ({instants.LAYOUT}): '
                f'parsing time "{value}" as "{instants.LAYOUT}": {error}',
            )
            return None

    def refuse_unknown_keys(self) -> None:
        """Refuse each key that has not been taken, once, in the order in which they were typed."""
        for key in dict.fromkeys(map(_printable, self._given)):
            self.refuse(key, f'"{key}" is not a valid query param')


class _GrammarError(Exception):
    """The query cannot be taken apart; the message is for the client."""


def _read_terms(q: str, *, default_key: str) -> dict[str, list[str]]:
    """The values of each key in the order typed, those of unknown keys too."""
    if len(q) > MAX_LENGTH:
        raise _GrammarError(
            f'Query param "q" must not exceed {MAX_LENGTH} characters, found {len(q)}. Use fewer or shorter terms.'
        )
    given: dict[str, list[str]] = {}
    words: list[str] = []
    for term in filter(None, _split_outside_quotes(q, " ")):
        parts = _split_outside_quotes(term, ":")
        if not parts[0] or not parts[-1]:
            raise _GrammarError(f"Query element \"{_printable(term)}\" cannot start or end with ':'")
        match [part.strip('"') for part in parts if part]:
            case [word]:
                words.append(word)
            case [key, value]:
                given.setdefault(key.lower(), []).append(value)
            case _:
                raise _GrammarError(f"Query element \"{_printable(term)}\" can only contain 1 ':'")
    if any(words):
        given.setdefault(default_key, []).append(" ".join(filter(None, words)))
    return given


def _split_outside_quotes(text: str, separator: str) -> list[str]:
    """`text.split(separator)`, except that separators between double quotes, or after an open one, do not count."""
    parts = []
    start = 0
    quoted = False
    for position, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif character == separator and not quoted:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _printable(text: str) -> str:
    """`text`, fit to be sent: an unpaired surrogate, which UTF-8 cannot hold, reads `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")
