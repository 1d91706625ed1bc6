"""People's choice between two models: a page to vote on that names neither, and what the votes say."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from ..errors import Misused
from ..runs import Run, read_json, read_lines, write_json
from . import filled, question_of

Z = 1.959964  # of a 95 % interval
FEWEST_ROWS = 10
WORTH = {"tuned": 1.0, "equal": 0.5, "other": 0.0}  # a vote, to the tuned model
Pairs = Sequence[Mapping[str, Any]]


def pairs(run: Run, data: str, base: Run | str | None) -> Pairs:
    """The rows that both answered, and differently; at which place (`tuned`) is decided by the answers alone."""
    against = base.name if isinstance(base, Run) else "base"
    files = [run.evaluation / data / f"{name}.jsonl" for name in ("tuned", against)]
    if not all(file.is_file() for file in files):
        fix = f"iis-finetune evaluate {run.number:04d} --data {data} --baseline {against}"
        raise Misused(f"{run.name} was not compared with '{against}' on '{data}'", fix)
    chance, found = random.Random(files[0].read_bytes()), []  # noqa: S311 - no secret: a browser turns them once more
    for at, (ours, theirs) in enumerate(zip(*map(read_lines, files), strict=False), 1):
        answers, place = [ours["predict"].strip(), theirs["predict"].strip()], chance.randrange(2)
        if answers[0] != answers[1]:
            question = question_of(ours["prompt"])
            found.append({"row": at, "question": question, "answers": answers[:: -1 if place else 1], "tuned": place})
    return found


def _mark(given: Pairs) -> str:
    """Tells votes on these rows from votes on others."""
    return sha256(json.dumps(given).encode()).hexdigest()[:12]


def ballot(run: Run, data: str, base: Run | str | None) -> str:
    """The page, without a sign of who said what."""
    given = pairs(run, data, base)
    rows = [{key: row[key] for key in ("row", "question", "answers")} for row in given]
    return filled("blind.html.j2", page=_mark(given), rows=rows)


def count(files: Sequence[Path], run: Run, data: str, base: Run | str | None) -> dict[str, Any]:
    """What several people's votes say, kept beside the scores: the share that prefers tuned, an equal vote a half."""
    given = pairs(run, data, base)
    for one, other in combinations(files, 2):
        if one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes():
            raise Misused(
                f"'{one}' and '{other}' are the same votes", "one file a person, with a name typed", "--votes"
            )
    voters = [_read(file, given) for file in files]
    cast = {row["row"]: [WORTH[votes[row["row"]]] for votes in voters if row["row"] in votes] for row in given}
    voted = {row: values for row, values in cast.items() if values}
    if not voted:
        raise Misused("nobody has voted on any row", "vote on some rows, and save the votes again", "--votes")
    share = fmean(map(fmean, voted.values()))
    low, high = wilson(share, len(voted))
    unsure = len(voted) < FEWEST_ROWS or low <= 0.5 <= high
    verdict = "cannot tell" if unsure else "better" if low > 0.5 else "worse"
    kappas = [kappa for pair in combinations(voters, 2) if (kappa := agreement(*pair)) is not None]
    kappa = fmean(kappas) if kappas else None
    told = f"{share:.0%} for tuned ({low:.0%} to {high:.0%}, 95 %): {verdict}; {len(voted)} rows, {len(voters)} voters"
    told += f", their agreement (Cohen's kappa) {kappa:.2f}" if kappas else ""
    found = {"data": data, "share": share, "low": low, "high": high, "verdict": verdict, "kappa": kappa, "told": told}
    found["rows"] = {row: f"{sum(values):g} of {len(values)}" for row, values in voted.items()}
    against = f"-tuned-against-{base.name}" if isinstance(base, Run) else ""
    write_json(run.evaluation / data / f"votes{against}.json", found)
    return found


def _read(file: Path, given: Pairs) -> dict[int, str]:
    """One person's votes by row; what was skipped is none. Raises Misused."""
    if not file.is_file():
        raise Misused(f"there is no file '{file}'", "the file that a voter saved and sent back", "--votes")
    content = read_json(file) or {}
    if content.get("page") != _mark(given) or not isinstance(content.get("votes"), dict):
        fix = "the --data and --baseline of the page; with new answers, a new page: report --blind"
        raise Misused(f"'{file}' holds no votes on these answers", fix, "--votes")
    votes: dict[int, str] = {}
    for row in given:
        vote = content["votes"].get(str(row["row"]))
        if vote in (0, 1, "equal"):
            votes[row["row"]] = "equal" if vote == "equal" else "tuned" if vote == row["tuned"] else "other"
    return votes


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; where a row's votes differ it is on the safe side."""
    middle, scale = share + Z * Z / (2 * rows), 1 + Z * Z / rows
    half = Z * math.sqrt(share * (1 - share) / rows + (Z / (2 * rows)) ** 2)
    return (middle - half) / scale, (middle + half) / scale


def agreement(one: Mapping[int, str], other: Mapping[int, str]) -> float | None:
    """Cohen's kappa of two people over the rows that both voted on; None where it says nothing."""
    from sklearn.metrics import cohen_kappa_score

    both = [(one[row], other[row]) for row in one.keys() & other.keys()]
    if len({vote for votes in both for vote in votes}) < 2:
        return None
    return float(cohen_kappa_score(*zip(*both, strict=True)))
