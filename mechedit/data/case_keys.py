"""The ids of a fact's cases in a run folder: what the runs write, and what their plans count."""

from __future__ import annotations

from mechedit.data.records import FactEdit

__all__ = ["ablation_key", "anatomy_key", "attribution_key", "evaluation_key", "ripple_key"]


def evaluation_key(editor: str, fact: FactEdit, mode: str = "single") -> str:
    """The case of `fact` under the editor of this name (`mechedit.evaluation.evaluate`).

    >>> evaluation_key("mega", FactEdit("Ann", "{} speaks", "Dutch", "Greek", case_id=3), "batch")
    'mega-batch-3'
    """
    return f"{editor}-{'' if mode == 'single' else f'{mode}-'}{fact.case_id}"


def ripple_key(editor: str, fact: FactEdit) -> str:
    """The case of RippleEdits' tests of `fact` under the editor of this name (`mechedit.evaluation.ripple`)."""
    return f"ripple-{editor}-{fact.case_id}"


def anatomy_key(split: str, fact: FactEdit) -> str:
    """The case of `fact`, of the split "fact" or "selection", in a study of anatomy (`mechedit.anatomy.study`)."""
    return f"{split}-{fact.case_id}"


def ablation_key(model: str, fact: FactEdit) -> str:
    """The case of `fact` on the model of this name in a study of faithfulness (`mechedit.faithfulness.study`)."""
    return f"{model}-{fact.case_id}"


def attribution_key(fact: FactEdit) -> str:
    """The case that holds the attribution of `fact` before and after the demo's edit."""
    return f"attribution-{fact.case_id}"
