"""C = E[k kᵀ]: against a naive sum, streamed, merged, resumed and cached under all that it depends on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechedit.cli import main
from mechedit.editors.weights import covariance as module
from mechedit.editors.weights.corpus import Corpus, embedded_corpus, open_corpus, text_corpus, windows
from mechedit.editors.weights.covariance import Covariance, covariance_for, covariances
from mechedit.models.hooked import HookedModel
from reports.errors import InputError
from tests.tiny import ARCHS, SENTENCES, Arch, tiny_folder, tiny_model

CORPUS = text_corpus(SENTENCES * 8, source="sentences")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MECHEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def naive(model: HookedModel, layer: int, texts: tuple[str, ...]) -> tuple[Tensor, int]:
    """One text at a time, no padding."""
    total, n = torch.zeros(model.shape.d_mlp, model.shape.d_mlp).double(), 0
    for text in texts:
        keys = model.residual_view(model.tokenize(text)).mlp_post[layer].double()
        total += keys.mT @ keys
        n += len(keys)
    return total, n


@pytest.mark.parametrize("arch", ARCHS)
def test_it_is_the_naive_sum(arch: Arch) -> None:
    model = tiny_model(arch)
    covariance_of = covariances(model, CORPUS, layers=[0, 2], progress=False)
    for layer, c in covariance_of.items():
        moment, n = naive(model, layer, SENTENCES)
        assert c.n_tokens == 8 * n
        size = float(moment.abs().max())
        torch.testing.assert_close(c.moment, 8 * moment, rtol=0, atol=8e-6 * size)
        torch.testing.assert_close(c.matrix, moment / n, rtol=0, atol=1e-6 * size)
    assert not torch.allclose(covariance_of[0].matrix, covariance_of[2].matrix)


def test_the_first_tokens_only() -> None:
    model = tiny_model("gpt2")
    covariance = covariances(model, CORPUS, layers=[1], tokens=7, progress=False)[1]
    keys = model.residual_view(model.tokenize(SENTENCES[0])).mlp_post[1, :7].double()
    assert covariance.n_tokens == 7
    torch.testing.assert_close(covariance.moment, keys.mT @ keys, rtol=1e-5, atol=1e-5)


def test_sums_of_parts_add_up_to_the_whole() -> None:
    model = tiny_model("llama")
    halves = [text_corpus(SENTENCES[:5], source="a"), text_corpus(SENTENCES[5:], source="b")]
    parts = [covariances(model, half, layers=[1], progress=False)[1] for half in halves]
    whole = covariances(model, text_corpus(SENTENCES, source="all"), layers=[1], progress=False)[1]
    size = float(whole.moment.abs().max())
    torch.testing.assert_close(parts[0].moment + parts[1].moment, whole.moment, rtol=0, atol=1e-6 * size)
    assert parts[0].n_tokens + parts[1].n_tokens == whole.n_tokens


def test_a_stopped_run_goes_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    model = tiny_model("gpt2")
    monkeypatch.setattr(module, "BATCH", 8)
    whole = covariances(model, CORPUS, layers=[0, 1], progress=False)
    for file in cache.glob("*"):
        file.unlink()
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    calls = []
    add = module._add

    def interrupted(*args: object) -> int:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return add(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        covariances(model, CORPUS, layers=[0, 1], progress=False)
    assert list(cache.glob("*unfinished*"))
    again = covariances(model, CORPUS, layers=[0, 1], progress=False)
    assert len(calls) == 6 + 10 - 5
    assert all(torch.equal(again[layer].moment, whole[layer].moment) for layer in (0, 1))
    assert not list(cache.glob("*unfinished*"))


def test_the_cache_is_read_and_its_key_holds_everything(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    model = tiny_model("gpt2")
    first = covariances(model, CORPUS, layers=[0], progress=False)[0]
    monkeypatch.setattr(module, "_add", None)  # a second pass would fail
    again = covariances(model, CORPUS, layers=[0], progress=False)[0]
    assert torch.equal(first.moment, again.moment)
    assert (again.n_tokens, again.source) == (first.n_tokens, "sentences")
    other_text = text_corpus(SENTENCES, source="sentences")
    files = {
        module._file(model, CORPUS, 0, None),
        module._file(model, CORPUS, 1, None),
        module._file(model, CORPUS, 0, 50),
        module._file(model, other_text, 0, None),
        module._file(tiny_model("gpt2", bos=True), CORPUS, 0, None),
        module._file(tiny_model("gpt2-untied"), CORPUS, 0, None),
    }
    monkeypatch.setattr(module, "WINDOW", 9)
    files |= {module._file(model, CORPUS, 0, None)}
    monkeypatch.setattr(module, "SCHEMA_VERSION", 2)
    files |= {module._file(model, CORPUS, 0, None)}
    assert len(files) == 8
    assert all(file.parent == cache for file in files)


def test_condition_and_ridge(caplog: pytest.LogCaptureFixture) -> None:
    well = Covariance(torch.diag(torch.tensor([6.0, 3.0]).double()), 3, 0, "")
    assert well.condition == pytest.approx(2.0)
    keys = torch.tensor([[2.0], [1.0]])
    torch.testing.assert_close(well.solve(keys), torch.linalg.inv(well.matrix) @ keys.double())
    assert not caplog.records
    flat = Covariance(torch.ones(2, 2).double(), 1, 3, "")
    assert flat.condition == float("inf")
    with caplog.at_level(logging.WARNING):
        solved = flat.solve(keys)
    assert "layer 3" in caplog.text
    assert torch.isfinite(solved).all()
    with pytest.raises(InputError, match="not finite"):
        Covariance(torch.full((2, 2), torch.nan).double(), 1, 0, "").solve(keys)


# --- texts --------------------------------------------------------------------------------------------------


def test_a_file_a_folder_and_a_data_set_are_the_same_text(tmp_path: Path) -> None:
    file = tmp_path / "text" / "a.txt"
    file.parent.mkdir()
    file.write_text("One.\nStill one.\n\n\nTwo.\n", encoding="utf-8")
    wanted = ["One.\nStill one.", "Two."]
    assert list(open_corpus(file).documents()) == wanted
    (tmp_path / "text" / "b.txt").write_text("Three.", encoding="utf-8")
    folder = open_corpus(tmp_path / "text")
    assert list(folder.documents()) == [*wanted, "Three."] == list(folder.documents())
    assert folder.digest != open_corpus(file).digest


@pytest.mark.parametrize("text", ["no-such-text", "no/such"])
def test_a_text_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="text: "):
        open_corpus(text)


def test_bad_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        list(open_corpus(tmp_path / "latin.txt").documents())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="none in"):
        open_corpus(tmp_path / "empty")
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="at least one token"):
        covariances(model, text_corpus([], source="nothing"), layers=[0], progress=False)
    for layers, tokens in (([9], None), ([], None), ([0], 0)):
        with pytest.raises(InputError, match="layers"):
            covariances(model, CORPUS, layers=layers, tokens=tokens, progress=False)


def test_a_text_is_streamed() -> None:
    model = tiny_model("gpt2")

    def endless() -> Iterator[str]:
        while True:
            yield SENTENCES[0]

    corpus = Corpus("endless", "", endless)
    assert covariances(model, corpus, layers=[0], tokens=400, progress=False)[0].n_tokens == 400
    long = text_corpus([" ".join(SENTENCES)], source="one line")
    pieces = list(windows(model, long, length=20))
    assert max(map(len, pieces)) == 20
    assert torch.equal(torch.cat(pieces), model.tokenize(" ".join(SENTENCES)))


# --- what editors get ---------------------------------------------------------------------------------------


def test_without_a_text_the_longest_in_the_cache_serves(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("gpt2")
    module._KNOWN.clear()
    covariances(model, CORPUS, layers=[1], tokens=30, progress=False)
    longest = covariances(model, CORPUS, layers=[1], progress=False)[1]
    with caplog.at_level(logging.WARNING):
        assert torch.equal(covariance_for(model, 1).moment, longest.moment)
        assert not caplog.records
        stored = covariance_for(model, 0)
    assert "mechedit covariance" in caplog.text
    assert stored.n_tokens == 2 * model.shape.d_mlp
    module._KNOWN.clear()


def test_the_embedded_models_bring_theirs(factworld_gpt2: HookedModel) -> None:
    corpus = embedded_corpus(documents=40)
    covariance = covariances(factworld_gpt2, corpus, layers=[3], progress=False)[3]
    assert covariance.n_tokens > 800
    assert embedded_corpus(documents=40).digest == corpus.digest
    assert embedded_corpus(documents=40, seed=1).digest != corpus.digest


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(SENTENCES), encoding="utf-8")
    command = [
        "covariance",
        "--model",
        str(tiny_folder("gpt2")),
        "--text",
        str(file),
        "--layers",
        "0-1",
        "--quiet",
    ]
    assert main([*command, "--json"]) == 0
    import json

    out = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in out["layers"]] == [0, 1]
    assert len(list(cache.glob("covariance-*.safetensors"))) == 2
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "tokens" in shown
    assert "condition" in shown
    assert main(["covariance", "--model", str(tiny_folder("gpt2"))]) == 2
