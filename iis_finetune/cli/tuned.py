"""The verbs on a tuned model, export, chat and serve: that of a finished run, or what a YAML file names."""

import errno
import ipaddress
import json
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from msgspec import Struct

from .. import evaluate, launch, machine, models, process, runs, session
from .. import export as exporting
from .. import recipe as recipes
from ..errors import RUN_FAILED, Misused, Place, Problem, ProblemsFound, errors_of
from ..plan import after
from ..plan.after import Trained
from ..plan.together import BASE, for_vllm, together
from ..runs import Run
from . import show
from .words import A_RUN, AsJson, run_named, run_names, workspace

RunOrRecipe = Annotated[str, typer.Argument(metavar="RUN", help=f"{A_RUN}; or a YAML file.", autocompletion=run_names)]
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help=f"{A_RUN}; or a YAML.", autocompletion=run_names)]
Compare = Annotated[bool, typer.Option("--compare", help="One question to several runs on one base, and to `base`.")]
Checkpoint = Annotated[int | None, typer.Option("--checkpoint", metavar="STEP", help="A checkpoint, not the result.")]
Dtype = Annotated[Literal["auto", "fp16", "bf16", "fp32"], typer.Option("--dtype", help="auto: that of the training.")]
Gguf = Annotated[
    str | None, typer.Option("--gguf", metavar="KIND,..", help="GGUF files too: f16, q8_0, q4_k_m, ... for Ollama.")
]
To = Annotated[Path | None, typer.Option("--to", metavar="DIR", help="A new folder; else the run's own export/.")]
Host = Annotated[str, typer.Option("--host", help="The address to listen at; another than this machine needs a key.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen at.")]
Origins = Annotated[
    list[str] | None, typer.Option("--allow-origin", metavar="URL", help="A web page's origin that may ask it.")
]
NOT_LISTENING = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)  # exit codes of the server's program
FREE = "an address of this machine and a port above 1023, as in --host 127.0.0.1 --port 8000"


class Tuned(Struct, frozen=True):
    """The model and adapters to load, and the environment to load them in."""

    trained: Trained
    environment: Mapping[str, str]
    run: Run | None = None


def run_of(name: str, checkpoint: int | None) -> Run:
    """A finished run; for a checkpoint the run need not have finished."""
    return run_named(name) if checkpoint is not None else run_named(name, runs.finished_run)


def environment_of(run: Run | None) -> dict[str, str]:
    """The environment of the run's own training; for a YAML file, what this machine needs."""
    host = machine.detect(environment=os.environ)
    if run:
        return session.environment_of(run, host, os.environ)
    decided = machine.decide_environment(host, 1)
    chosen = {each.name.removeprefix("environment."): str(each.value) for each in decided}
    chosen["PYTHONPATH"] = str(launch.KIT / "hook" / "torchaudio_placeholder") if host.torchaudio_placeholder else ""
    return launch.child_environment(host, os.environ, chosen)


def tuned(name: str, checkpoint: int | None) -> Tuned:
    if Path(name).suffix in recipes.SUFFIXES:
        return Tuned(_named_in(name), environment_of(None))
    run = run_of(name, checkpoint)
    return Tuned(evaluate.result_of(run, checkpoint), environment_of(run), run)


def several(names: list[str], checkpoint: int | None) -> Tuned:
    """One run alone, or several on one base; raises Misused where they cannot share it."""
    if len(names) == 1:
        return tuned(names[0], checkpoint)
    if names.count(BASE) > 1:
        raise Misused(f"{BASE} is named twice", "name each once")
    if checkpoint is not None:
        raise Misused("--checkpoint goes with one run, not with several", "leave it out", "--checkpoint")
    subjects = [tuned(name, None) for name in names if name != BASE] or [tuned(BASE, None)]
    base, named = together([each.trained for each in subjects], BASE in names)
    marks = [runs.provenance_of(each.run).model_fingerprint for each in subjects if each.run]
    if len({*filter(None, marks)}) > 1:
        what = f"{base.name} were trained on different files of the base model {base.weights.model}"
        raise Misused(what, "serve each alone, with the base that it was trained on")
    if machine.package_version("vllm") and not base.weights.adapters:
        show.aside(f"vLLM answers many at once: {for_vllm([each.trained for each in subjects])}")
    return Tuned(base, {**subjects[0].environment, "IIS_ADAPTERS": json.dumps(named)})


