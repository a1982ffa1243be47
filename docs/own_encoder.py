"""A real encoder, aligned on real text and asked on real text; docs/own-encoder.md has what each step printed.

    python docs/own_encoder.py --encoder multilingual-e5-small --data data --out runs/own-encoder

`--encoder` is any folder (or Hugging Face id) that `load_encoder` takes; `--data` holds Universal Dependencies, Tatoeba
and SIB-200 as their publishers name the files. `--share 0.1` takes a tenth of every set, to see that all works.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import xlprobe as xl

PAIRS = ("en-de", "en-ru")  # of the study


def main(argv: list[str] | None = None) -> None:
    """Every step, one after the other."""
    options = arguments(argv)
    data, out = Path(options.data), Path(options.out)
    ud, started = data / "ud", time.monotonic()

    def some(n: int, *, least: int = 32) -> int:
        return max(least, round(n * options.share))

    def clock(step: str) -> None:
        print(f"[{(time.monotonic() - started) / 60:4.1f} min] {step}", flush=True)

    clock("1. The encoder")
    encoder = xl.load_encoder(options.encoder)
    layer = round(2 * encoder.n_layers / 3)  # alignment is made and measured two thirds up; 0: the embeddings
    print(encoder)

    clock("2. Alignment on Tatoeba; its first pairs are kept to see whether it worked")
    pairs = xl.load_bitext(data / "tatoeba/tatoeba.deu-eng.eng", data / "tatoeba/tatoeba.deu-eng.deu")
    held_out, learned = pairs[: some(200)], pairs[some(200) :]
    print(learned)
    # A short training, for a page that is read in half an hour; without it: one epoch, at least 50 steps of 64.
    plan = xl.Training(steps=some(30, least=2), batch=32, lr=2e-5, warmup=3)
    aligned = xl.align(encoder, learned, training=plan, folder=out / "aligned")  # the same call goes on
    if not (out / "aligned/model").exists():
        aligned.save(out / "aligned/model")  # opens in plain transformers too
    print(f"retrieval {xl.retrieval(encoder, held_out):.3f}, aligned {xl.retrieval(aligned, held_out):.3f}")

    clock("3. Tags, learned on English EWT and asked on PUD, in German too")
    files = {code: ud / f"UD_{name}-PUD/{code}_pud-ud-test.conllu" for code, name in LANGUAGES.items()}
    pud = {code: xl.load_conllu(file) for code, file in files.items()}
    train = xl.load_conllu(ud / "UD_English-EWT/en_ewt-ud-train.conllu")[: some(800)]
    task = xl.Task("tagging", train=train, test={code: corpus[: some(300)] for code, corpus in pud.items()})
    print(task)
    for name, start in (("pretrained", encoder), ("aligned", aligned)):
        scores = xl.finetune_seeds(start, task, seeds=(0,), folder=out / f"tags-{name}")
        scores.save(out / f"scores-{name}")
        print(name, scores.summary()[["language", "accuracy", "macro_f1"]].round(3).to_dict("records"))

    clock("4. Distances on PUD, its sentences matched by sent_id")
    parallel = xl.match_conllu(files["en"], files["de"]).bitext[: some(200)]
    for name, model in (("pretrained", encoder), ("aligned", aligned)):
        measured = xl.distances(model, parallel)
        measured.save(out / f"distances-{name}")
        gaps = {name: measured.value(name, layer=layer, column="gap") for name in MEASURES}
        print(name, {name: round(gap, 3) for name, gap in gaps.items()})

    clock("5. Gradients: do task and alignment pull the encoder the same way?")
    folder = xl.DataFolder(data, held_out=some(150, least=8))
    sizes = xl.FileSizes(
        bitext=some(320),
        train=some(640),
        test=some(150),
        held_out=some(150, least=8),
        align_steps=some(20, least=2),
        finetune_steps=some(40, least=2),
        head_steps=some(60, least=2),
        probe_batches=8,
    )
    lab = xl.FileLab(encoder, folder, sizes)
    probe = xl.gradients(
        encoder,
        task=lab.task_loss(encoder, "pos", source="en"),
        alignment=lab.alignment_loss(encoder, "en-de", "sentence"),
        target=lab.task_loss(encoder, "pos", pair="en-de", source="en"),  # PUD, in German
        shuffled=lab.alignment_loss(encoder, "en-de", "sentence", shuffled=True),
    )
    probe.save(out / "gradients")
    shown = ("cosine", "low", "high", "source_target", "shuffled", "ratio")
    print({name: round(float(probe.encoder[name]), 4) for name in shown})

    clock("6. The study: does alignment change the score, and could one have known?")
    plan = xl.StudyConfig(pairs=PAIRS, objectives=("sentence", "token"), tasks=("pos",), seeds=1)
    study = xl.transfer_study(lab, plan, out / "study")
    columns = ["pair", "objective", "delta_retrieval", "delta_score", "low", "high", "gradient_cosine"]
    print(study.cells[columns].round(3).to_string(index=False))
    for claim in study.claims:
        print(f"{claim['claim']}: {claim['answer']}")
    print(xl.write_page(study, out / "study"))
    clock(f"done; the pages of all steps: xlprobe report {out}")


LANGUAGES = {"en": "English", "de": "German"}
MEASURES = ("cosine", "weak_retrieval", "cka")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--encoder", required=True, help="folder or Hugging Face id")
    parser.add_argument("--data", required=True, help="folder with ud, tatoeba and sib200")
    parser.add_argument("--out", default="runs/own-encoder", help="default runs/own-encoder")
    parser.add_argument("--share", type=float, default=1.0, help="of every set (default 1)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
