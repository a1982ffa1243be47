"""The options of `nlka.attribute`, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mechedit.attribution.passes import TargetTokens
from mechedit.attribution.projection import Biases
from mechedit.attribution.ranking.neurons import Sign
from reports.errors import InputError

__all__ = ["Method", "Options", "check_top_k"]

Method = Literal["exhaustive", "certified"]
_CHOICES = {"sign": Sign, "method": Method, "biases": Biases, "tokens": TargetTokens}


@dataclass(frozen=True)
class Options:
    """How to attribute; `attribute` says what each option means.

    Raises:
        InputError: A value is none of the option's.

    >>> Options(top_k="all").k is None
    True
    """

    top_k: int | Literal["all"] = 300
    sign: Sign = "promote"
    method: Method = "certified"
    biases: Biases = "keep"
    tokens: TargetTokens = "first"

    def __post_init__(self) -> None:
        check_top_k(self.top_k)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise InputError(
                    f"{name}: expected one of {', '.join(get_args(choices))}, found {getattr(self, name)!r}"
                )

    @property
    def k(self) -> int | None:
        """`top_k` as a number, None for all."""
        return None if self.top_k == "all" else self.top_k


def check_top_k(top_k: object) -> None:
    """Checks how many rows a neuron frame is to have.

    Raises:
        InputError: `top_k` is neither an integer of at least 1 nor "all".
    """
    if top_k != "all" and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise InputError(f"top_k: expected an integer of at least 1 or 'all', found {top_k!r}")
