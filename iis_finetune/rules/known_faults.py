"""Known faults of cards and packages: the rows `[[fault]]` of the machine table, as rules."""

from fnmatch import fnmatchcase
from functools import partial

from ..machine import Row, applies, load, package_version
from .case import Case
from .rule import Rule


def rules_of_faults() -> list[Rule]:
    return [_rule_of(row) for row in load()["fault"]]


def _rule_of(row: Row) -> Rule:
    what, fix = (row[part].replace("{device}", "{c.machine.device}") for part in ("what", "fix"))
    what += "" if row["confirmed"] else " (unconfirmed)"
    return Rule(
        row["keys"], partial(_meets, row), what, fix, row["source"], row["date"].isoformat(), "faults",
        severity=row["severity"], kind=row.get("kind", "machine"),
    )  # fmt: skip


def _meets(row: Row, case: Case) -> bool:
    """Whether a case meets every condition of a row of `[[fault]]`."""
    wanted = row.get("settings", {})
    return (
        case.trains
        and row.get("unless_env") not in case.kit.env
        and applies(row, case.machine, case.processes)
        and case.precision in row.get("precision", [case.precision])
        and case.micro_batch * case["cutoff_len"] >= row.get("tokens_from", 0)
        and ("package" not in row or _version(row, case) in row["versions"])
        and all(any(fnmatchcase(_value(case, name), each) for each in wanted[name]) for name in wanted)
    )


def _value(case: Case, name: str) -> str:
    if name == "attention":
        return str(case["flash_attn"] if case.states("flash_attn") else case.kit.attention)
    return str(case[name]).lower()


def _version(row: Row, case: Case) -> str | None:
    """The installed version; for a named machine the one that the kit's constraints install."""
    return package_version(row["package"]) if case.machine.here else str(row["pinned"])
