"""The searches that are measured: every filter by itself, common and rare, and stretches of time."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from benchmarks.datasets import script
from service.store.interceptions import Criteria


async def find(url: str) -> dict[str, Criteria]:
    """The searches by name, with values that this database holds."""
    raw: asyncpg.Connection[Any] = await asyncpg.connect(url)
    try:
        initiators = [UUID(str(row["name"])) for row in await raw.fetch(script("rank_initiators"))]
        models = [row["name"] for row in await raw.fetch(script("rank_models"))]
        newest: datetime = await raw.fetchval("SELECT max(started_at) FROM aibridge_interceptions")
    finally:
        await raw.close()
    return {
        "no filter": Criteria(),
        "heavy initiator": Criteria(initiator_id=initiators[0]),
        "light initiator": Criteria(initiator_id=initiators[-1]),
        "provider": Criteria(provider="anthropic"),
        "provider_name": Criteria(provider_name="azure-openai"),
        "common model": Criteria(model=models[0]),
        "rare model": Criteria(model=models[-1]),
        "client": Criteria(client="Claude Code"),
        "30 days": Criteria(started_after=newest - timedelta(days=30, minutes=17)),
        "300 days and model": Criteria(started_after=newest - timedelta(days=299, minutes=17), model=models[0]),
    }
