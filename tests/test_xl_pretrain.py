"""The tokenizer of a small encoder of one's own: the same texts give the same one."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from reports.errors import InputError
from tests.tiny import SENTENCES
from xlprobe.training.pretrain import SPECIAL, train_tokenizer

SCRIPT = """
import json
from tests.tiny import SENTENCES
from xlprobe.training.pretrain import train_tokenizer
print(json.dumps(json.loads(train_tokenizer(SENTENCES, 150).backend_tokenizer.to_str())["model"]["vocab"]))
"""


def pieces(texts: Any, vocabulary: int) -> list[list[Any]]:
    """(piece, score), in the order of the ids."""
    core = train_tokenizer(texts, vocabulary).backend_tokenizer
    found: list[list[Any]] = json.loads(core.to_str())["model"]["vocab"]
    return found


def test_the_same_texts_give_the_same_tokenizer_in_every_process() -> None:
    here = pieces(SENTENCES, 150)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == here
    assert pieces(SENTENCES[:-1], 150) != here


def test_special_pieces_come_first_and_all_characters_have_one() -> None:
    tokenizer = train_tokenizer(SENTENCES, 150)
    assert len(tokenizer) <= 150
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == SPECIAL
    for text in SENTENCES:
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id in tokenizer("日本").input_ids


def test_a_vocabulary_without_room_for_the_characters_is_refused() -> None:
    with pytest.raises(
        InputError, match="vocabulary: expected room for the characters of the texts, found 10"
    ):
        train_tokenizer(SENTENCES, 10)
