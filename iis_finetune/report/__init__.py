"""One page about one or several runs: a single HTML file that needs no network."""

import difflib
import io
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from .. import __version__
from ..arguments import trained_with
from ..launch import KIT
from ..models import called, without_folders
from ..observe import number
from ..runs import Measured, Run, attempts, events, provenance_of, read_decided, read_json, read_lines, state
from ..supervise import loaded_by

TEMPLATE = "report.html.j2"
MOST_ROWS = 500
WORDS = re.compile(r"[A-Za-z0-9]+|\s+|.", re.DOTALL)
MARKS = re.compile(r"<\|?[a-zA-Z_]+\|?>")
NOT_TOLD = ("time", "event")
INK, GRID = "#010203", "#040506"  # stand-ins that become the page's CSS variables
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
WIDTH, HEIGHT = 5.2, 2.6  # inches; at 390 pixels its letters still are 7 pixels high
MOST_POINTS = 2000
BARS = ("tokens_per_second", "peak_gib")  # of a trial
Points = Sequence[tuple[float, float]]


def page(runs: Sequence[Run], lengths: Mapping[str, Points] | None = None) -> str:
    """The whole HTML text without what a run does not have; `lengths`: (tokens, share of the rows) by data set."""
    pictures = [svg(title, lines) for title, lines in curves(runs).items()]
    pictures.append(svg("share of the training rows by length", lengths or {}, "tokens"))
    return filled(
        TEMPLATE,
        title=", ".join(run.name for run in runs),
        runs=[view(run) for run in runs],
        pictures=list(filter(None, pictures)),
        most_rows=MOST_ROWS,
    )


def tuning(name: str, row: Measured, limit_gib: float | None) -> str:
    """The page of what `tune` measured: how fast each trial was, what it held beside what there is, the verdicts."""
    most = {key: max([each[key] for each in row.trials if key in each], default=1.0) for key in BARS}
    most["peak_gib"] = max(most["peak_gib"], limit_gib or 0.0)
    key = {title.replace("_", " "): value for title, value in to_builtins(row.key).items() if value is not None}
    speed = {"seconds a step, at first": row.start_seconds_per_step, "seconds a step, at best": row.seconds_per_step}
    facts = {**speed, "rows a step": row.global_batch_size, "device memory, GiB": limit_gib, **key}
    return filled(TEMPLATE, title=f"{name}: {row.told}", facts=facts, trials=row.trials, most=most, limit=limit_gib)


def filled(template: str, **values: Any) -> str:
    """The text of a page, which says when it was written."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(KIT / "tables"), autoescape=True, trim_blocks=True)
    environment.filters["shown"] = shown
    written = time.strftime("%Y-%m-%d %H:%M")
    return str(environment.get_template(template).render(written=written, version=__version__, **values))


def shown(value: Any) -> str:
    """How a value is written: four digits of a fraction, yes and no, an en dash for what is unknown, no folders."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    return without_folders(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def view(run: Run) -> dict[str, Any]:
    """All that the page says of one run."""
    return {
        "name": run.name,
        "state": state(run),
        "facts": facts(run),
        "decisions": read_decided(run).decisions,
        "events": [_event(each) for each in events(run)],
        "data": {Path(name).name: digest for name, digest in provenance_of(run).data_sha256.items()},
        "checkpoints": [read_json(path) for path in sorted(run.evaluation.glob("*/checkpoints.json"))],
        "evaluations": [each for each in map(evaluation, sorted(run.evaluation.glob("*/scores*.json"))) if each],
    }


def facts(run: Run) -> dict[str, Any]:
    """The figures at the top: what was trained, on what, how long, how much memory."""
    tried, log = attempts(run), list(read_lines(run.trainer_log))
    results, loaded = read_json(run.output / "all_results.json") or {}, loaded_by(run)
    decided = read_decided(run)
    arguments = decided.arguments
    seconds = sum((each.ended or each.started) - each.started for each in tried)
    peaks = [peak for peak in (number(line.get("vram_reserved")) for line in log) if peak]
    return {
        "model": called(provenance_of(run).model or str(arguments.get("model_name_or_path", ""))) or None,
        "method": trained_with(arguments)["finetuning_type"] if arguments else None,
        "data": arguments.get("dataset"),
        "machine": (read_json(run.machine) or {}).get("title"),
        "precision": decided.precision if arguments else None,
        "steps": log[-1].get("current_steps") if log else None,
        "epochs": number(results.get("epoch")),
        "last loss": next((number(line["loss"]) for line in reversed(log) if "loss" in line), None),
        "mean training loss": number(results.get("train_loss")),
        "time": _duration(seconds) if seconds else None,
        "attempts": len(tried) or None,
        "peak memory, GB": max(peaks, default=None),
        "trained parameters": _count(loaded.parameters.get("trainable", {})),
        "fixed parameters": _count(loaded.parameters.get("frozen", {})),
        "attention": loaded.attention,
        "device memory, GiB": loaded.device_memory_gib,
    }


