"""Limits for callers, by a key (a token, an address): how often, and how many at once. In the memory of one process."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SECOND = 1_000_000_000
# Whoever was seen longest ago is forgotten, and begins anew; who comes often is never that one.
_MOST_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a key stands: whether it may, how many more at once, the seconds until it may again and until all are back."""

    granted: bool
    limit: int
    window: int
    remaining: int
    reset: int
    retry_after: int

    def headers(self) -> dict[str, str]:
        """The fields of draft-ietf-httpapi-ratelimit-headers-06."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Policy": f"{self.limit};w={self.window}",
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset),
        }


class Rate:
    """`per_second` on average, up to `burst` at once: a token bucket in the form of GCRA, one instant a key.

    That instant is when the bucket is full again. `clock` gives nanoseconds, in whole numbers: nothing is rounded away.
    """

    def __init__(
        self,
        *,
        per_second: float,
        burst: int,
        clock: Callable[[], int] = time.monotonic_ns,
        most_keys: int = _MOST_KEYS,
    ) -> None:
        self._interval = max(1, round(_SECOND / per_second))
        self._burst = burst
        self._clock = clock
        self._most_keys = most_keys
        self._full_at: OrderedDict[Hashable, int] = OrderedDict()

    def take(self, key: Hashable) -> Standing:
        """One more of this key; what is not granted is not counted either."""
        now = self._clock()
        full_at = max(now, self._full_at.get(key, now))
        standing = self._standing(now, full_at, taken=1)
        self._full_at[key] = full_at + self._interval if standing.granted else full_at
        self._full_at.move_to_end(key)
        if len(self._full_at) > self._most_keys:
            self._full_at.popitem(last=False)
        return standing

    def look(self, key: Hashable) -> Standing:
        """Whether one more would be granted; takes nothing."""
        now = self._clock()
        return self._standing(now, max(now, self._full_at.get(key, now)), taken=0)

    def _standing(self, now: int, full_at: int, *, taken: int) -> Standing:
        lacking = full_at - now
        whole = self._interval * self._burst
        wait = lacking + self._interval - whole
        granted = wait <= 0
        if granted:
            lacking += taken * self._interval
        return Standing(
            granted=granted,
            limit=self._burst,
            window=math.ceil(whole / _SECOND),
            remaining=(whole - lacking) // self._interval,
            reset=-(-lacking // _SECOND),
            retry_after=0 if granted else -(-wait // _SECOND),
        )


class Slots:
    """At most so many at once of one key. Holds nothing of a key that has none."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[Hashable, int] = {}

    @contextmanager
    def hold(self, key: Hashable) -> Iterator[bool]:
        """A slot for as long as the block lasts; the block is told whether there was one."""
        held = self._held.get(key, 0)
        if held >= self._most:
            yield False
            return
        self._held[key] = held + 1
        try:
            yield True
        finally:
            if self._held[key] == 1:
                del self._held[key]
            else:
                self._held[key] -= 1
