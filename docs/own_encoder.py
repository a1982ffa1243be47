"""A real encoder, aligned on real text and asked on real text: docs/own-encoder.md says what each step printed.

    python docs/own_encoder.py --encoder multilingual-e5-small --data data --out runs/own-encoder

`--encoder` is any folder (or Hugging Face id) that `load_encoder` takes; `--data` holds Universal Dependencies and
Tatoeba as their publishers name the files. `--share 0.1` takes a tenth of every training, to see that all works.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import xlprobe as xl

PAIRS = ("en-de", "en-tr")  # of the study


def main() -> None:
    """Every step, one after the other."""
    options = arguments()
    data, out, share = Path(options.data), Path(options.out), options.share
    ud, started = data / "ud", time.monotonic()

    # 1. The encoder: its layers are counted from 0 (the embeddings).
    encoder = xl.load_encoder(options.encoder)
    print(encoder)

    # 2. Pairs to align on; the first two hundred are kept to see whether it worked.
    pairs = xl.load_bitext(data / "tatoeba/tatoeba.deu-eng.eng", data / "tatoeba/tatoeba.deu-eng.deu")
    held_out, pairs = pairs[:200], pairs[200:]
    print(pairs)
    aligned = xl.align(encoder, pairs[: round(800 * share)], held_out=held_out, folder=out / "aligned")
    aligned.save(out / "aligned" / "model")  # opens in plain transformers too
    print(f"retrieval: {xl.retrieval(encoder, held_out):.3f}, aligned {xl.retrieval(aligned, held_out):.3f}")

    # 3. Tags, learned in English and asked in German, which nobody has shown the head.
    pud = {code: xl.load_conllu(ud / f"UD_{name}-PUD/{code}_pud-ud-test.conllu") for code, name in NAMES}
    train = xl.load_conllu(ud / "UD_English-EWT/en_ewt-ud-train.conllu")[: round(3200 * share)]
    task = xl.Task("tagging", train=train, test=pud)
    print(task)
    for name, start in (("pretrained", encoder), ("aligned", aligned)):
        model = xl.finetune(start, task, folder=out / f"tags-{name}")
        model.save(out / f"tags-{name}" / "model")
        scores = {code: model.score(corpus)["accuracy"] for code, corpus in task.test.items()}
        print(name, {code: round(score, 3) for code, score in scores.items()})

    # 4. How far apart the languages lie, on text that no step above has seen: PUD, matched by sent_id.
    parallel = xl.match_conllu(
        ud / "UD_English-PUD/en_pud-ud-test.conllu", ud / "UD_German-PUD/de_pud-ud-test.conllu"
    ).bitext[: round(300 * share)]
    for name, model in (("pretrained", encoder), ("aligned", aligned)):
        measured = xl.distances(model, parallel)
        measured.save(out / f"distances-{name}")
        top = {
            metric: measured.value(metric, layer=8, column="gap")
            for metric in ("cosine", "weak_retrieval", "cka")
        }
        print(name, {metric: round(gap, 3) for metric, gap in top.items()})

    # 5. Do the task and the alignment pull the encoder the same way? Tags and pairs of the folder.
    folder = xl.DataFolder(data)
    sizes = xl.FileSizes(
        bitext=600, train=1600, test=200, align_steps=40, finetune_steps=60, align_lr=2e-5, finetune_lr=5e-5
    )
    lab = xl.FileLab(encoder, folder, sizes)
    probe = xl.gradients(
        encoder,
        task=lab.task_loss(encoder, "pos", source="en"),
        alignment=lab.alignment_loss(encoder, "en-de", "sentence"),
        target=lab.task_loss(encoder, "pos", pair="en-de", source="en"),
        shuffled=lab.alignment_loss(encoder, "en-de", "sentence", shuffled=True),
    )
    probe.save(out / "gradients")
    print({name: round(probe.encoder[name], 4) for name in ("cosine", "low", "high", "shuffled", "ratio")})

    # 6. The study: is it the alignment that changes the score, and could one have known?
    plan = xl.StudyConfig(pairs=PAIRS, objectives=("sentence", "token"), tasks=("pos",), seeds=1)
    study = xl.transfer_study(lab, plan, out / "study")
    print(
        study.cells[["pair", "objective", "delta_retrieval", "delta_score", "low", "high", "gradient_cosine"]]
    )
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


NAMES = (("en", "English"), ("de", "German"))


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--data", required=True, help="folder with ud, sib200 and tatoeba")
    parser.add_argument("--out", default="runs/own-encoder")
    parser.add_argument("--share", type=float, default=1.0, help="of every training and measurement")
    return parser.parse_args()


if __name__ == "__main__":
    main()
