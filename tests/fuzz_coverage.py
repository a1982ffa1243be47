"""One parser under coverage-guided fuzzing (atheris, libFuzzer), in a process of its own, which the fuzzer takes over.

    python -m tests.fuzz_coverage PARSER SECONDS FOLDER

FOLDER/inputs holds what was found interesting and is gone on with; what fails is in FOLDER/crash-*, the first byte the
number of the parser's file. libFuzzer's own words, on standard error, say at the end how many inputs there were.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path


def main(name: str, seconds: str, folder: str) -> None:
    """Ends the process."""
    import atheris  # here: the extra `fuzz`, and what is imported under it is changed

    with atheris.instrument_imports(include=["reports", "experiments", "mechedit", "xlprobe"]):
        from tests.fuzzing import PARSERS, check, kept, read_kept
        from tests.test_fuzz import pack, unpack

    parser, out = PARSERS[name], Path(folder)
    (out / "inputs").mkdir(parents=True, exist_ok=True)
    known = [read_kept(file) for own, file in kept() if own == name]
    for given in [*parser.files.items(), *known]:
        data = pack(parser, given)
        (out / "inputs" / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    scratch = (
        out / "scratch"
    )  # not a temporary folder: the fuzzer ends the process, and nothing would take it away
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()

    def one(data: bytes) -> None:
        check(parser, scratch, unpack(parser, data))

    flags = [f"-max_total_time={seconds}", "-print_final_stats=1", f"-artifact_prefix={out}/"]
    flags += ["-max_len=20000", "-rss_limit_mb=6000", "-timeout=30"]
    atheris.Setup([sys.argv[0], *flags, str(out / "inputs")], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
