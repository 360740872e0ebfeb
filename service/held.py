"""What requests keep in memory, counted: bodies that have been read, and answers that have not been taken yet."""

from __future__ import annotations

from service import errors

# What is smaller is not counted: the number of connections bounds it.
SMALL = 64 * 1024


class Held:
    """The bytes that all requests hold together, and the most that they may."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.total = 0

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more can be held."""
        return size <= SMALL or self.total + size <= self._most

    def share(self) -> Share:
        """What one request holds: nothing yet."""
        return Share(self)


class Share:
    """What one request holds of it."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._size = 0

    def hold(self, size: int) -> None:
        """Hold so many bytes, in all; raises Overloaded where there is no room for them beside those of others."""
        more = size - self._size
        if size <= SMALL or more <= 0:
            return
        if not self._held.has_room(more + SMALL):
            raise errors.Overloaded("Too many large bodies and answers are under way.", retry_after=1)
        self.keep(size)

    def keep(self, size: int) -> None:
        """Hold so many bytes, in all, which are there already."""
        self._held.total += size - self._size
        self._size = size

    def give_back(self) -> None:
        """Hold nothing any more."""
        self.keep(0)
