"""Tokens: `ID-SECRET`, of which the database keeps the id and the SHA-256 of the secret."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from service.db import Connection

ID_LENGTH = 10
SECRET_LENGTH = 22
# `expires_at` is never null in this table: a token without a term ends with the calendar.
NEVER = datetime.fromisoformat("9999-12-31T00:00:00Z")

_ALPHABET = string.digits + string.ascii_letters
_FORM = re.compile(rf"([0-9A-Za-z]{{{ID_LENGTH}}})-([0-9A-Za-z]{{{SECRET_LENGTH}}})")


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the database knows it, and the user it signs in."""

    hashed_secret: bytes
    expires_at: datetime
    last_used: datetime
    user_id: UUID
    status: str
    deleted: bool
    roles: frozenset[str]


def random_text(length: int) -> str:
    """So many letters and digits, each as likely as any other, that nobody can foretell."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def split(text: str) -> tuple[str, bytes] | None:
    """The id and the hash of the secret of a token; None if the text does not have a token's form."""
    form = _FORM.fullmatch(text)
    return (form[1], hashlib.sha256(form[2].encode()).digest()) if form else None


async def find(connection: Connection, *, token_ids: Collection[str]) -> dict[str, Token]:
    """The tokens of those ids by their id, whatever their state; of the others there is none."""
    return {
        row["id"]: Token(
            hashed_secret=row["hashed_secret"],
            expires_at=row["expires_at"],
            last_used=row["last_used"],
            user_id=row["user_id"],
            status=row["status"],
            deleted=row["deleted"],
            roles=frozenset(row["roles"] or ()),
        )
        for row in await connection.rows("tokens/find_tokens", token_ids=list(token_ids))
    }


async def touch(connection: Connection, *, token_id: str, used_at: datetime) -> None:
    """Note when a token was last used."""
    await connection.run("tokens/touch_token", token_id=token_id, used_at=used_at)


async def create(connection: Connection, *, user_id: UUID, created_at: datetime, expires_at: datetime = NEVER) -> str:
    """A new token, whole: this is the only time that its secret is known."""
    token_id, secret = random_text(ID_LENGTH), random_text(SECRET_LENGTH)
    await connection.run(
        "tokens/insert_token",
        token_id=token_id,
        hashed_secret=hashlib.sha256(secret.encode()).digest(),
        user_id=user_id,
        created_at=created_at,
        expires_at=expires_at,
    )
    return f"{token_id}-{secret}"


async def revoke(connection: Connection, *, token_id: str) -> bool:
    """Delete a token; False if there is none of that id."""
    return await connection.value("tokens/delete_token", token_id=token_id) is not None
