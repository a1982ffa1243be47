"""The loop over cases: what is read, what is made, what is refused, and that it does not matter who makes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from experiments.cases import Case, Loop, every_case, shared
from experiments.forks import forked
from reports.errors import InputError
from tests.test_runs import start, tree


def squares(i: int) -> Case:
    return {"square": i * i}


def test_finished_cases_are_read_and_the_others_are_made_in_order(tmp_path: Path) -> None:
    run, made = start(tmp_path), list[int]()
    run.write_case("b", {"square": "read"})

    def make(i: int) -> Case:
        made.append(i)
        return squares(i)

    cases = every_case(run, ["a", "b", "c"], make, label="x", progress=False)
    assert cases == [{"square": 0}, {"square": "read"}, {"square": 4}]
    assert made == [0, 2]
    assert run.done() == {"a", "b", "c"}


def test_foreign_settings_are_refused_before_any_case_is_made(tmp_path: Path) -> None:
    run, made = start(tmp_path), list[int]()
    run.write_case("b", {"settings": "theirs"})

    def make(i: int) -> Case:
        made.append(i)
        return {"settings": "of a worker"}

    with pytest.raises(InputError, match=r"'b' in .* was measured with another model"):
        every_case(run, ["a", "b"], make, settings=["s", "s"], label="x", progress=False)
    assert made == []
    with pytest.raises(InputError, match="'a' by another process was measured with another"):
        every_case(run, ["a"], make, settings=["s"], label="x", progress=False)


class Backwards:
    """A share that begins with the last unit, and keeps what it was handed."""

    patient = False

    def __init__(self) -> None:
        self.units: list[Sequence[int]] = []

    def made(self, loop: Loop) -> Iterator[tuple[int, Case]]:
        self.units = list(loop.units)
        for unit in reversed(loop.units):
            yield from ((i, loop.make(i)) for i in reversed(unit))


def test_any_share_gives_the_same_cases_in_the_same_order(tmp_path: Path) -> None:
    keys = [f"{letter}-{i}" for letter in "abc" for i in range(3)]
    alone = every_case(start(tmp_path / "1"), keys, squares, label="x", progress=False)
    backwards = Backwards()
    with shared(backwards):
        run = start(tmp_path / "2")
        assert every_case(run, keys, squares, together=lambda k: k[0], label="x", progress=False) == alone
    assert backwards.units == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with forked(2):
        assert every_case(start(tmp_path / "3"), keys, squares, label="x", progress=False) == alone
    assert tree(tmp_path / "1") == tree(tmp_path / "2") == tree(tmp_path / "3")


def test_a_loop_inside_a_case_is_part_of_it() -> None:
    backwards = Backwards()

    def make(i: int) -> Case:
        return {"inner": every_case(None, ["x", "y"], squares, label="inner", progress=False)}

    with shared(backwards):
        cases = every_case(None, ["a"], make, label="outer", progress=False)
    assert cases == [{"inner": [{"square": 0}, {"square": 1}]}]
    assert backwards.units == [[0]]
