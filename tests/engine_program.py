"""A program of one cheap experiment, for the tests of engines: two loops, the second of which needs the first.

What is to go wrong stands in files of the folder `orders`, so that the configuration is the same when nothing does.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.cases import every_case
from experiments.recipe import Experiment, Plan, recorded
from experiments.runs import RunFolder, provenance
from reports.errors import InputError


@dataclass(frozen=True)
class Chain:
    """`limit` cases a loop.

    orders: a folder with, perhaps, the files `dies` (the case that kills its process, once), `poison` (always), `fails`
    (the case that ends in an error), `slow` (seconds that a case takes), `alone` (the process with the right model).
    """

    orders: str
    limit: int = 4

    def order(self, name: str) -> str:
        file = Path(self.orders) / name
        return file.read_text() if file.exists() else ""


def run_chain(config: Chain, out: Path, progress: bool) -> dict[str, Any]:
    alone = config.order("alone")
    facts = provenance(
        model={"hash": "other" if alone and int(alone) != os.getpid() else "h"},
        data={},
        seeds={},
        device="cpu",
        dtype="float32",
        attn_implementation="eager",
    )
    run = RunFolder.open(out, recorded("chain", config), provenance=facts)
    keys = [f"{loop}-{i}" for loop in ("first", "second") for i in range(config.limit)]
    first, second = keys[: config.limit], keys[config.limit :]
    cases = every_case(run, first, lambda i: _case(config, first[i]), label="first", progress=progress)
    total = sum(case["value"] for case in cases)

    def make(i: int) -> dict[str, Any]:
        inner = every_case(None, ["x"], lambda _: {"inner": total}, label="inner", progress=False)
        return {**_case(config, second[i]), "of the first": inner[0]["inner"]}

    every_case(run, second, make, together=lambda key: int(key[-1]) // 2, label="second", progress=progress)
    run.finish({"n": len(keys), "total": total})
    return {"n": len(keys)}


def _case(config: Chain, key: str) -> dict[str, Any]:
    with (Path(config.orders) / f"{key}.made").open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    time.sleep(float(config.order("slow") or 0))
    if key == config.order("poison") or key == config.order("dies"):
        (Path(config.orders) / "dies").unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if key == config.order("fails"):
        raise InputError(f"{key}: expected a case that can be made")
    return {"value": int(key[-1]) / 3, "nan": float("nan"), "key": key}


def experiments() -> dict[str, Experiment]:
    """Of this program."""
    return {"chain": Experiment("chain", Chain, lambda config: Plan((), sequences=0), run_chain)}
