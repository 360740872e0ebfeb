"""…/models and …/clients: the distinct names in use."""

from __future__ import annotations

from typing import Literal

from aiohttp import web

from service import search
from service.answers import json_answer
from service.context import DATABASE, STANDBYS, caller
from service.db import Connection
from service.schemas import queries
from service.store import names


async def list_models(request: web.Request) -> web.Response:
    """The models of ended interceptions that the caller may see, by code point."""
    return await _list(request, kind="models", key="model")


async def list_clients(request: web.Request) -> web.Response:
    """The clients of ended interceptions that the caller may see, by code point; one that is null reads `Unknown`."""
    return await _list(request, kind="clients", key="client")


async def _list(
    request: web.Request, *, kind: Literal["models", "clients"], key: Literal["model", "client"]
) -> web.Response:
    page = queries.read_names_page(request.query)
    prefix = search.parse_prefix(page.q, key=key)

    async def work(connection: Connection) -> list[str]:
        return await names.list_names(
            connection,
            kind=kind,
            prefix=prefix,
            visible_to=caller(request).visible_to,
            page_size=page.limit,
            skip=page.offset,
            rolled_up=request.app[DATABASE].rolled_up,
        )

    return json_answer(await request.app[STANDBYS].read(work, caller=caller(request)))
