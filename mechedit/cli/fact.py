"""The fact of a command: given in words, from a file, or of the embedded world."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from mechedit.cli.options import add_space
from mechedit.data.facts import FactEdit, load_facts
from mechedit.factworld import edits
from mechedit.recipes.configurations import SELECTION
from reports.errors import InputError
from reports.parsing import parse

__all__ = ["add_fact_options", "chosen_fact"]


def chosen_fact(options: argparse.Namespace) -> tuple[FactEdit, str]:
    """The fact of --fact: a JSON object of `FactEdit`'s fields, a file, or "world"; --case picks one.

    Beside it the file, where it holds enough other facts to choose an editor's settings by, else "".
    """
    text = options.fact.strip()
    if text.startswith("{"):
        try:
            return FactEdit(**{"space": options.space or "auto", **parse(text)}), ""
        except (TypeError, ValueError) as error:
            raise InputError(
                f"fact: expected an object with subject, prompt, target_true, target_new ({error})"
            ) from error
    facts = (
        edits(20, seed=options.seed)
        if text == "world"
        else load_facts(Path(text), space=options.space or "auto")
    )
    chosen = [fact for fact in facts if options.case in (None, str(fact.case_id))]
    if not chosen:
        ids = ", ".join(str(fact.case_id) for fact in facts[:5])
        raise InputError(f"case: expected a case_id of {text}, as {ids}, found {options.case!r}")
    fact = chosen[0] if options.space is None else replace(chosen[0], space=options.space)
    # A file of few other facts is too little to choose by: the caller then takes the embedded world's or the atlas'.
    n_others = sum(other.subject != fact.subject for other in facts)
    return fact, "" if text == "world" or n_others < SELECTION else text


def add_fact_options(parser: Any, *, required: bool) -> None:
    """--fact and --case."""
    parser.add_argument(
        "--fact",
        required=required,
        help='a JSON object {"subject": ..., "prompt": "... {} ...", "target_true": ..., "target_new": ...}, '
        "a file of facts, or world: one of the embedded world",
    )
    add_space(parser)
    parser.add_argument("--case", help="case_id in the file (default: its first)")