def _named_in(file: str) -> Trained:
    """LLaMA-Factory's own export or inference YAML: its model and adapters as they are named there."""
    recipe, problems = recipes.read(file, (), workspace().recipes)
    if errors_of(problems):
        raise ProblemsFound(problems)
    values = {key: entry.value for key, entry in recipe.entries.items() if entry.value is not None}
    if "model_name_or_path" not in values:
        place = Place(str(recipe.path))
        raise ProblemsFound([Problem("no model_name_or_path", "name the model to load", place)])
    weights = after.base_weights(values)
    folder = models.find_folder(weights.model, workspace().models)
    named = (str(folder or weights.model), *weights.adapters)
    model, *adapters = (str(Path(each).absolute()) if Path(each).exists() else each for each in named)
    return Trained(recipe.name, values, after.Weights(model, tuple(adapters)))


def export(
    run: RunOrRecipe,
    dtype: Dtype = "auto",
    to: To = None,
    gguf: Gguf = None,
    checkpoint: Checkpoint = None,
    as_json: AsJson = False,
) -> None:
    """Merge the adapter into its base, and prove that the result is the same model."""
    process.ends_alike()
    wish = exporting.wish_of(gguf, os.environ) if gguf else None
    subject = tuned(run, checkpoint)
    own = subject.run.export if subject.run else subject.trained.arguments.get("export_dir")
    if to is None and own is None:
        raise Misused("no folder to export to", "--to DIR")
    target, replaced = (to or Path(str(own))).absolute(), to is None and subject.run is not None
    show.aside(f"merging {subject.trained.name}, then comparing it with base and adapter ...")
    with runs.claimed(subject.run, "exported") if subject.run else nullcontext():
        wanted = exporting.Export(target, subject.environment, dtype, subject.run, replaced, wish)
        made = exporting.export(subject.trained, wanted)
    show.problems(made.problems, nothing_started=False)
    show.answer({"folder": str(made.folder), "dtype": made.dtype, **made.found, "gguf": made.gguf}, as_json)
    _say(made, subject.trained.name)
    if subject.run:
        show.line(f"next: iis-finetune report {subject.run.number:04d}")


def _say(made: exporting.Exported, name: str) -> None:
    """The folder with its proof, and the same of the GGUF files."""
    show.line(f"{made.folder}: {made.dtype}{', in place of the earlier export' if made.replaced else ''}")
    rounded = (f"rounding to {made.dtype}, against float32",) if made.found["rounding"] else ()
    show.table(("", "against base and adapter", *rounded), _proof(made.found))
    if made.gguf:
        _say_files(made.folder / "gguf", made.gguf, name)


def _say_files(folder: Path, found: Mapping[str, Any], name: str) -> None:
    """A row for each file: what it weighs, and what its quantisation costs."""
    rows = []
    for kind, told in found["files"].items():
        ties = f", {told['near_ties']} part at a near tie" if told["near_ties"] else ""
        size = f"{told['bytes'] / 2**30:.2f}"
        rows.append((f"  {kind}", size, f"{_equal(told)}{ties}", exporting.cost(found["loss"], told["loss"])))
    exact = "unknown: evaluate the run first" if found["loss"] is None else f"{found['loss']:.4f}"
    loss = f"loss on {found['rows']} held-out rows, exported: {exact}"
    show.table((f"{folder}:", "GiB", "equal greedy answers", loss), rows, numbers=(1,))
    for kind in found["files"]:
        show.line(f"Ollama: ollama create {name.lower()}-{kind} -f {shlex.quote(str(folder / f'Modelfile.{kind}'))}")


