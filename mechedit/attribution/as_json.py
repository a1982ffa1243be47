"""Results as plain lists and numbers, for `json.dumps`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mechedit.attribution.result import Attribution, AttributionContrast
from mechedit.attribution.units import CONTRASTED, UNITS

__all__ = ["attribution_json", "contrast_json"]


def attribution_json(attr: Attribution) -> dict[str, Any]:
    """The result as plain lists and numbers: frames become rows (dicts by column name), for `json.dumps`.

    Keys: ids, tokens, target, target_id, target_token, target_scored, scored_ids, logp, embedding_logp, prior_logp,
    completeness_gap, sigma, biases, sign, method, certificate, and each frame of `UNITS` and `promotes`.
    """
    texts = ("target", "target_id", "target_token", "target_scored")
    numbers = ("logp", "embedding_logp", "prior_logp", "completeness_gap", "sigma")
    options = ("biases", "sign", "method")
    data: dict[str, Any] = {"ids": list(attr.ids), "tokens": list(attr.tokens)}
    data |= {name: getattr(attr, name) for name in (*texts, *numbers, *options)}
    data["scored_ids"] = list(attr.target_ids[: attr.n_scored])
    data["certificate"] = dict(attr.certificate)
    return data | {name: getattr(attr, name).to_dict("records") for name in (*UNITS, "promotes")}


def contrast_json(difference: AttributionContrast) -> dict[str, Any]:
    """The difference as plain lists and numbers: frames become rows (dicts by column name), for `json.dumps`.

    Keys: a, b (the fields of `Side`), ids, tokens, logp, embedding_logp, completeness_gap, biases, target_scored,
    unknown, and each frame of `CONTRASTED` (NaN: not known).
    """
    data: dict[str, Any] = {name: asdict(getattr(difference, name)) for name in ("a", "b")}
    data |= {"ids": list(difference.ids), "tokens": list(difference.tokens)}
    names = ("logp", "embedding_logp", "completeness_gap", "biases", "target_scored", "unknown")
    data |= {name: getattr(difference, name) for name in names}
    return data | {unit: getattr(difference, unit).to_dict("records") for unit in CONTRASTED}
