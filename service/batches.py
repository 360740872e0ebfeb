"""Work in batches beside readers and writers: how many records at once, and a rest after each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service import errors

_MOST = 200
_LEAST_REST = 0.05


class Pace:
    """Two hundred records a batch, a tenth of that after one that took too long; a rest as long as the batch took."""

    def __init__(self) -> None:
        self.most = _MOST

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[int]:
        """One batch, of so many records. One over its time is to be done again; of one record, it raises."""
        begun = time.monotonic()
        try:
            yield self.most
        except errors.TookTooLong:
            # One interception may own tens of thousands of records.
            if self.most == 1:
                raise
            self.most = max(1, self.most // 10)
        await asyncio.sleep(max(_LEAST_REST, time.monotonic() - begun))
