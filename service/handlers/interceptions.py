"""…/interceptions: the list."""

from __future__ import annotations

from dataclasses import asdict

from aiohttp import web

from service import errors, search
from service.answers import cursor_links, json_text, offset_links
from service.auth import Caller
from service.context import DATABASE, STANDBYS, caller
from service.db import Connection
from service.schemas import queries
from service.schemas.queries import Page
from service.store import interceptions, totals, users


async def list_interceptions(request: web.Request) -> web.Response:
    """A page of interceptions, newest first, and how many match in all; both from one snapshot."""
    who, page = caller(request), queries.read_page(request.query)
    asked = search.parse_interceptions(page.q)
    database = request.app[DATABASE]
    # Total and page are of one snapshot: that of the one statement, or of the transaction around several.
    at_once = database.rolled_up and not totals.is_deep(page.offset)

    async def work(connection: Connection) -> tuple[int, list[bytes]]:
        criteria = await _criteria(connection, asked, who=who)
        cursor = await _cursor(connection, page, who=who)
        return await (totals.read_page if database.rolled_up else interceptions.read_page)(
            connection,
            criteria=criteria,
            # One more than the page holds tells whether anything follows; by offset the total tells it.
            page_size=page.limit + (cursor is not None),
            offset=page.offset,
            cursor=cursor,
        )

    total, found = await request.app[STANDBYS].read(work, caller=who, snapshot=not at_once)
    results = found[: page.limit]
    if page.after_id is None:
        links = offset_links(page, total=total)
    else:
        links = cursor_links(page, following=_id(results[-1]) if len(found) > len(results) else None)
    body = b'{"results":[%b],"total":%d,"count":%d}' % (b",".join(results), total, total)
    return json_text(body, headers=links)


async def _criteria(connection: Connection, asked: search.InterceptionSearch, *, who: Caller) -> interceptions.Criteria:
    user_id = None
    if asked.username is not None:
        user_id = await users.find_id(connection, username=asked.username, visible_to=who.known_to)
    wanted = asked.resolve(caller_id=who.user_id, user_id=user_id)
    return interceptions.Criteria(visible_to=who.visible_to, **asdict(wanted))


async def _cursor(connection: Connection, page: Page, *, who: Caller) -> interceptions.Cursor | None:
    if page.after_id is None:
        return None
    cursor = await interceptions.find_cursor(connection, interception_id=page.after_id, visible_to=who.visible_to)
    if cursor is None:
        raise errors.InvalidCursor(f"after_id: interception {page.after_id} not found: invalid pagination cursor")
    return cursor


def _id(result: bytes) -> str:
    # `{"id":"…"` opens each result: the first column of list_matching.
    return result[7:43].decode("ascii")
