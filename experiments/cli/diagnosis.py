"""What `diagnose` of both programs prints: the checks as a table, and what to change; or one JSON object."""

from __future__ import annotations

from experiments.cli.output import print_json
from reports.diagnosis import Diagnosis

__all__ = ["show"]

_FACTS = ("subject", "ok", "dtype", "device", "attention", "notes")


def show(found: Diagnosis, *, json: bool) -> int:
    """Prints the diagnosis; the exit status: 0 where every check holds, else 1."""
    rows = found.checks.to_dict("records")
    if json:
        checks = {row["check"]: {k: v for k, v in row.items() if k != "check"} for row in rows}
        print_json({**{name: getattr(found, name) for name in _FACTS}, "checks": checks})
        return 0 if found.ok else 1
    print(f"{found.subject}: {found.dtype} on {found.device}, attention {found.attention}\n")
    width = max(len(row["check"]) for row in rows)
    for row in rows:
        verdict = "ok    " if row["ok"] else "NOT OK"
        bound = f"{row['must']:>2} {row['tolerance']:<8.3g}"
        print(f"{row['check']:<{width}}  {verdict}  {row['measured']:>9.3g} {bound}  {row['said']}")
    print("".join(f"\n{note}" for note in found.notes))
    for row in rows:
        if not row["ok"]:
            print(f"{row['check']}: {row['change']}")
    failed = sum(not row["ok"] for row in rows)
    print(f"ok: {len(rows)} checks" if found.ok else f"not ok: {failed} of {len(rows)} checks")
    return 0 if found.ok else 1
