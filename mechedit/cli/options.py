"""What every command takes: the options that all share, and the kinds of value an option may have."""

from __future__ import annotations

import argparse
from typing import Any

from experiments.cli.options import count, subcommand

#: What says which model runs where; a recipe may say it too.
PLACE = ("model", "device", "dtype", "prefix", "chat")


def command(
    commands: Any, name: str, run: Any, example: str, *, model: bool = True
) -> argparse.ArgumentParser:
    """A subcommand with the options that all share, and with those of the model it loads, if it loads one."""
    parser = subcommand(commands, name, run, example)
    if model:
        parser.add_argument(
            "--model", default="factworld", help="factworld, factworld-llama, a folder or a Hugging Face id"
        )
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default auto)")
        parser.add_argument(
            "--dtype", default="float32", help="float32, float64, bfloat16, float16 (default float32)"
        )
        parser.add_argument(
            "--prefix", metavar="TOKEN", help="a special token in front of every prompt, as '<|endoftext|>'"
        )
        parser.add_argument(
            "--chat",
            action="store_true",
            default=None,
            help="every prompt is the user's message in the chat template, and answers open the assistant's turn",
        )
    return parser


def add_space(parser: Any) -> None:
    """--space."""
    parser.add_argument(
        "--space",
        choices=("auto", "always", "never"),
        help="whether a space goes before an answer (default auto: by the scripts of prompt and answer)",
    )


def top_k(text: str) -> int | str:
    """A count, or "all"."""
    return text if text == "all" else count(text)


def layers(text: str) -> tuple[int, int] | str:
    """The word auto, a layer, or FIRST-LAST."""
    if text == "auto":
        return text
    first, dash, last = text.partition("-")
    last = last if dash else first
    if not first.isdigit() or not last.isdigit():
        raise argparse.ArgumentTypeError(f"expected auto, a layer or FIRST-LAST, as 4-7, found {text!r}")
    return int(first), int(last)
