"""Engines: the board by random schedules, and real two-worker Ray clusters against a local run, byte for byte."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import itertools
import json
import os
import random
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from experiments.board import Board, Page
from experiments.cases import Case
from experiments.cli import run as runner
from experiments.cli.options import Parser, subcommand
from experiments.cli.program import execute
from experiments.engine import Ray
from reports.errors import InputError
from tests.killing import ended, forked, until
from tests.test_runs import tree

PROGRAM = "tests.engine_program:experiments"
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or not hasattr(os, "fork"),
    reason="ray: pip install 'mechedit[ray]', on a POSIX system",
)

# -- the board ---------------------------------------------------------------------------------------------------


def page(units: Sequence[Sequence[int]], *, found: int = 0) -> Page:
    n = found + sum(map(len, units))
    return Page(
        tuple(f"case-{i}" for i in range(n)), {}, {i: {"found": i} for i in range(n - found, n)}, units
    )


class Lenient(Board):
    """A board that also takes cases from workers it has given up."""

    def give(self, loop: int, worker: str, place: int, case: Case) -> None:
        self._loops[loop].made[place] = case


class Forgetful(Board):
    """A board that loses what a dead worker was at."""

    def lost(self, worker: str) -> list[str]:
        back = super().lost(worker)
        for state in self._loops:
            if back and state.free:
                state.free.popleft()
        return back


class Generous(Board):
    """A board that hands a unit out again while it is being made."""

    def claim(self, loop: int, worker: str) -> list[int] | None:
        unit = super().claim(loop, worker)
        if unit:
            self._loops[loop].free.append(list(unit))
        return unit


def worked_off(board: Board, units: list[list[int]], *, found: int, seed: int) -> Counter[int]:
    """Three workers that claim, make, and die at random; how often each case was made by somebody who lived on.

    A worker that is taken for dead may yet give its case: that one must not count.
    """
    rng, loop = random.Random(seed), 0
    board.open(page(units, found=found))
    at: dict[str, list[int]] = {f"w{i}": [] for i in range(3)}
    made, news, deaths = Counter[int](), dict[int, Case](), 0
    for step in range(2000):
        name = rng.choice(list(at))
        if at[name] and rng.random() < 0.15 and deaths < 20:
            board.lost(name)
            board.give(loop, name, at[name][0], {"by": "a ghost"})
            del at[name]
            at[f"w{step + 3}"] = []
            deaths += 1
        elif at[name]:
            place = at[name].pop(0)
            board.give(loop, name, place, {"by": name})
            made[place] += 1
        else:
            unit = board.claim(loop, name)
            if unit is None:
                break
            at[name] = unit
        fresh, _ = board.news(loop, len(news))
        assert not news.keys() & dict(fresh).keys()
        news |= dict(fresh)
    cases = board.cases(loop)
    assert len(cases) == len(made) + found, "a case is lost"
    assert all(case.get("by") != "a ghost" for case in cases.values()), "a dead worker's case counts"
    assert set(made.values()) <= {1}, "a case is handed out twice"
    assert news.keys() == made.keys() == {place for unit in units for place in unit}
    return made


@pytest.mark.parametrize("seed", range(20))
def test_a_board_hands_every_case_out_once_and_loses_none(seed: int) -> None:
    rng = random.Random(seed)
    places = iter(range(30))
    units = [list(itertools.islice(places, rng.randint(1, 4))) for _ in range(12)]
    units = [unit for unit in units if unit]
    worked_off(Board(), units, found=3, seed=seed)


@pytest.mark.parametrize("bad", [Lenient, Forgetful, Generous])
def test_a_board_that_does_otherwise_is_found_out(bad: type[Board]) -> None:
    def ends_well(seed: int) -> bool:
        try:
            worked_off(bad(), [[i, i + 1] for i in range(0, 20, 2)], found=1, seed=seed)
        except AssertionError:
            return False
        return True

    assert not all(ends_well(seed) for seed in range(5))


def test_a_closed_board_hands_nothing_out_and_takes_what_is_at_hand() -> None:
    board = Board([page([[0], [1]])])
    assert board.claim(0, "w") == [0]
    board.close()
    assert board.claim(0, "v") == []
    assert board.news(0, 0) == ([], True)
    board.give(0, "w", 0, {"x": 1})
    assert board.news(0, 0) == ([(0, {"x": 1})], False)
    assert board.page(1) is None


# -- Ray ---------------------------------------------------------------------------------------------------------


def toy(*words: str) -> int:
    """The command line of the cheap program (`tests.engine_program`)."""

    def run(options: argparse.Namespace) -> int:
        """Runs a recipe."""
        return runner.run(options, PROGRAM)

    parser = Parser(prog="toy")
    runner.add_arguments(subcommand(parser.add_subparsers(parser_class=Parser), "run", run, "toy run x.toml"))
    return execute(parser, ["run", "--quiet", *words])


class Chain:
    """The cheap experiment in a folder: processes that run it there, and what went on in them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.orders = folder, folder / "run", folder / "orders"
        self.orders.mkdir()
        recipe = f'experiment = "chain"\norders = {json.dumps(str(self.orders))}\n'
        (folder / "chain.toml").write_text(recipe)

    def begin(self, engine: str = "ray") -> int:
        """A process that leads a group of its own, as one that a terminal started: its number."""
        words = [str(self.folder / "chain.toml"), "--out", str(self.out), "--engine", engine]
        words += ["--workers", "2"] if engine == "ray" else []

        def work() -> int:
            os.setpgrp()
            return toy(*words)

        return forked(work, errors=self.folder / "said")

    def run(self, engine: str = "ray") -> int:
        return ended(self.begin(engine))

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def makers(self) -> dict[str, list[int]]:
        """The processes that began each case."""
        files = sorted(self.orders.glob("*.made"))
        return {file.stem: list(map(int, file.read_text().split())) for file in files}

    def matches_local(self) -> None:
        """Every file is that of a local run of the same recipe."""
        found = tree(self.out)
        for file in self.orders.iterdir():
            file.unlink()
        shutil.rmtree(self.out)
        assert self.run("local") == 0
        assert len(found) == 2 * 4 + 3
        assert found == tree(self.out)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def all_end(makers: dict[str, list[int]], *, seconds: float = 60) -> bool:
    """Whether every process that made a case ends, in so many seconds."""
    end, left = time.monotonic() + seconds, {pid for pids in makers.values() for pid in pids}
    while left and time.monotonic() < end:
        left = {pid for pid in left if psutil.pid_exists(pid)}
        time.sleep(0.05)
    return not left


