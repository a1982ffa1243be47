"""What a training depends on, written into its folder, so that another training never goes on there in silence.

1. The facts of a training are plain values by name: objective, data, encoder, tokenizer, frozen layers, schedule,
   versions; text and weights are told by their sha256.
2. `claim` writes them to `training.json` in the folder, with one digest of all, before the first step.
3. The next call in the folder must bring the same digest; otherwise it is refused, with every fact that differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from experiments.cases import settings_digest
from experiments.checkpoints import tokenizer_digest
from experiments.provenance import versions
from experiments.run_checks import flattened
from reports.errors import InputError, IntegrityError
from reports.files import write
from reports.parsing import parse
from xlprobe.data.corpora import Bitext
from xlprobe.data.tasks import Task
from xlprobe.encoders.encoder import Encoder

__all__ = ["RECORD", "bitext_facts", "claim", "encoder_facts", "environment", "task_facts"]

METHOD = 2  # rises whenever the same settings train other weights
RECORD = "training.json"
_PACKAGES = ("mechedit", "torch", "transformers", "tokenizers", "accelerate", "torchjd")
_PLACE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
_SHOWN = 5  # facts that differ


def environment() -> dict[str, Any]:
    """The method's number and the versions that decide what the same settings train."""
    known = versions()
    return {"method": METHOD, "versions": {name: known[name] for name in _PACKAGES if name in known}}


def encoder_facts(encoder: Encoder) -> dict[str, Any]:
    """Weights, tokenizer, configuration, dropout and attention of an encoder; neither its name nor its folder."""
    config = encoder.model.config
    plain = {key: value for key, value in config.to_dict().items() if key not in _PLACE}
    dropout = [module.p for module in encoder.model.modules() if isinstance(module, nn.Dropout)]
    return {
        "weights": encoder.hash,
        "tokenizer": tokenizer_digest(encoder.tokenizer),
        "config": settings_digest(json.dumps(plain, sort_keys=True, default=str)),
        "dropout": settings_digest(dropout),
        "attention": str(getattr(config, "_attn_implementation", "unknown")),
    }


def bitext_facts(bitext: Bitext) -> dict[str, Any]:
    """The number of pairs, and the sha256 of their words and links."""
    digest = settings_digest(bitext.source, bitext.target, bitext.links)
    return {"pairs": len(bitext), "text": digest}


def task_facts(task: Task) -> dict[str, Any]:
    """Kind, classes, number of sentences and the sha256 of what is learned; tests decide no weight."""
    digest = settings_digest(task.train.words, task.train.labels)
    return {"kind": task.kind, "labels": list(task.labels), "sentences": len(task.train), "text": digest}


def claim(folder: Path, facts: Mapping[str, Any]) -> None:
    """Take the folder for the training of these facts, or check that it is that training's already.

    Args:
        folder: The training's folder.
        facts: Plain data by name, nested as deep as wanted.

    Raises:
        InputError: It holds another training, or a checkpoint of which nobody knows what it depends on.
        IntegrityError: Its record is damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     claim(Path(name), {"objective": "token", "lr": 0.1})
    ...     claim(Path(name), {"objective": "token", "lr": 0.1})
    ...     claim(Path(name), {"objective": "token", "lr": 0.2})
    Traceback (most recent call last):
        ...
    reports.errors.InputError: folder: ... holds another training: lr is 0.1 there and 0.2 here; name another folder ...
    """
    mine = flattened(json.loads(json.dumps(facts)))
    record = {"digest": settings_digest(sorted(mine.items())), "settings": mine}
    theirs = _record(folder)
    if theirs is None:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    elif theirs.get("digest") != record["digest"]:
        _refuse(folder, theirs["settings"], mine)


def _record(folder: Path) -> dict[str, Any] | None:
    file = folder / RECORD
    if not file.is_file():
        if (folder / "checkpoint").exists():
            raise InputError(
                f"folder: {folder} holds a training that does not say what it depends on (an earlier version wrote "
                "it); name another folder or remove it"
            )
        return None
    try:
        record = parse(file.read_text(encoding="utf-8"))
        if not isinstance(record["settings"], dict):
            raise TypeError("settings are no table")
        return dict(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{file}: expected the record of a training ({error}); remove the folder"
        ) from error


def _refuse(folder: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    absent = object()
    names = [*theirs, *(name for name in mine if name not in theirs)]
    unlike = [name for name in names if theirs.get(name, absent) != mine.get(name, absent)]
    said = [
        f"{name} is {_show(theirs.get(name, 'absent'))} there and {_show(mine.get(name, 'absent'))} here"
        for name in unlike[:_SHOWN]
    ]
    rest = f", and {len(unlike) - _SHOWN} more" if len(unlike) > _SHOWN else ""
    raise InputError(
        f"folder: {folder} holds another training: {'; '.join(said) or 'its record was changed'}{rest}; "
        "name another folder or remove it"
    )


def _show(value: Any) -> str:
    text = str(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]
    return text if len(text) <= 60 else text[:59] + "…"
