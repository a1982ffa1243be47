"""The editor of a command: by its name in the registry, with what it leaves open chosen on other facts."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from experiments.cli.options import count
from mechedit.cli.options import add_set, layers, literal
from mechedit.recipes.configurations import GateKind, Position, Site

__all__ = ["add_editor_options"]


def add_editor_options(parser: Any, *, default: str | None = "mega") -> None:
    """--editor, and what steering editors take; `parser` may be a group of options."""
    parser.add_argument(
        "--editor",
        default=default,
        help="ft, ft_l, lora, rome, memit, alphaedit, ike, sake, mega, mean_shift, no_edit"
        + (f" (default {default})" if default else ""),
    )
    parser.add_argument("--window", type=layers, help="layers that a steering editor steers, as 4-7, or auto")
    parser.add_argument(
        "--alpha",
        type=_strength,
        help="how far a steering edit goes, or auto: as far as its own prompts need",
    )
    parser.add_argument(
        "--gate",
        choices=get_args(GateKind),
        help="what opens a steering editor (default asked; sake: hidden)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="where the gate opens: the log-odds from which asked does, the distance within which any other does "
        "(default: chosen)",
    )
    parser.add_argument("--gate-model", help="for --gate sentence: a sentence-transformers folder or id")
    parser.add_argument(
        "--max-fpr", type=float, help="share of foreign prompts that MEGA's gate may open for"
    )
    parser.add_argument("--site", choices=get_args(Site), help="what MEGA steers (default attn_out)")
    parser.add_argument(
        "--heads", type=count, help="how many heads MEGA steers, named by the attribution (all)"
    )
    parser.add_argument(
        "--position",
        choices=get_args(Position),
        help="object: steer the prompt's end and the object's tokens; prompt: the end alone; every: each new token",
    )
    add_set(parser)


def _strength(text: str) -> float | str:
    """A number, or the word auto."""
    value = literal(text)
    if value != "auto" and type(value) not in (int, float):
        raise argparse.ArgumentTypeError(f"expected a number or auto, found {text!r}")
    return value
