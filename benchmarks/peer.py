"""The peer's way to a page with its total: a count, a page by OFFSET, and one query for each kind of child."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from service import statements
from service.db import Connection
from service.store import interceptions
from service.store.interceptions import Criteria

_STATEMENTS = statements.load() | statements.load(Path(__file__).parent / "statements")
_CHILDREN = ("token_usages", "user_prompts", "tool_usages")


class PeerConnection(Connection):
    """A connection that knows the peer's statements besides the service's."""

    def __init__(self, inner: Connection) -> None:
        super().__init__(inner._raw, _STATEMENTS, inner.hints)


async def read_page(
    connection: Connection, *, criteria: Criteria, page_size: int, offset: int
) -> tuple[int, list[Any]]:
    """The total and the ids of a page, whose children were read too."""
    total = await interceptions.count(connection, criteria=criteria)
    wanted = {name: value for name, value in asdict(criteria).items() if name not in {"visible_to", "started_before"}}
    page = await connection.rows("peer/list_interceptions", **wanted, page_size=page_size, skip=offset)
    ids = [row["id"] for row in page]
    for children in _CHILDREN:
        await connection.rows(f"peer/list_{children}", ids=ids)
    return total, ids
