"""What a command of xlprobe takes: an encoder, and text files."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from experiments.cli.options import subcommand
from reports.errors import InputError

if TYPE_CHECKING:
    from xlprobe.encoder import Encoder


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


def load(options: argparse.Namespace) -> Encoder:
    """The encoder of --encoder, --device, --dtype and --attention."""
    from xlprobe.encoder import load_encoder

    return load_encoder(
        options.encoder, device=options.device, dtype=options.dtype, attention=options.attention
    )


def read_lines(path: str, *, argument: str) -> list[str]:
    """The lines of a UTF-8 text file. Errors: `InputError` for no such file and for an empty line."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{argument}: expected a text file, one sentence a line, found none at {file}")
    lines = file.read_text(encoding="utf-8").splitlines()
    if empty := [i for i, line in enumerate(lines, 1) if not line.strip()]:
        raise InputError(
            f"{argument}: line {empty[0]} of {file} is empty; parallel text needs both sides of every line"
        )
    return lines


def read_parallel(options: argparse.Namespace) -> Any:
    """--source, --target and --links (Pharaoh: "0-0 1-2", a line a pair) as parallel text."""
    source, target = (read_lines(getattr(options, side), argument=side) for side in ("source", "target"))
    links = None
    if options.links:
        links = [
            _pharaoh(line, i, options.links)
            for i, line in enumerate(read_lines(options.links, argument="links"), 1)
        ]
    split = [[text.split() for text in side] for side in (source, target)] if links else [source, target]
    return SimpleNamespace(source=split[0], target=split[1], links=links)


def _pharaoh(line: str, number: int, path: str) -> list[tuple[int, int]]:
    pairs = [part.split("-") for part in line.split()]
    if any(len(pair) != 2 or not pair[0].isdigit() or not pair[1].isdigit() for pair in pairs):
        raise InputError(f"links: expected pairs such as 0-0 1-2, found {line!r} in line {number} of {path}")
    return [(int(a), int(b)) for a, b in pairs]