def _proof(found: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What the comparison found: of the merge, and of what rounding costs whoever merges."""
    cost, ties = found["rounding"], f", {found['near_ties']} part at a near tie" if found["near_ties"] else ""
    largest = f"{found['logit_difference']:.2g} (allowed: {found['tolerance']:.2g})"
    rows = [
        ("largest difference of a logit", largest, cost and f"{cost['logit_difference']:.2g}"),
        ("equal greedy answers", f"{_equal(found)}{ties}", cost and _equal(cost)),
        ("equal tensors", found["weights"]["compared"], None),
    ]
    if cost:
        loss = "unknown: evaluate the run first" if cost["loss"] is None else "{loss:.4f} -> {rounded_loss:.4f}"
        rows.append((f"loss on {cost['rows']} held-out rows", None, loss.format(**cost)))
    return [(f"  {title}:", *told[: 2 if cost else 1]) for title, *told in rows]


def _equal(answers: Mapping[str, Any]) -> str:
    return f"{answers['equal_texts']} of {answers['texts']}"


def chat(run: Runs, compare: Compare = False, checkpoint: Checkpoint = None) -> None:
    """Talk to the tuned model in this terminal, or compare several; `exit` or Ctrl-D ends it."""
    if compare != (len(run) > 1):
        others = [BASE] if BASE not in run else ["last"]
        fix = f"iis-finetune chat --compare {shlex.join([*run, *others][: max(2, len(run))])}"
        raise Misused("--compare takes several runs" if compare else "chat talks to one run", fix, "--compare")
    subject = several(run, checkpoint)
    code = _attached("chat", subject, {"LLAMAFACTORY_VERBOSITY": "WARN"})
    raise typer.Exit(RUN_FAILED if code else 0)


def serve(
    run: Runs,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allow_origin: Origins = None,
    checkpoint: Checkpoint = None,
) -> None:
    """An OpenAI-style server of the tuned model, or of several on one base; the key is taken from $API_KEY."""
    if not loopback(host) and not os.environ.get("API_KEY"):
        what = f"'{host}' can be reached from other machines, and there is no API key"
        fix = "export API_KEY=... (anything long), or --host 127.0.0.1"
        raise Misused(what, fix, "--host")
    subject = several(run, checkpoint)
    show.aside(f"loading {subject.trained.name} ...")
    chosen = after.server_environment(host, port, subject.trained.name)
    code = _attached("serve", subject, {**chosen, "IIS_ALLOW_ORIGIN": ",".join(allow_origin or ())})
    if code in NOT_LISTENING:
        what = f"cannot listen at {host}, port {port}: {os.strerror(code)}"
        fix = f"--port {port % 65535 + 1}, or end what listens there" if code == errno.EADDRINUSE else FREE
        raise Misused(what, fix, "--port")
    raise typer.Exit(RUN_FAILED if code else 0)


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address; names other than localhost are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _attached(probe: str, subject: Tuned, chosen: Mapping[str, str]) -> int:
    """Run LLaMA-Factory's own program on this terminal; its exit code, 0 when a signal ended it."""
    launch.need_llamafactory()
    process.ends_alike()
    with process.scratch_folder() as folder:
        runs.write(folder / "arguments.yaml", launch.yaml_text(after.converse(subject.trained)))
        own = after.one_process(subject.environment)
        path = ":".join(filter(None, [str(launch.KIT.parent), own["PYTHONPATH"]]))
        words = [sys.executable, "-m", f"iis_finetune.probe.{probe}", "arguments.yaml"]
        code = process.attached(words, {**own, **chosen, "PYTHONPATH": path}, folder)
    return max(code or 0, 0)
