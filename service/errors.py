"""Every refusal the service can give, and which database constraint means which refusal.

One class per refusal: its docstring is the sentence the client reads, `status` the HTTP status. What varies from one
occasion to the next (the detail, the fields that are wrong, the seconds to wait) is data of the instance. How the API
writes them is `answers.envelope`; `middleware` does it for requests, `server` and `connections` for what never became one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Validation:
    """One field that is wrong (a dotted path for a body, the name for a query parameter), and why."""

    field: str
    detail: str


class Refusal(Exception):
    """The request cannot be served."""

    status: ClassVar[int] = 500

    def __init__(
        self, detail: str = "", *, validations: Sequence[Validation] = (), retry_after: int | None = None
    ) -> None:
        self.detail = detail
        self.validations = tuple(validations)
        self.retry_after = retry_after
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The sentence for the client: the first line of the class's docstring."""
        return (type(self).__doc__ or "").partition("\n")[0].strip()


# -- 400 -------------------------------------------------------------------------------------------------------------


class InvalidQueryParameters(Refusal):
    """Query parameters have invalid values."""

    status = 400


class InvalidLimit(Refusal):
    """Invalid pagination limit value."""

    status = 400


class InvalidCursor(Refusal):
    """Invalid pagination cursor."""

    status = 400


class InvalidInterceptionsQuery(Refusal):
    """Invalid interceptions search query."""

    status = 400


class InvalidModelsQuery(Refusal):
    """Invalid models search query."""

    status = 400


class InvalidClientsQuery(Refusal):
    """Invalid clients search query."""

    status = 400


class InvalidJSON(Refusal):
    """Request body must be valid JSON."""

    status = 400


class InvalidBody(Refusal):
    """Validation failed."""

    status = 400


class MalformedRequest(Refusal):
    """The request is not valid HTTP."""

    status = 400


# -- 401, 403 --------------------------------------------------------------------------------------------------------


class SignedOut(Refusal):
    """You are signed out or your session has expired. Please sign in again to continue."""

    status = 401


class RecordingForbidden(Refusal):
    """Only users with the 'owner' or 'recorder' role can record."""

    status = 403


class OwnKeyForbidden(Refusal):
    """Bringing a provider key of one's own is not allowed here."""

    status = 403


class KeyMissing(Refusal):
    """The bridge has no key for this provider."""

    status = 403


class RequestLoggingForbidden(Refusal):
    """Only users with the 'owner' role can toggle request logging."""

    status = 403


class RequestLoggingHidden(Refusal):
    """Only users with the 'owner' or 'auditor' role can read the request logging state."""

    status = 403


# -- 404, 405, 408, 409, 413, 429, 431 ---------------------------------------------------------------------------------


class UnknownPath(Refusal):
    """Route not found."""

    status = 404


class InterceptionNotFound(Refusal):
    """Interception not found."""

    status = 404


class MethodNotAllowed(Refusal):
    """Method not allowed."""

    status = 405


class Conflict(Refusal):
    """The record conflicts with one that is already stored."""

    status = 409


class UsernameTaken(Refusal):
    """A user with that name exists already."""

    status = 409


class UserExists(Refusal):
    """A user with that id exists already."""

    status = 409


class RequestTooSlow(Refusal):
    """The request took too long to arrive."""

    status = 408


class BodyTooLarge(Refusal):
    """Request body is too large."""

    status = 413


class RateExceeded(Refusal):
    """This token has made too many requests. Please try again shortly."""

    status = 429


class TooManyAtOnce(Refusal):
    """This token has too many requests open at once. Please try again shortly."""

    status = 429


class TooManyFailedSignIns(Refusal):
    """Too many sign-ins have failed from this address. Please try again shortly."""

    status = 429


class HeadersTooLarge(Refusal):
    """Request line or headers are too large."""

    status = 431


# -- 500, 502, 503 --------------------------------------------------------------------------------------------------------


class InternalError(Refusal):
    """An internal server error occurred."""

    status = 500


class DatabaseUnavailable(Refusal):
    """The database is unavailable. Please try again shortly."""

    status = 503


class ConnectionLost(DatabaseUnavailable):
    """The database is unavailable. Please try again shortly."""


class Overloaded(Refusal):
    """The service has more to do than it can take on. Please try again shortly."""

    status = 503


class NotReady(Refusal):
    """The service is not ready."""

    status = 503


class TooLarge(Refusal):
    """The answer is too large for the database to compose. Ask for fewer interceptions at once."""

    status = 503


class TookTooLong(Refusal):
    """The database took too long to answer. Ask for less, or try again later."""

    status = 503


class SchemaBehind(Refusal):
    """The database lacks tables that this version needs."""

    status = 503


class ReadOnlyDatabase(Refusal):
    """This service only reads interceptions, from a database that another system owns."""

    status = 503


class Contention(Refusal):
    """The database could not settle writes that met. Please try again."""

    status = 503


class LockedOut(Contention):
    """Another transaction kept what this call needs for too long. Please try again."""


class ProviderUnavailable(Refusal):
    """The provider gave no answer."""

    status = 502


class BreakerOpen(Refusal):
    """The provider has failed several times in a row and is left alone for a while. Please try again shortly."""

    status = 503


class BridgeBusy(Refusal):
    """The bridge has as many requests to this provider open as it may. Please try again shortly."""

    status = 503


class RecordingUnavailable(Refusal):
    """The request cannot be recorded at present, and therefore goes nowhere. Please try again shortly."""

    status = 503


class SpoolFull(RecordingUnavailable):
    """The database is unavailable and the spool is full, so the request goes nowhere. Please try again later."""


# What the database refuses by a constraint, told as the refusal that it means.
CONSTRAINTS: dict[str, type[Refusal]] = {
    "users_username_lower_idx": UsernameTaken,
    "users_pkey": UserExists,
    # A thought that is being recorded met the removal of one of the same instant.
    "aibridge_model_thoughts_identity_idx": Contention,
}
