"""UUIDs as text, in the one form that the API reads."""

from __future__ import annotations

import re
from uuid import UUID

_CANONICAL = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def parse_uuid(text: str) -> UUID | None:
    """The UUID that `text` writes in 36 characters, 8-4-4-4-12 hexadecimal digits in either case, else None.

    `uuid.UUID` alone also reads braces, `urn:uuid:` and hyphens anywhere.
    """
    return UUID(text) if _CANONICAL.fullmatch(text) else None