def _count(counts: Mapping[str, int]) -> str | None:
    """How many parameters, by dtype: `16,384 float32`."""
    return ", ".join(f"{count:,} {dtype}" for dtype, count in counts.items()) or None


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60:02} min" if hours else f"{rest // 60} min {rest % 60:02} s"


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    details = [f"{key} {shown(value)}" for key, value in event.items() if key not in NOT_TOLD and value is not None]
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.get("time", 0)))
    return {"time": stamp, "event": event.get("event"), "details": ", ".join(details)}


def curves(runs: Sequence[Run]) -> dict[str, dict[str, Points]]:
    """Loss, learning rate, throughput and memory over the steps, the runs in one picture each."""
    logs = {run.name: list(read_lines(run.trainer_log)) for run in runs}
    named = {
        "loss": "loss",
        "loss on held-out rows": "eval_loss",
        "learning rate": "lr",
        "tokens a second": "throughput",
        "device memory reserved, GB": "vram_reserved",
    }
    return {title: {name: _points(log, key) for name, log in logs.items()} for title, key in named.items()}


def _points(log: Sequence[Mapping[str, Any]], key: str) -> Points:
    pairs = [(number(line.get("current_steps")), number(line.get(key))) for line in log]
    return [(step, value) for step, value in pairs if step is not None and value is not None and math.isfinite(value)]


def evaluation(path: Path) -> dict[str, Any] | None:
    """One comparison: its metrics and its rows, differences marked; None when it failed or holds nothing."""
    scores = read_json(path) or {}
    if scores.get("problem") or not scores.get("metrics"):
        return None
    scores["votes"] = read_json(path.with_name(path.name.replace("scores", "votes", 1)))
    rows = list(_rows(path.parent, scores))
    counts = {flag: sum(flag in row["flags"] for row in rows) for flag in ("changed", "worse", "invalid")}
    return {**scores, "table": rows[:MOST_ROWS], "counts": counts, "all": len(rows)}


def _rows(folder: Path, scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    tuned = list(read_lines(folder / f"{scores['tuned']}.jsonl"))
    base = list(read_lines(folder / f"{scores['base']}.jsonl")) if scores.get("base") else []
    voted = (scores["votes"] or {}).get("rows", {})
    worse, invalid = set(scores.get("worse_rows", ())), set(scores.get("invalid_rows", ()))
    for at, row in enumerate(tuned):
        before = base[at]["predict"] if at < len(base) else None
        flags = [name for name, there in (("worse", at in worse), ("invalid", at in invalid)) if there]
        if before is not None and before.strip() != row["predict"].strip():
            flags.insert(0, "changed")
        expected = row["label"].strip()
        yield {
            "number": at + 1,
            "prompt": question_of(row["prompt"]),
            "base": None if before is None else marked(before.strip(), expected),
            "tuned": marked(row["predict"].strip(), expected),
            "expected": expected,
            "flags": flags,
            "voted": voted.get(str(at + 1)),
        }


def question_of(prompt: str) -> str:
    """The last thing a user says in a prompt, without the template's marks around it."""
    parts = [part.strip() for part in MARKS.split(prompt)]
    said = [part for part in parts if part and part not in ("assistant", "model")]
    last = said[-1] if said else prompt
    return re.sub(r"^user\s*\n", "", last)


def marked(text: str, expected: str) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it differs from what was expected."""
    ours, theirs = WORDS.findall(text), WORDS.findall(expected)
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    pieces = [("".join(ours[start:end]), kind != "equal") for kind, start, end, _, _ in matcher.get_opcodes()]
    return [piece for piece in pieces if piece[0]]


def svg(title: str, runs: Mapping[str, Points], across: str = "step") -> str:
    """A quantity over steps (else in stairs), a line a run, as an SVG element without fixed size; empty for nothing."""
    lines = {name: _thinned(points) for name, points in runs.items() if points}
    if not lines:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK)
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(lines.items()):
            steps, values = zip(*points, strict=True)
            style = "default" if across == "step" else "steps-pre"
            axes.plot(steps, values, color=SERIES[number % len(SERIES)], linewidth=1.4, label=name, drawstyle=style)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(across)
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _themed(buffer.getvalue(), title)


def _thinned(points: Points) -> list[tuple[float, float]]:
    step = -(-len(points) // MOST_POINTS)
    return [*points[::step], *(points[-1:] if (len(points) - 1) % step else [])]


def _themed(text: str, title: str) -> str:
    """The bare element with the page's variables for colours; ids made unique by the title."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    prefix = re.sub(r"\W", "-", title)
    text = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for stand_in, variable in [(INK, "ink"), (GRID, "line"), *((each, f"series-{n}") for n, each in enumerate(SERIES))]:
        text = text.replace(stand_in, f"var(--{variable})")
    return text
