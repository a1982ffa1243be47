"""The loop over cases: what it says where nobody watches, and that a stop waits for the case at hand."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import time
from collections.abc import Iterator

import pytest

from experiments import progress
from experiments.progress import Stopped, bar, how_to_go_on, interruptible, track, waiting
from mechedit.models.hooked import load_model
from xlprobe.encoders.encoder import load_encoder


def test_the_items_come_in_order_and_silently(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), label="x", progress=False)) == ["a", "b", "c"]
    assert list(track([1, 2], label="x")) == [1, 2]
    assert capfd.readouterr() == ("", ""), (
        "a run of less than ten seconds says nothing where there is no terminal"
    )


def test_without_a_terminal_there_is_a_line_after_ten_seconds_and_one_a_minute(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Iterator[float] = iter(range(0, 10_000, 25))  # a case takes 25 seconds
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert len(list(track(range(12), label="mega"))) == 12
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("%")[1].split()[0] for line in lines] == ["1/12", "4/12", "7/12", "10/12"]
    assert lines[1] == "mega:  33% 4/12 [01:40<03:20, 25.00s/case]"


def test_a_stop_waits_for_the_case_and_for_the_outer_loop() -> None:
    done: list[tuple[int, int]] = []
    with interruptible(), pytest.raises(Stopped, match="2 of 4 done in 'outer'"):
        walk(done)
    assert done == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def walk(done: list[tuple[int, int]]) -> None:
    for case in track(range(4), label="outer", progress=False):
        if case == 1:
            os.kill(os.getpid(), signal.SIGINT)
        done += [(case, part) for part in track(range(3), label="inner", progress=False)]


@pytest.fixture(autouse=True)
def pythons_own_handler() -> Iterator[None]:
    """Also where the tests were started in the background of a shell, which ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_outside_of_a_loop_and_of_the_block_an_interrupt_is_an_interrupt() -> None:
    for block in (interruptible, None):
        with pytest.raises(KeyboardInterrupt) as caught:
            interrupt(block)
        assert not isinstance(caught.value, Stopped)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def interrupt(block: object) -> None:
    if block is None:
        os.kill(os.getpid(), signal.SIGINT)
        return
    with interruptible():
        os.kill(os.getpid(), signal.SIGINT)


def test_a_loop_that_is_left_early_counts_no_more() -> None:
    for _ in track(range(3), label="left", progress=False):
        break
    with pytest.raises(KeyboardInterrupt):
        interrupt(interruptible)


def test_what_is_said_depends_on_what_is_saved() -> None:
    argv = ["evaluate", "--data", "my facts.json"]
    assert "nothing is saved without --out" in how_to_go_on(Stopped("1 of 2"), "mechedit", argv, saved=False)
    assert "finished cases" in how_to_go_on(KeyboardInterrupt(), "mechedit", argv, saved=True)
    assert how_to_go_on(Stopped("1 of 2"), "mechedit", argv, saved=True).endswith("--data 'my facts.json'")


def test_a_bar_of_parts_says_a_line_a_minute_with_what_it_was_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Iterator[float] = iter(range(0, 10_000, 30))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with bar("training", 400, start=100) as shown:
        for loss in (2.0, 1.0, 0.5, 0.25):
            shown.set_postfix(loss=f"{loss:.2f}", refresh=False)
            shown.update(50)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("%")[1].split()[0] for line in lines] == ["150/400", "250/400"]
    assert [line.split("loss=")[1].rstrip("]") for line in lines] == ["2.00", "0.50"]


def test_a_quiet_bar_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with bar("training", 2, progress=False) as shown:
        shown.update(2)
    assert capfd.readouterr() == ("", "")


def test_a_step_whose_first_part_is_long_speaks_before_it_is_done(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LONG", 0.05)
    with bar("covariance", 2000, unit=" tokens") as shown:
        said = patiently(capfd)
        shown.update(2000)
    assert said.startswith("covariance:   0% 0/2000 [00:00<?")
    with bar("covariance", 2000, unit=" tokens"):
        pass  # done in time
    time.sleep(0.2)
    assert capfd.readouterr() == ("", "")


def test_a_step_without_parts_says_what_is_waited_for(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LONG", 0.05)
    with waiting("loading smollm2"), contextlib.redirect_stderr(io.StringIO()):
        said = patiently(capfd)  # although what loads sends its own noise elsewhere
    assert said == "loading smollm2: takes longer than 0.05 s\n"
    with interruptible(quiet=True), waiting("loading smollm2"):
        time.sleep(0.2)
    with waiting("loading smollm2"):
        pass
    time.sleep(0.2)
    assert capfd.readouterr() == ("", "")


def patiently(capfd: pytest.CaptureFixture[str]) -> str:
    """What is said on standard error, as soon as it is."""
    for _ in range(200):
        if said := capfd.readouterr().err:
            return said
        time.sleep(0.05)
    return ""


def test_loading_a_model_says_so_where_it_takes_long(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LONG", 0.0)
    load_model("factworld")
    assert "loading factworld: takes longer than 0 s" in capfd.readouterr().err
    load_encoder("langworld")
    assert "loading langworld: takes longer than 0 s" in capfd.readouterr().err