@needs_ray
def test_a_worker_that_is_killed_loses_nothing(chain: Chain) -> None:
    """kill -9 in the middle of the first loop: its case is made by another process, and all files are a local run's."""
    (chain.orders / "dies").write_text("first-2")
    (chain.orders / "slow").write_text("0.3")
    assert chain.run() == 0, chain.said()
    makers = chain.makers()
    assert [len(pids) for pids in makers.values()] == [1, 1, 2, 1, 1, 1, 1, 1]
    assert len(set(makers["first-2"])) == 2
    assert makers["second-0"] == makers["second-1"], "a unit is one process's"
    assert all_end(makers)
    chain.matches_local()


@needs_ray
@pytest.mark.faults
def test_a_run_that_was_begun_by_one_engine_is_ended_by_another(chain: Chain) -> None:
    (chain.orders / "fails").write_text("second-1")
    assert chain.run() == 2
    assert chain.said().strip().endswith("toy: error: second-1: expected a case that can be made")
    done = {file.stem for file in (chain.out / "cases").glob("*.json")}
    assert {f"first-{i}" for i in range(4)} | {"second-0"} <= done
    for engine in ("local", "ray"):
        for file in chain.orders.iterdir():
            file.unlink()
        assert chain.run(engine) == 0, chain.said()
        assert chain.makers().keys().isdisjoint(done)
        for case in ("first-3", "second-2"):
            (chain.out / "cases" / f"{case}.json").unlink()
        done = {file.stem for file in (chain.out / "cases").glob("*.json")}
    assert chain.run() == 0
    chain.matches_local()


@needs_ray
@pytest.mark.faults
def test_an_interrupt_saves_what_every_worker_is_at(chain: Chain) -> None:
    (chain.orders / "slow").write_text("1.5")
    child = chain.begin()
    until(chain.orders / "first-1.made", child)
    os.killpg(child, signal.SIGINT)
    assert ended(child) == 130
    makers = chain.makers()
    assert {file.stem for file in (chain.out / "cases").glob("*.json")} == makers.keys()
    assert {"first-0", "first-1"} <= makers.keys() < {f"first-{i}" for i in range(4)}
    said = f"{len(makers)} of 4 done in 'first', all saved; to go on: toy run --quiet {chain.folder}"
    assert said in chain.said()
    assert all_end(makers)
    assert chain.run() == 0
    chain.matches_local()


