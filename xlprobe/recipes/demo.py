"""The whole study on the embedded languages at a small setting: align, probe, fine-tune, predict, advise, report.

`run_demo` runs `xlprobe.transfer.study` on a `WorldLab` and writes its page, on which `sentence` and `token`
alignment must raise held-out retrieval, and shuffled pairs must not.
"""

from __future__ import annotations

import os
from pathlib import Path

from xlprobe.encoders.encoder import Encoder
from xlprobe.recipes.page import write_page
from xlprobe.transfer.laboratory import Sizes
from xlprobe.transfer.result import Study
from xlprobe.transfer.study import StudyConfig, transfer_study
from xlprobe.transfer.world_lab import WorldLab

__all__ = ["DEMO_PLAN", "DEMO_SIZES", "run_demo"]

DEMO_PLAN = StudyConfig(seeds=2)
DEMO_SIZES = Sizes(
    bitext=800,
    train=800,
    test=200,
    held_out=150,
    align_steps=40,
    finetune_steps=120,
    head_steps=60,
    probe_batches=12,
    batch=16,
    align_lr=4e-3,
    finetune_lr=4e-3,
)


def run_demo(
    encoder: Encoder,
    out: str | Path,
    *,
    plan: StudyConfig = DEMO_PLAN,
    sizes: Sizes = DEMO_SIZES,
    seed: int = 0,
    progress: bool = True,
) -> Study:
    """Run the study into `out` (or go on with it) and write `out/report.html`; the study.

    Raises:
        InputError: `out` holds something else, or a run with another configuration.
    """
    laboratory = WorldLab(encoder, sizes, seed=seed)
    study = transfer_study(laboratory, plan, out, workers=os.cpu_count() or 1, progress=progress)
    write_page(
        study, out, model=repr(encoder), title="What alignment does to transfer, on five embedded languages"
    )
    return study
