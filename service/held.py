"""What requests keep in memory, counted: bodies that have been read, and answers that have not been taken yet."""

from __future__ import annotations

from service import errors

# What is smaller is not counted: the number of connections bounds it.
SMALL = 64 * 1024


class Held:
    """The bytes that all requests hold together, and the most that they may.

    What is being sent here takes at most half of that, however slowly it comes: the other half is for answers.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.uploads = 0
        self.answers = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.uploads + self.answers

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more can be held of an answer."""
        return size <= SMALL or self.total + size <= self._most

    def takes(self, more: int) -> bool:
        """Whether so many bytes more can be held of what is being sent here."""
        return self.uploads + more <= self._most // 2 and self.total + more <= self._most

    def share(self) -> Share:
        """What one request holds: nothing yet."""
        return Share(self)


class Share:
    """What one request holds of it."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._upload = 0
        self._answer = 0

    def hold(self, size: int) -> None:
        """Hold so many bytes of what is sent; raises Overloaded where there is no room for them beside those of others."""
        counted = size if size > SMALL else 0
        more = counted - self._upload
        if more > 0 and not self._held.takes(more):
            raise errors.Overloaded("Too many large bodies and answers are under way.", retry_after=1)
        self._held.uploads += more
        self._upload = counted

    def keep(self, size: int) -> None:
        """Hold so many bytes of an answer, which are there already."""
        self._held.answers += size - self._answer
        self._answer = size

    def give_back(self) -> None:
        """Hold nothing any more."""
        self.hold(0)
        self.keep(0)
