"""Sign-in: from a token to the caller, and what that caller may see and do."""

from __future__ import annotations

import asyncio
import hmac
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeVar
from uuid import UUID

import structlog

from service import errors
from service.db import Connection, Database
from service.limits import Rate
from service.peers import Address, neighbourhood
from service.store import tokens
from service.store.users import NOBODY

T = TypeVar("T")

log = structlog.get_logger("bridgelog.auth")

# A token that was seen valid is not looked up again for this long: what is revoked or suspended, by whatever means, is out
# within the second that the API promises.
_TRUSTED_SECONDS = 0.5
_MOST_REMEMBERED = 10_000
# For how long the bridge waits for the database where it could do without.
_GRACE_PATIENCE = 2.0
# How long a guess takes from an address that has made too many, and how many of one address may wait.
_DELAY_SECONDS = 1.0
_MOST_DELAYED_OF_ONE = 20
_SIGN_IN = frozenset({"active", "dormant"})
_TOUCH_AFTER = timedelta(minutes=5)

_BEARER = re.compile(r"bearer +(.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling. `visible_to` is the condition on what they read: None everything, else that initiator's only."""

    token_id: str
    user_id: UUID
    roles: frozenset[str]
    visible_to: UUID | None

    @property
    def can_record(self) -> bool:
        """Whether they may record interceptions."""
        return not self.roles.isdisjoint({"owner", "recorder"})

    @property
    def can_toggle(self) -> bool:
        """Whether they may turn request logging on and off."""
        return "owner" in self.roles

    @property
    def can_audit(self) -> bool:
        """Whether they may read everything."""
        return self.visible_to is None

    @property
    def known_to(self) -> UUID | None:
        """Whose username they may ask for: None everyone's, else only their own."""
        return None if self.can_audit else self.user_id


def visible_to(user_id: UUID, roles: frozenset[str], *, member_read: Literal["own", "none"]) -> UUID | None:
    """Whose interceptions a user with these roles reads: None for everyone's, NOBODY for none."""
    if roles & {"owner", "auditor"}:
        return None
    if roles - {"member"} == {"recorder"} or member_read == "none":
        return NOBODY
    return user_id


def presented_token(headers: Mapping[str, str], cookies: Mapping[str, str], *, safe: bool) -> str | None:
    """The token of a request: header Coder-Session-Token, else bearer, else cookie; None where there is none.

    A browser adds a cookie by itself, also to a form that another site has made it send: a request that is not `safe` (RFC
    9110) is not signed in by that. Raises SignedOut then.
    """
    if token := headers.get("Coder-Session-Token", "").strip():
        return token
    if bearer := _BEARER.fullmatch(headers.get("Authorization", "").strip()):
        return bearer[1]
    cookie = cookies.get("coder_session_token")
    if cookie and not safe and _is_from_elsewhere(headers):
        raise errors.SignedOut(
            "The cookie does not sign in what another site sends: send the token in the header Coder-Session-Token."
        )
    return cookie or None


def _is_from_elsewhere(headers: Mapping[str, str]) -> bool:
    if site := headers.get("Sec-Fetch-Site"):
        return site not in {"same-origin", "none"}
    origin = headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != headers.get("Host")


class Authenticator:
    """Tells who holds a token. One per process; it trusts what it saw valid for half a second.

    Whatever is presented, one statement at a time looks tokens up, for everyone who waits: a flood of guesses costs the
    database one connection. From an address with too many `failures`, a token that this process has not seen valid
    waits a second before that, and one that is wrong is refused as one too many. Who waits keeps a connection: beyond
    twenty of one address, and `most_delayed` in all, such tokens are refused unseen.
    """

    def __init__(
        self,
        database: Database,
        *,
        member_read: Literal["own", "none"],
        failures: Rate | None = None,
        most_delayed: int = _MOST_DELAYED_OF_ONE,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        grace: float = 0.0,
    ) -> None:
        self._database = database
        self._member_read = member_read
        self._failures = failures
        self._sleep = sleep
        self._delayed: Counter[Hashable] = Counter()
        self._most_delayed = most_delayed
        self._grace = grace
        self._away_at = -math.inf
        self._late: asyncio.Task[Caller] | None = None
        # Who was seen valid, and not seen invalid since; when, and until when the token is valid.
        self._trusted: OrderedDict[str, tuple[float, datetime, Caller]] = OrderedDict()
        # Ids that nobody has, and when they were asked for: none of them becomes somebody's.
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._batch: tuple[set[str], asyncio.Task[tuple[float, dict[str, tokens.Token]]]] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def authenticate(self, text: str | None, *, address: Address | None = None) -> Caller:
        """The caller who holds this token; raises SignedOut, whose detail tells what is the matter.

        Raises TooManyFailedSignIns where it is not genuine, and too many from this address have not been either.
        """
        if text is None:
            raise errors.SignedOut(
                "There is no token: send one in the header Coder-Session-Token, as Authorization: Bearer, "
                "or in the cookie coder_session_token."
            )
        trusted = self._trusted.get(text)
        if trusted and _is_fresh(trusted[0]) and datetime.now(UTC) < trusted[1]:
            return trusted[2]
        return await self._examine(text, neighbourhood(address))

    async def authenticate_for_bridge(self, text: str | None, *, address: Address | None = None) -> Caller:
        """As `authenticate`; while the database cannot be reached, also those whom it saw valid within the grace.

        A database that has not answered for two seconds counts as such until it does; what it then says, holds.
        """
        if self._in_grace(text) is None or _is_fresh(self._trusted[text or ""][0]):
            return await self.authenticate(text, address=address)
        if self._late is None and time.monotonic() - self._away_at >= _TRUSTED_SECONDS:
            asking = asyncio.create_task(self.authenticate(text, address=address))
            asking.add_done_callback(self._answered)
            await asyncio.wait({asking}, timeout=_GRACE_PATIENCE)
            if not asking.done():
                self._late = asking
            elif not isinstance(asking.exception(), errors.DatabaseUnavailable):
                return asking.result()
        if caller := self._in_grace(text):
            return caller
        raise errors.DatabaseUnavailable(retry_after=2)

    def _in_grace(self, text: str | None) -> Caller | None:
        seen_at, expires_at, caller = self._trusted.get(text or "", (-math.inf, datetime.min.replace(tzinfo=UTC), None))
        return caller if time.monotonic() - seen_at < self._grace and datetime.now(UTC) < expires_at else None

    def _answered(self, asking: asyncio.Task[Caller]) -> None:
        if asking is self._late:
            self._late = None
        if not asking.cancelled() and isinstance(asking.exception(), errors.DatabaseUnavailable):
            self._away_at = time.monotonic()

    async def _examine(self, text: str, source: Hashable) -> Caller:
        parts = tokens.split(text)
        if parts is None:
            raise errors.SignedOut(
                f"The token is malformed: it has {tokens.ID_LENGTH} characters, a dash, and {tokens.SECRET_LENGTH} more, "
                "all of them letters and digits."
            )
        token_id, hashed_secret = parts
        if self._failures and text not in self._trusted and not self._failures.look(source).granted:
            await self._delay(source)
        seen_at, token = await self._look_up(token_id)
        # An unknown id costs the same comparison as a wrong secret, and is answered with the same words.
        genuine = hmac.compare_digest(hashed_secret, token.hashed_secret if token else bytes(len(hashed_secret)))
        now = datetime.now(UTC)
        usable = token is not None and token.expires_at > now and not token.deleted and token.status in _SIGN_IN
        if not (genuine and usable):
            self._trusted.pop(text, None)
        if token is None or not genuine:
            if self._failures and not (standing := self._failures.take(source)).granted:
                raise errors.TooManyFailedSignIns("The token is invalid.", retry_after=standing.retry_after)
            raise errors.SignedOut("The token is invalid.")
        if token.expires_at <= now:
            raise errors.SignedOut("The token has expired: ask for a new one.")
        if token.deleted:
            raise errors.SignedOut("The user of this token is deleted.")
        if token.status not in _SIGN_IN:
            raise errors.SignedOut("The user of this token is suspended.")
        known = self._trusted.get(text)
        if known and known[0] == seen_at:
            return known[2]  # another request has come this far with what the same look-up found
        caller = Caller(
            token_id=token_id,
            user_id=token.user_id,
            roles=token.roles,
            visible_to=visible_to(token.user_id, token.roles, member_read=self._member_read),
        )
        _remember(self._trusted, text, (seen_at, token.expires_at, caller))
        if now - token.last_used > _TOUCH_AFTER:
            await self._touch(token_id, now)
        return caller

    async def _delay(self, source: Hashable) -> None:
        if self._delayed[source] >= _MOST_DELAYED_OF_ONE or self._delayed.total() >= self._most_delayed:
            raise errors.TooManyFailedSignIns(retry_after=math.ceil(_DELAY_SECONDS))
        self._delayed[source] += 1
        try:
            await self._sleep(_DELAY_SECONDS)
        finally:
            self._delayed[source] -= 1
            if not self._delayed[source]:
                del self._delayed[source]

    async def _look_up(self, token_id: str) -> tuple[float, tokens.Token | None]:
        """The token of that id, and when it was so."""
        asked_at = self._unknown.get(token_id)
        if asked_at is not None and _is_fresh(asked_at):
            return asked_at, None
        if self._batch is None:
            wanted: set[str] = set()
            reading = asyncio.create_task(self._read(wanted))
            # Its failure is told to all who wait; where they have all gone, to nobody.
            reading.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._batch = (wanted, reading)
        wanted, reading = self._batch
        wanted.add(token_id)
        seen_at, found = await asyncio.shield(reading)
        return seen_at, found.get(token_id)

    async def _read(self, wanted: set[str]) -> tuple[float, dict[str, tokens.Token]]:
        """What `wanted` has become once it is this one's turn, by one statement."""

        async def find(connection: Connection) -> tuple[float, dict[str, tokens.Token]]:
            self._batch = None  # who comes from here on is in the next one
            seen_at = time.monotonic()
            return seen_at, await tokens.find(connection, token_ids=wanted)

        async with self._one_at_a_time:
            try:
                seen_at, found = await self._database.read(find)
            finally:
                if self._batch and self._batch[0] is wanted:
                    self._batch = None
        for token_id in wanted - found.keys():
            _remember(self._unknown, token_id, seen_at)
        return seen_at, found

    async def _touch(self, token_id: str, now: datetime) -> None:
        if not self._database.writable:
            return
        try:
            async with self._database.transaction() as connection:
                await tokens.touch(connection, token_id=token_id, used_at=now)
        except errors.Refusal as problem:
            log.warning("could not note when a token was last used", token_id=token_id, reason=problem.message)


def _remember(memory: OrderedDict[str, T], key: str, value: T) -> None:
    """Whoever was seen longest ago makes room."""
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > _MOST_REMEMBERED:
        memory.popitem(last=False)


def _is_fresh(seen_at: float) -> bool:
    return time.monotonic() - seen_at < _TRUSTED_SECONDS
