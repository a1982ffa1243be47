"""What a command of xlprobe takes: an encoder, and text files."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from experiments.cli.options import subcommand
from reports.errors import InputError


def command(
    commands: Any, name: str, run: Any, example: str, *, encoder: bool = True
) -> argparse.ArgumentParser:
    """A subcommand with the options that all share, and with those of the encoder it loads, if it loads one."""
    parser = subcommand(commands, name, run, example)
    if encoder:
        parser.add_argument("--encoder", default="langworld", help="langworld, a folder or a Hugging Face id")
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
        parser.add_argument(
            "--dtype", default="float32", help="float32, float64, bfloat16, float16 (default float32)"
        )
        parser.add_argument(
            "--attention", default="sdpa", help="sdpa, eager, flash_attention_2 (default sdpa)"
        )
    return parser


def refuse_beside(
    options: argparse.Namespace, main: str, *, needed_by: tuple[str, ...], instead_of: tuple[str, ...]
) -> None:
    """Refuse options that would be ignored: `needed_by` without `main`, `instead_of` beside it.

    Raises:
        InputError: Such an option is given.
    """
    given = getattr(options, main) is not None
    for name in needed_by:
        if getattr(options, name) is not None and not given:
            raise InputError(f"{name}: --{name} says nothing without --{main}; name the file of --{main} too")
    for name in instead_of:
        if getattr(options, name) is not None and given:
            raise InputError(
                f"{name}: --{name} is of the embedded languages, --{main} names files; leave one of them out"
            )


def load(options: argparse.Namespace) -> Any:
    """The encoder of --encoder, --device, --dtype and --attention."""
    from xlprobe.encoders.encoder import load_encoder

    return load_encoder(
        options.encoder, device=options.device, dtype=options.dtype, attention=options.attention
    )


def read_lines(path: str, *, argument: str) -> list[str]:
    """The lines of a UTF-8 text file.

    Raises:
        InputError: No such file, other bytes, or an empty line.
    """
    from xlprobe.data.corpora import text_lines

    file = Path(path)
    if not file.is_file():
        raise InputError(f"{argument}: expected a text file, one sentence a line, found none at {file}")
    lines = text_lines(file)
    if empty := [i for i, line in enumerate(lines, 1) if not line.strip()]:
        raise InputError(
            f"{argument}: line {empty[0]} of {file} is empty; parallel text needs both sides of every line"
        )
    return lines


def read_parallel(options: argparse.Namespace) -> Any:
    """Parallel text of --source, --target and --links (Pharaoh format: "0-0 1-2", a line a pair)."""
    from xlprobe.data.corpora import Bitext, load_links

    source, target = (read_lines(getattr(options, side), argument=side) for side in ("source", "target"))
    if not options.links:
        return SimpleNamespace(source=source, target=target, links=None)
    words = [tuple(tuple(text.split()) for text in side) for side in (source, target)]
    return Bitext(words[0], words[1], load_links(options.links))
