"""What a diagnosis says: a row a check, what was measured, how far it may go, and what to change where it goes further.

A check holds where its measure is at most its tolerance; a control holds where it lies above, for a check beside a
control that nothing can fail sees nothing. What could not be measured (nan) does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import pandas as pd

from reports.errors import MechEditError
from reports.results import Result

__all__ = ["Check", "Diagnosis", "Step", "gathered"]

#: A name, and the function that makes its checks.
Step = tuple[str, Callable[[], Iterable["Check"]]]


@dataclass(frozen=True)
class Check:
    """One check: it holds where `measured` is at most `tolerance`, a control where it lies above.

    Attributes:
        name: What is checked.
        measured: What was measured (nan: it could not be).
        tolerance: How far it may go.
        said: What `measured` is.
        change: What to do if the check fails.
        n: Number of cases measured.
        control: Whether this is a control.

    >>> Check("padding", 3e-6, 1e-4, "of the largest logit", "use float32").ok
    True
    >>> Check("no mask", 3e-6, 1e-4, "of the largest logit", "the check sees nothing", control=True).ok
    False
    """

    name: str
    measured: float
    tolerance: float
    said: str
    change: str
    n: int = 1
    control: bool = False

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return self.measured > self.tolerance if self.control else self.measured <= self.tolerance


@dataclass(frozen=True, repr=False, eq=False)
class Diagnosis(Result):
    """What a diagnosis found.

    Attributes:
        checks: Frame of check, measured, must ("<=", or ">" for a control), tolerance, n, ok, said, change ("" if ok).
        subject: The name of the model.
        dtype: As it is loaded; so are device and attention.
        notes: What was not checked, and why.
    """

    kind: ClassVar[str] = "diagnosis"

    checks: pd.DataFrame
    subject: str
    dtype: str
    device: str
    attention: str
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, checks: Iterable[Check], **about: Any) -> Self:
        """Makes the diagnosis of these checks.

        Args:
            checks: The checks, in order.
            about: The other fields.
        """
        rows = [
            {
                "check": check.name,
                "measured": float(check.measured),
                "must": ">" if check.control else "<=",
                "tolerance": float(check.tolerance),
                "n": check.n,
                "ok": check.ok,
                "said": check.said,
                "change": "" if check.ok else check.change,
            }
            for check in checks
        ]
        return cls(pd.DataFrame(rows), **about)

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return bool(self.checks["ok"].all())

    def measured(self, check: str) -> float:
        """What the check of this name measured."""
        return float(self.checks.set_index("check")["measured"][check])


def gathered(steps: Iterable[Step]) -> Iterator[Check]:
    """Makes the checks of all steps; one that cannot be carried out does not hold, and the rest are still made.

    Args:
        steps: Name and function of each. A `MechEditError` of the function becomes the check's `change`.

    >>> def broken() -> list[Check]:
    ...     raise MechEditError("hooks: 'hook_z' never fired")
    >>> [(check.name, check.ok, check.change) for check in gathered([("hooks", broken)])]
    [('hooks', False, "hooks: 'hook_z' never fired")]
    """
    for name, step in steps:
        try:
            yield from step()
        except MechEditError as error:
            yield Check(name, math.nan, math.nan, "could not be measured", " ".join(str(error).split()))
