"""The verbs after training on a real, tiny run: evaluate, chat, serve, report; test_export.py has export."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import LONGEST, ROOT, left_after, marked, run
from msgspec.structs import replace

from iis_finetune.cli.tuned import loopback
from iis_finetune.evaluate.answers import Evaluation, answers, material, run_llamafactory
from iis_finetune.evaluate.compare import compare
from iis_finetune.evaluate.metrics import Declared, score
from iis_finetune.plan import after
from iis_finetune.probe import serve
from iis_finetune.runs import Run, read_lines
from iis_finetune.supervise import Stop

# Before anything is loaded


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("myhost", False),
        ("", False),
    ],
)
def test_only_loopback_addresses_need_no_key(host: str, only_here: bool) -> None:
    assert loopback(host) == only_here


def test_a_server_for_other_machines_is_refused_without_a_key(tmp_path: Path) -> None:
    done = run(["serve", "last", "--host", "0.0.0.0"], tmp_path, API_KEY="")
    assert done.returncode == 2
    assert "there is no API key" in done.stderr
    with_key = run(["serve", "last", "--host", "0.0.0.0"], tmp_path, API_KEY="long")
    assert "no API key" not in with_key.stderr
    assert "there is no run yet" in with_key.stderr


@pytest.mark.parametrize("verb", ["evaluate", "export", "chat", "serve"])
def test_a_run_that_has_not_finished_is_refused_with_the_newest_that_has(verb: str, tmp_path: Path) -> None:
    (tmp_path / "runs" / "0001-some").mkdir(parents=True)
    done = run([verb, "1"], tmp_path)
    assert done.returncode == 2
    assert "run 0001-some is interrupted, not finished" in done.stderr
    assert "no run has finished yet" in done.stderr


def test_without_held_out_rows_the_ways_to_them_are_named(tmp_path: Path) -> None:
    made = Run(tmp_path / "runs" / "0001-some")
    made.folder.mkdir(parents=True)
    for file in (made.recipe, made.arguments):
        file.write_text("model_name_or_path: models/m\ndataset: mine\n")
    done = run(["evaluate", "1", "--checkpoint", "2"], tmp_path)
    assert done.returncode == 2 and "0001-some names no held-out rows" in done.stderr
    assert all(way in done.stderr for way in ("--data NAME", "kit.evaluate_after=NAME", "val_size=0.1"))


def test_arguments_after_training_name_what_training_made() -> None:
    arguments = {"model_name_or_path": "models/a", "adapter_name_or_path": "x,y", "finetuning_type": "lora"}
    assert after.base_weights(arguments) == after.Weights("models/a", ("x", "y"))
    assert after.tuned_weights(arguments, Path("out")) == after.Weights("models/a", ("x", "out"))
    fresh = {**arguments, "create_new_adapter": True}
    assert after.tuned_weights(fresh, Path("out")) == after.Weights("models/a", ("x", "y", "out"))
    assert after.tuned_weights({**arguments, "finetuning_type": "full"}, Path("out")) == after.Weights("out")


def test_a_prediction_keeps_what_the_model_sees_and_drops_what_trains_it() -> None:
    arguments = {"model_name_or_path": "m", "template": "qwen", "cutoff_len": 64, "flash_attn": "sdpa", "bf16": True}
    arguments |= {"stage": "dpo", "lora_rank": 8, "learning_rate": 1.0, "do_train": True, "deepspeed": "z.json"}
    arguments |= {"per_device_train_batch_size": 4, "temperature": 0.9, "quantization_bit": 4, "max_samples": 5}
    made = after.predict(arguments, after.Weights("m", ("a",)), after.Rows("d", ("one",), "o", 40))
    kept = {"template": "qwen", "cutoff_len": 64, "flash_attn": "sdpa", "bf16": True, "quantization_bit": 4}
    assert kept.items() <= made.items()
    assert made["stage"] == "sft"
    assert (made["do_sample"], made["max_new_tokens"], made["per_device_eval_batch_size"]) == (False, 40, 4)
    assert made.keys().isdisjoint({"learning_rate", "do_train", "deepspeed", "lora_rank", "temperature", "max_samples"})
    exported = after.export(after.Trained("x", arguments, after.Weights("m", ("a",))), "to", "float32")
    assert exported.keys().isdisjoint({"bf16", "quantization_bit", "cutoff_len", "do_train"})


@pytest.mark.parametrize(("stage", "longest"), [("sft", 16), ("ppo", 40)])
def test_the_length_that_ppo_learns_from_is_not_that_of_the_answers_it_is_judged_by(stage: str, longest: int) -> None:
    arguments = {"model_name_or_path": "m", "stage": stage, "max_new_tokens": 16}
    made = after.predict(arguments, after.Weights("m"), after.Rows("d", ("one",), "o", 40))
    assert made["max_new_tokens"] == longest


def test_what_comes_after_training_is_one_process_on_its_first_device() -> None:
    given = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "4", "ROCR_VISIBLE_DEVICES": "GPU-a,GPU-b", "HOME": "/h"}
    given |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "/kit/hook:/kit/hook/torchaudio_placeholder"}
    expected = {"ROCR_VISIBLE_DEVICES": "GPU-a", "HOME": "/h", "CUDA_VISIBLE_DEVICES": ""}
    assert after.one_process(given) == {**expected, "PYTHONPATH": "/kit/hook/torchaudio_placeholder"}


@pytest.mark.parametrize(
    ("host", "origin", "why"),
    [
        ("127.0.0.1:8000", "", None),
        ("LocalHost:8000", "", None),
        ("[::1]:8000", "", None),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", None),  # its own page, /docs
        ("127.0.0.1:8000", "https://mine.example", None),  # --allow-origin
        ("rebound.example:8000", "", "own address alone"),
        ("", "", "own address alone"),
        ("127.0.0.1:8000", "https://evil.example", "web pages may not ask"),
        ("127.0.0.1:8000", "null", "web pages may not ask"),
        ("rebound.example:8000", "http://rebound.example:8000", "own address alone"),
    ],
)
def test_without_a_key_only_this_machine_and_the_pages_that_were_named_are_answered(
    host: str, origin: str, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "ORIGINS", ("https://mine.example",))
    headers = {b"host": host.encode(), **({b"origin": origin.encode()} if origin else {})}
    found = serve.refusal(headers, serve.OURS)
    assert (found is None) == (why is None) and (why or "") in (found or "")
    with_key = serve.refusal(headers, None)
    assert (with_key is None) == (why is None or "own address" in why)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of anyio, through the test client
def test_an_application_open_to_every_origin_is_closed_but_for_those_that_were_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from starlette.applications import Starlette
    from starlette.middleware.cors import CORSMiddleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    monkeypatch.setattr(serve, "ORIGINS", ("https://mine.example",))
    app = Starlette(routes=[Route("/v1", lambda _: PlainTextResponse("yes"))])
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_credentials=True)  # as api/app.py does
    client = TestClient(serve.closed(app, serve.OURS), base_url="http://127.0.0.1:8000")
    named = client.get("/v1", headers={"Origin": "https://mine.example"})
    assert (named.text, named.headers["access-control-allow-origin"]) == ("yes", "https://mine.example")
    assert "access-control-allow-credentials" not in named.headers
    assert client.get("/v1").text == "yes"
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        other = client.get("/v1", headers=headers)
        assert other.status_code == 403 and "access-control-allow-origin" not in other.headers
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert client.options("/v1", headers=asked).status_code == 403


def test_a_file_that_names_a_model_and_nothing_of_a_training_can_be_talked_to() -> None:
    made = after.converse(after.Trained("x", {"model_name_or_path": "m", "template": "qwen"}, after.Weights("m")))
    assert "stage" not in made and made["template"] == "qwen"


@pytest.fixture
def plain(project: Path) -> Path:
    """The project with a file that chat, serve and export take in place of a run."""
    text = "model_name_or_path: models/tiny\ntemplate: qwen\nexport_dir: merged\n"
    (project / "plain.yaml").write_text(text, encoding="utf-8")
    return project


def test_a_port_that_is_taken_is_told_at_once(plain: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run(["serve", "plain.yaml", "--port", str(port)], plain, 60)
    assert done.returncode == 2
    assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in done.stderr
    assert f"fix:   --port {port + 1}, or end what listens there" in done.stderr
    elsewhere = run(["serve", "plain.yaml", "--host", "192.0.2.1"], plain, 60, API_KEY="long")
    assert elsewhere.returncode == 2 and "Cannot assign requested address" in elsewhere.stderr


def ended(words: list[str], folder: Path, number: signal.Signals, seconds: float) -> list[str]:
    """The processes that are left 5 s after a verb was sent a signal, so long after it began to have children."""
    mark = {"IIS_TEST_MARK": str(uuid.uuid4())}
    command = [sys.executable, "-m", "iis_finetune", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **mark}
    child = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while len(marked(mark)) < 3 and child.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert child.poll() is None
    time.sleep(seconds)
    child.send_signal(number)
    left = left_after(mark, 5)
    assert child.stdin is not None
    child.stdin.close()
    child.wait(30)
    return left


SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL)


@pytest.mark.parametrize(("verb", "number"), list(zip(("serve", "chat", "export", "serve"), SIGNALS, strict=True)))
def test_nothing_is_left_when_a_verb_is_ended(verb: str, number: signal.Signals, plain: Path) -> None:
    seconds = random.uniform(0, 1)
    words = [verb, "plain.yaml", *(["--port", str(free_port())] if verb == "serve" else [])]
    assert ended(words, plain, number, seconds) == [], seconds


@pytest.mark.extended
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("verb", ["serve", "chat", "evaluate", "export", "export --dtype bf16"])
def test_nothing_is_left_of_a_real_run_s_verb_either(
    verb: str, number: signal.Signals, evaluated_run: Run, evaluated_project: Path, tmp_path: Path
) -> None:
    seconds = random.uniform(0, 25)
    words = [*verb.split(), "last"]
    words += ["--port", str(free_port())] if verb == "serve" else []
    words += ["--to", str(tmp_path / "merged")] if "export" in verb else []
    known = shutil.move(evaluated_run.evaluation, tmp_path / "known")  # to be evaluated anew; others use the run too
    try:
        assert ended(words, evaluated_project, number, seconds) == [], seconds
    finally:
        shutil.rmtree(evaluated_run.evaluation, ignore_errors=True)
        shutil.move(known, evaluated_run.evaluation)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


# On a real run


@pytest.mark.slow
def test_the_metrics_are_those_llamafactory_writes_beside_the_same_answers(
    evaluated_run: Run, children_environment: dict[str, str], tmp_path: Path
) -> None:
    tuned = after.trained_by(evaluated_run, evaluated_run.output)
    asked = Evaluation(Run(tmp_path), "little", children_environment, Stop())
    given = material(asked, tuned)
    rows = after.Rows(given.dataset_dir, tuple(given.parts), str(tmp_path / "out"), given.max_new_tokens)
    run_llamafactory(asked, "tuned", after.predict(tuned.arguments, tuned.weights, rows), tmp_path / "out")
    theirs = json.loads((tmp_path / "out" / "predict_results.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out" / after.PREDICTIONS).read_text("utf-8").splitlines()]
    found = compare(None, score([line["predict"] for line in lines], [line["label"] for line in lines], Declared()))
    ours = {each.name: each.tuned for each in found}
    for name in ("rouge-1", "rouge-2", "rouge-l", "bleu-4"):
        assert ours[name] == pytest.approx(theirs[f"predict_{name}"], abs=1e-4), name
    assert ours["rouge-1"] != 0


@pytest.mark.slow
def test_an_evaluation_that_was_killed_goes_on_and_ends_with_the_same_numbers(
    evaluated_run: Run, evaluated_project: Path, tmp_path: Path
) -> None:
    copy = Run(Path(shutil.copytree(evaluated_run.folder, tmp_path / evaluated_run.name)))
    folder = copy.evaluation / "little"
    straight = json.loads((folder / "scores.json").read_text())
    shutil.rmtree(folder)
    words = ["evaluate", "last", "--part", "12", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "IIS_RUNS": str(tmp_path)}
    child = subprocess.Popen(
        [sys.executable, "-m", "iis_finetune", *words],
        cwd=evaluated_project,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    first = folder / "parts" / "base" / "part-00000.jsonl"
    deadline = time.monotonic() + 300
    while not first.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    kept = first.stat().st_mtime_ns
    for process in [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]:
        process.send_signal(signal.SIGKILL)
    child.wait()
    assert not (folder / "scores.json").exists()
    assert first.stat().st_mtime_ns == kept
    again = run(words, evaluated_project, LONGEST, IIS_RUNS=str(tmp_path))
    assert again.returncode == 0, again.stderr
    scores = json.loads(again.stdout)
    losses = [each["name"] for each in scores["metrics"][len(straight["metrics"]) :]]
    assert losses == ["loss", "perplexity"]  # which `evaluate_after` leaves out
    assert {**scores, "metrics": scores["metrics"][:-2]} == straight


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_alone_and_leaves_the_result_of_the_run(
    evaluated_run: Run, evaluated_project: Path
) -> None:
    before = (evaluated_run.evaluation / "little" / "scores.json").read_text()
    words = ["evaluate", "last", "--checkpoint", "2", "--baseline", "none", "--label-field", "mark"]
    done = run(words, evaluated_project, LONGEST)
    assert done.returncode == 0, done.stderr
    scores = json.loads((evaluated_run.evaluation / "little" / "scores-checkpoint-2.json").read_text())
    assert "label" in [metric["name"] for metric in scores["metrics"]]
    assert (evaluated_run.evaluation / "little" / "scores.json").read_text() == before
    missing = run(["evaluate", "last", "--checkpoint", "3"], evaluated_project)
    assert missing.returncode == 2
    assert "has no checkpoint 3" in missing.stderr


@pytest.mark.slow
def test_an_evaluation_names_the_rows_that_were_trained_on_and_gives_the_figures_without_them(
    evaluated_run: Run, evaluated_project: Path
) -> None:
    data = evaluated_project / "data"
    scores = json.loads((evaluated_run.evaluation / "little" / "scores.json").read_text())
    assert len(scores["leaks"]["found"]) == 24 and scores["without_leaks"] == [], "its own training rows"
    rows = json.loads((data / "little.json").read_text(encoding="utf-8"))
    new = [{**row, "instruction": f"say {n * 31}"} for n, row in enumerate(rows[:14])]
    mixed = [row for pair in zip(rows[:10], new[:10], strict=True) for row in pair]  # the training has every second row
    unusable = {"instruction": "x", "input": "", "output": None}
    (data / "mixed.json").write_text(json.dumps([*mixed[:2], unusable, *mixed[2:], *new[10:]]), encoding="utf-8")
    registry = json.loads((data / "dataset_info.json").read_text())
    registry["mixed"] = {**registry["little"], "file_name": "mixed.json"}
    (data / "dataset_info.json").write_text(json.dumps(registry))
    done = run(["evaluate", "last", "--data", "mixed"], evaluated_project, LONGEST)
    assert done.returncode == 0, done.stderr
    assert "note: 10 of the 25 held-out rows of 'mixed' are training rows (row 1, 4, 6, 8" in done.stdout
    assert "\nwithout them" in done.stdout
    folder = evaluated_run.evaluation / "mixed"
    scores = json.loads((folder / "scores.json").read_text())
    trained = {0, *range(3, 20, 2)}  # among all answers, the unusable row's included
    base, tuned = (list(read_lines(folder / f"{name}.jsonl")) for name in ("base", "tuned"))
    left = [at for at in range(len(tuned)) if at not in trained]
    assert all(("新闻" in tuned[at]["prompt"]) == (at in trained) for at in range(len(tuned)))
    texts = [
        [row[key] for at, row in enumerate(side) if at in left]
        for side, key in ((base, "predict"), (tuned, "predict"), (tuned, "label"))
    ]
    expected = compare(score(texts[0], texts[2], Declared()), score(texts[1], texts[2], Declared()))
    without = {each["name"]: each for each in scores["without_leaks"]}
    for each in expected:
        found = without[each.name]
        assert (found["tuned"], found["low"], found["high"]) == (each.tuned, each.low, each.high)
    assert 0 < without["loss"]["rows"] < 20


@pytest.mark.slow
@pytest.mark.parametrize("end", ["exit\n", ""], ids=["exit", "end of input"])
def test_chat_answers_in_the_terminal(evaluated_run: Run, evaluated_project: Path, end: str) -> None:
    words = [sys.executable, "-m", "iis_finetune", "chat", "last"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words,
        cwd=evaluated_project,
        env=environment,
        input=f"新闻 1\n{end}",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Assistant: " in done.stdout
    assert "Traceback" not in done.stderr and "[INFO" not in done.stderr


@pytest.fixture
def server(evaluated_run: Run, evaluated_project: Path) -> Iterator[str]:
    """The address of `serve` with a key; ended as Ctrl-C does."""
    port = free_port()
    words = [sys.executable, "-m", "iis_finetune", "serve", "last", "--port", str(port)]
    words += ["--allow-origin", "https://mine.example"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "API_KEY": "a-key"}
    log = evaluated_project / "serve.log"
    with log.open("wb") as stream:
        child = subprocess.Popen(
            words,
            cwd=evaluated_project,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 200
    while "ready: " not in log.read_text(errors="replace") and time.monotonic() < deadline:
        assert child.poll() is None, log.read_text()
        time.sleep(0.3)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(child.pid, signal.SIGINT)
        child.wait(60)


@pytest.mark.slow
def test_the_openai_client_talks_to_the_server(server: str, evaluated_run: Run) -> None:
    import openai

    client = openai.OpenAI(base_url=server, api_key="a-key", timeout=60)
    assert [model.id for model in client.models.list()] == [evaluated_run.name]
    asked: Any = {
        "model": evaluated_run.name,
        "messages": [{"role": "user", "content": "新闻 1"}],
        "temperature": 0,
        "max_tokens": 20,
    }
    whole = client.chat.completions.create(**asked).choices[0].message.content
    parts = [part.choices[0].delta.content or "" for part in client.chat.completions.create(**asked, stream=True)]
    assert whole is not None
    assert re.sub(r"\s", "", "".join(parts)) == re.sub(r"\s", "", whole)
    picture: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/hostname"}}]}]
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(model=evaluated_run.name, messages=picture)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server, api_key="wrong", timeout=60).models.list()


@pytest.mark.slow
def test_a_ready_server_answers_the_pages_it_was_told_to_and_no_other(server: str) -> None:
    import requests

    def ask(origin: str, host: str = "") -> requests.Response:
        headers = {"Authorization": "Bearer a-key", "Origin": origin, **({"Host": host} if host else {})}
        return requests.get(f"{server}/models", headers=headers, timeout=20)

    named = ask("https://mine.example")
    assert (named.status_code, named.headers["access-control-allow-origin"]) == (200, "https://mine.example")
    other = ask("https://evil.example")
    assert other.status_code == 403 and "access-control-allow-origin" not in other.headers


@pytest.mark.slow
def test_the_report_of_a_real_run_holds_its_figures(evaluated_run: Run, evaluated_project: Path) -> None:
    done = run(["report", "last"], evaluated_project)
    assert done.returncode == 0, done.stderr
    text = evaluated_run.report.read_text(encoding="utf-8")
    for told in ("learning rate", "valid JSON", "evaluating", "data-flags", "share of the training rows by length"):
        assert told in text, told


@pytest.mark.slow
def test_answers_that_are_there_are_read_and_not_asked_for_again(evaluated_run: Run) -> None:
    tuned = replace(after.trained_by(evaluated_run, evaluated_run.output), name="tuned")
    kept = evaluated_run.evaluation / "little" / "tuned.jsonl"
    before = kept.stat().st_mtime_ns
    asked = Evaluation(evaluated_run, "little", {"PATH": "/nowhere"}, Stop())
    found = answers(asked, tuned, material(asked, tuned))
    assert found == [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert (len(found), kept.stat().st_mtime_ns) == (24, before)
