"""The header of a GGUF file: what it says of its model, and where its tensors lie, before a weight is read.

A GGUF file is one file of metadata (sizes, tokenizer), a table of tensors and their data, mostly in blocks of few bits.
Layout (little-endian): "GGUF", version, number of tensors, number of fields; fields (key, type, value); tensors (name,
dimensions, type, offset); padding to `general.alignment`; data. Source: ggml's docs/gguf.md.

What can be refused off the header is refused by an `InputError` of one line: no GGUF file, a version or a tensor type
that is unknown, a file shorter than its own table says. The types' sizes are those of the package `gguf`.
"""

from __future__ import annotations

import importlib.util
import math
import mmap
import re
import struct
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from reports.errors import InputError, first_line

__all__ = ["GgufHeader", "GgufTensor", "read_header"]

VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the table.

    Attributes:
        name: As "blk.0.attn_q.weight".
        shape: In torch's order.
        type: As "Q4_1".
    """

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def n_elements(self) -> int:
        """How many weights it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its data.

    Attributes:
        file: The file.
        fields: Value by key; of an array of texts (vocabulary, merges) its length alone.
        tensors: The table of tensors.
    """

    file: Path
    fields: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it: "llama", "gpt2"."""
        return str(self.fields["general.architecture"])

    @property
    def n_elements(self) -> int:
        """The weights of all tensors."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @cached_property
    def quantization(self) -> str:
        """How most weights are stored, as "4-bit (Q4_1)"; "" where that is 32 or 64 bits."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            counts[tensor.type] += tensor.n_elements
        most = counts.most_common(1)[0][0]
        bits = re.search(r"\d+", most)
        return "" if bits is None or int(bits[0]) >= 32 else f"{bits[0]}-bit ({most})"


def read_header(file: str | Path, *, argument: str = "model") -> GgufHeader:
    """Reads the header of the GGUF file `file`.

    Args:
        file: The file.
        argument: The caller's argument, which begins an error's message.

    Raises:
        InputError: No such file, no GGUF file, an unknown version, field or tensor type, a file that ends too early, or
            the package `gguf` is not installed.
    """
    path = Path(file)
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{argument}: {path.name} is read by the package gguf: pip install 'mechedit[gguf]'")
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).header()
    except OSError as error:
        raise InputError(f"{argument}: {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, struct.error) as error:
        raise InputError(f"{argument}: {path} is no sound GGUF file: {first_line(error)}") from error


class _Reader:
    """Walks through a mapped file; every number is checked against the file's length before it is believed."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def header(self) -> GgufHeader:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        (version,) = self.take("I")
        if version not in VERSIONS:
            raise ValueError(f"expected version {' or '.join(map(str, VERSIONS))}, found {version}")
        n_tensors, n_fields = self.take("QQ")
        self.refuse_more(n_tensors, 24)
        self.refuse_more(n_fields, 12)
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            key, (kind,) = self.text(), self.take("I")
            if key in fields:
                raise ValueError(f"the field {key!r} occurs twice")
            fields[key] = self.value(kind)
        if not isinstance(fields.get("general.architecture"), str):
            raise ValueError("it names no general.architecture")
        rows = [self.tensor() for _ in range(n_tensors)]
        tensors = tuple(tensor for tensor, _ in rows)
        if not tensors or len({tensor.name for tensor in tensors}) < len(tensors):
            raise ValueError("it has no tensor, or two of one name")
        self.check_length(fields.get("general.alignment", 32), max(end for _, end in rows))
        return GgufHeader(self.path, fields, tensors)

    def take(self, form: str) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{form}")
        self.refuse_more(1, size)
        values = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += size
        return values

    def refuse_more(self, count: int, size: int) -> None:
        """Refuses `count` things of at least `size` bytes each where the file ends before them."""
        if count * size > len(self.data) - self.at:
            raise ValueError(f"it ends after {len(self.data)} bytes, inside its header")

    def text(self) -> str:
        (length,) = self.take("Q")
        self.refuse_more(length, 1)
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in FIXED:
            return self.take(FIXED[kind])[0]
        if kind == STRING:
            return self.text()
        if kind != ARRAY or depth > 2:
            raise ValueError(f"expected a known type of field, found {kind}")
        inner, count = self.take("IQ")
        if inner in FIXED:
            self.refuse_more(count, struct.calcsize(FIXED[inner]))
            return list(self.take(f"{count}{FIXED[inner]}"))
        self.refuse_more(count, 8)
        if inner != STRING:
            return [self.value(inner, depth + 1) for _ in range(count)]
        for _ in range(count):  # vocabularies and merges: walked over, not kept
            (length,) = self.take("Q")
            self.refuse_more(length, 1)
            self.at += length
        return count

    def tensor(self) -> tuple[GgufTensor, int]:
        """One row of the table, and where its data ends behind the start of all data."""
        name = self.text()
        (n_dimensions,) = self.take("I")
        if not 1 <= n_dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"{name!r} has {n_dimensions} dimensions")
        shape = tuple(reversed(self.take(f"{n_dimensions}Q")))
        type_id, offset = self.take("IQ")
        type_name, per_block, block_bytes = _type(type_id)
        if shape[-1] % per_block:
            raise ValueError(f"{name!r} has rows of {shape[-1]} in blocks of {per_block}")
        return GgufTensor(name, shape, type_name), offset + math.prod(shape) // per_block * block_bytes

    def check_length(self, alignment: Any, data_bytes: int) -> None:
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"expected an alignment of 1 byte or more, found {alignment!r}")
        needed = -(-self.at // alignment) * alignment + data_bytes
        if needed > len(self.data):
            raise ValueError(
                f"its tensors end at byte {needed}, the file has {len(self.data)}; it was cut off: fetch it again"
            )


@cache
def _type(type_id: int) -> tuple[str, int, int]:
    """Name, weights a block and bytes a block of a tensor type that `gguf` can turn into numbers."""
    import numpy as np  # slow to import, as gguf is, and a plan of other files needs none of it
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        kind = GGMLQuantizationType(type_id)
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        dequantize(np.zeros((1, block_bytes), dtype=np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(f"it has tensors of type {type_id}, which gguf cannot dequantise") from error
    return kind.name, per_block, block_bytes
