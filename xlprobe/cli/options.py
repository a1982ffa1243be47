"""What every command takes, and what every command prints: a table, or one JSON object."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from reports.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from xlprobe.encoder import Encoder


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        """Status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Words may stand behind options too, where a command takes `words` (argparse itself reads one run of them)."""
        options, rest = self.parse_known_args(args, namespace)
        if rest and (not hasattr(options, "words") or any(word.startswith("-") for word in rest)):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:
            options.words = [*options.words, *rest]
        return options


def command(
    commands: Any, name: str, run: Any, example: str, *, encoder: bool = True
) -> argparse.ArgumentParser:
    """Adds a subcommand whose help is the docstring of `run`, with the options that all commands share."""
    help_line = (run.__doc__ or "").strip().splitlines()[0]
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_line, description=help_line, epilog=f"example: {example}"
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (default 0)")
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


def count(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


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


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line; NaN and infinities as null: JSON has neither."""
    print(json.dumps(_finite(value), ensure_ascii=False))


def as_table(frame: pd.DataFrame) -> str:
    """A frame as aligned columns, four decimals."""
    return str(frame.to_string(index=False, float_format=lambda x: f"{x:.4f}"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
