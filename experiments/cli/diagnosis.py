"""What `diagnose` of both programs prints: the checks as a table, and what to change; or one JSON object."""

from __future__ import annotations

from typing import Any

from experiments.cli.output import print_json

__all__ = ["show"]

_FACTS = ("subject", "ok", "dtype", "device", "attention", "notes")


def show(diagnosis: Any, *, json: bool) -> int:
    """Prints a `reports.diagnosis.Diagnosis`; the exit status: 0 where every check holds, else 1."""
    rows = diagnosis.checks.to_dict("records")
    if json:
        checks = {row["check"]: {k: v for k, v in row.items() if k != "check"} for row in rows}
        print_json({**{name: getattr(diagnosis, name) for name in _FACTS}, "checks": checks})
        return 0 if diagnosis.ok else 1
    print(f"{diagnosis.subject}: {diagnosis.dtype} on {diagnosis.device}, attention {diagnosis.attention}\n")
    width = max(len(row["check"]) for row in rows)
    for row in rows:
        verdict = "ok    " if row["ok"] else "NOT OK"
        bound = f"{row['must']:>2} {row['tolerance']:<8.3g}"
        print(f"{row['check']:<{width}}  {verdict}  {row['measured']:>9.3g} {bound}  {row['said']}")
    print("".join(f"\n{note}" for note in diagnosis.notes))
    for row in rows:
        if not row["ok"]:
            print(f"{row['check']}: {row['change']}")
    failed = sum(not row["ok"] for row in rows)
    print(f"ok: {len(rows)} checks" if diagnosis.ok else f"not ok: {failed} of {len(rows)} checks")
    return 0 if diagnosis.ok else 1
