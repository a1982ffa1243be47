"""Which case of which loop is made by whom: what the workers of an engine claim from. Plain data, no engine in it.

Every process runs the same experiment, so the loops (`experiments.cases`) have the same numbers, 0, 1, …, everywhere.
The driver opens each with the cases that its run folder has; workers claim units of the others and give the cases back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.cases import Case

__all__ = ["Board", "Page"]


@dataclass
class Page:
    """One loop as it is opened.

    Attributes:
        keys: The ids of its cases.
        facts: What workers must find to be the same.
        done: The finished cases, by their place in `keys`.
        units: Places in `keys` that are still to be made, each unit for one worker.
    """

    keys: tuple[str, ...]
    facts: dict[str, Any]
    done: dict[int, Case]
    units: Sequence[Sequence[int]]


@dataclass
class _State:
    page: Page
    free: deque[list[int]]
    taken: dict[str, list[int]] = field(
        default_factory=dict
    )  # by worker: the places of its unit still to make
    made: dict[int, Case] = field(default_factory=dict)  # in the order in which they came


class Board:
    """Hands out the cases of each loop, one call at a time; a case is claimed by one worker, and counts once.

    >>> board = Board([Page(("a", "b"), {}, {0: {"x": 0}}, [[1]])])
    >>> board.claim(0, "worker 1"), board.claim(0, "worker 2")
    ([1], [])
    >>> board.give(0, "worker 1", 1, {"x": 1})
    >>> board.claim(0, "worker 2"), board.cases(0)
    (None, {0: {'x': 0}, 1: {'x': 1}})
    """

    def __init__(self, pages: Sequence[Page] = ()) -> None:
        self._loops: list[_State] = []
        self._closed = False
        for page in pages:
            self.open(page)

    def open(self, page: Page) -> None:
        """Opens the next loop."""
        self._loops.append(_State(page, deque(list(unit) for unit in page.units)))

    def page(self, loop: int) -> tuple[tuple[str, ...], dict[str, Any]] | None:
        """Returns keys and facts of a loop; None where the driver has not come to it yet."""
        return (
            (self._loops[loop].page.keys, self._loops[loop].page.facts) if loop < len(self._loops) else None
        )

    def claim(self, loop: int, worker: str) -> list[int] | None:
        """Returns places that `worker` is to make; none while others make the rest, None when every case is there."""
        state = self._loops[loop]
        if len(state.page.done) + len(state.made) == len(state.page.keys):
            return None
        if self._closed or not state.free:
            return []
        state.taken[worker] = state.free.popleft()
        return list(state.taken[worker])

    def give(self, loop: int, worker: str, place: int, case: Case) -> None:
        """Takes the case that `worker` has made, unless the worker has been given up (`lost`)."""
        state = self._loops[loop]
        if place in state.taken.get(worker, ()):
            state.taken[worker].remove(place)
            state.made[place] = case
            if not state.taken[worker]:
                del state.taken[worker]

    def lost(self, worker: str) -> list[str]:
        """Frees what `worker`, which is no more, was making; returns the keys."""
        back = []
        for state in self._loops:
            if unit := state.taken.pop(worker, None):
                state.free.appendleft(unit)
                back += [state.page.keys[place] for place in unit]
        return back

    def news(self, loop: int, seen: int) -> tuple[list[tuple[int, Case]], bool]:
        """Returns what was made after the first `seen` cases, and whether workers are making more."""
        state = self._loops[loop]
        return list(state.made.items())[seen:], bool(state.taken)

    def cases(self, loop: int) -> dict[int, Case]:
        """Returns every case of a loop by its place: those finished before and those made."""
        return {**self._loops[loop].page.done, **self._loops[loop].made}

    def close(self) -> None:
        """Hands nothing out any more; what workers are making is still taken."""
        self._closed = True

    def closed(self) -> bool:
        """Whether the run ends here."""
        return self._closed