@needs_ray
@pytest.mark.faults
def test_a_case_that_kills_every_worker_ends_the_run(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.engine.LIVES", 0.5)  # of the child, which is forked
    (chain.orders / "poison").write_text("first-3")
    assert chain.run() == 1
    assert "workers died, one after another" in chain.said()
    assert "the last at first-3; finished cases are kept" in chain.said()
    assert {file.stem for file in (chain.out / "cases").glob("*.json")} == {f"first-{i}" for i in range(3)}


@needs_ray
@pytest.mark.faults
def test_a_worker_of_another_kind_is_refused(chain: Chain) -> None:
    def work() -> int:
        (chain.orders / "alone").write_text(str(os.getpid()))
        return toy(str(chain.folder / "chain.toml"), "--out", str(chain.out), "--engine", "ray")

    assert ended(forked(work, errors=chain.folder / "said")) == 2
    assert "engine: a worker has model {'hash': 'other'}, the driver {'hash': 'h'}" in chain.said()
    assert not list((chain.out / "cases").iterdir())


def test_what_an_engine_cannot_do_is_said_in_a_line(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(chain.folder / "chain.toml")
    assert toy(recipe, "--gpus-per-worker", "1") == 2
    assert "gpus-per-worker: --engine local takes none" in capsys.readouterr().err
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]  # nobody listens there
    monkeypatch.setattr("importlib.util.find_spec", lambda name: "there")
    for address, reason in (
        (f"127.0.0.1:{port}", "Connection refused"),
        ("head", "expected auto or HOST:PORT"),
    ):
        assert toy(recipe, "--engine", "ray", "--address", address, "--out", str(chain.out)) == 2
        assert f"address: no Ray cluster at '{address}' ({reason})" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert toy(recipe, "--engine", "ray", "--out", str(chain.out)) == 2
    assert "engine: ray is not installed; pip install 'mechedit[ray]'" in capsys.readouterr().err
    assert not chain.out.exists()
    with pytest.raises(InputError, match="workers, gpus_per_worker: expected at least 1 and 0, found 0"):
        Ray("x:y", workers=0)


# -- real recipes ------------------------------------------------------------------------------------------------


def both(program: str, recipe: Path, folder: Path) -> dict[str, bytes]:
    """The files of a local run, after checking that two workers of Ray make the same; both in one thread."""
    import torch

    torch.set_num_threads(1)
    main = importlib.import_module(f"{program}.cli").main
    for engine in (["local"], ["ray", "--workers", "2"]):
        words = ["run", "--quiet", str(recipe), "--out", str(folder / engine[0]), "--engine", *engine]
        child = forked(functools.partial(main, words), errors=folder / "said")
        assert ended(child) == 0, (folder / "said").read_text()
    local = tree(folder / "local")
    assert tree(folder / "ray") == local
    assert "manifest.json" in local
    return local


@needs_ray
@pytest.mark.slow
def test_an_evaluation_by_two_workers_is_that_of_one_process(tmp_path: Path) -> None:
    from mechedit.factworld import export

    export(tmp_path / "facts.json", schema="counterfact", limit=4, seed=9)
    recipe = tmp_path / "evaluate.toml"
    recipe.write_text(
        f'experiment = "evaluate"\ndata = "{tmp_path / "facts.json"}"\neditor = "no_edit"\n'
        'families = ["argmax"]\ndevice = "cpu"\n'
    )
    files = both("mechedit", recipe, tmp_path)
    assert len([name for name in files if name.startswith("cases/")]) == 4


@needs_ray
@pytest.mark.slow
def test_a_comparison_by_two_workers_is_that_of_one_process(tmp_path: Path) -> None:
    """Window, alpha and gate are chosen by every worker for itself; three kinds of loop, one after the other."""
    recipe = tmp_path / "compare.toml"
    recipe.write_text(
        'experiment = "compare"\neditors = ["mega", "ft"]\nablations = ["one_layer"]\nlimit = 3\nselection = 8\n'
        'seeds = [0]\nablation_facts = 2\nripple_facts = 1\ndevice = "cpu"\n'
    )
    files = both("mechedit", recipe, tmp_path)
    assert {"results/comparison/table.parquet", "results/gates/result.json", "report.html"} <= files.keys()
    assert len([name for name in files if name.startswith("cases/")]) == 2 * 3 + 2 + 2


@needs_ray
@pytest.mark.slow
def test_a_study_by_two_workers_is_that_of_one_process(tmp_path: Path) -> None:
    recipe = tmp_path / "study.toml"
    recipe.write_text(
        'experiment = "study"\npairs = ["source-half"]\nobjectives = ["sentence"]\ntasks = ["topic"]\nseeds = 2\n'
        'device = "cpu"\n[sizes]\nbitext = 16\ntrain = 16\ntest = 8\nheld_out = 8\nalign_steps = 1\n'
        "finetune_steps = 1\nhead_steps = 1\nprobe_batches = 2\nbatch = 8\n"
    )
    files = both("xlprobe", recipe, tmp_path)
    assert {"cases/none-1.json", "cases/align-source-half-shuffled-0.json"} <= files.keys()
