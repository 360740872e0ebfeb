"""Errors in OpenAI's shape, for both of its protocols."""

from __future__ import annotations

import json
from typing import Final

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES: Final = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


def body(status: int, message: str) -> bytes:
    """An error's body, of the type for the status."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "code": _CODES.get(status), "param": None}
    return json.dumps({"error": error}).encode()
