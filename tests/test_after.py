"""The verbs after training on a real, tiny run: evaluate, export, chat, serve, report."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import RECIPE, ROOT

from iis_finetune import export, launch, runs
from iis_finetune.cli.chat import loopback
from iis_finetune.errors import ProblemsFound, RunFailed
from iis_finetune.evaluate.answers import Job, Side, answers, material, run_llamafactory
from iis_finetune.evaluate.compare import compare
from iis_finetune.evaluate.metrics import Declared, score
from iis_finetune.export.checks import check_files, check_sources, check_target, judge
from iis_finetune.models import fingerprint
from iis_finetune.plan import after
from iis_finetune.runs import Run
from iis_finetune.supervise import Stop

LONGEST = 1200.0  # seconds, on a machine that is busy with other work
KIT = "kit:\n  evaluate_after: little\n  env: {OMP_NUM_THREADS: 1}\n"
TRAINING = RECIPE.split("model_name_or_path", 1)[1].replace("max_steps: 4", "max_steps: 30").replace("e-3", "e-2")


def run(words: list[str], folder: Path, seconds: float = 60, **extra: str) -> subprocess.CompletedProcess[str]:
    """The command as a whole process; `extra` are environment variables."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **extra}
    command = [sys.executable, "-m", "iis_finetune", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project folder with a recipe, held-out rows in JSON, and a copy of the tiny model."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("recipes", "data", "models"):
        (folder / name).mkdir()
    shutil.copytree(tiny_model, folder / "models" / "tiny")
    (folder / "recipes" / "tiny.yaml").write_text(f"{KIT}model_name_or_path{TRAINING}", encoding="utf-8")
    rows = [
        {
            "instruction": f"新闻 {n}",
            "input": "",
            "output": json.dumps({"UUID": f"A{n}", **({"mark": 3} if n % 3 else {})}),
        }
        for n in range(24)
    ]
    (folder / "data" / "little.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    registry = {"little": {"file_name": "little.json", "columns": columns}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(project: Path) -> Run:
    """One finished run of the project, evaluated on the held-out rows at its end."""
    done = run(["train", "tiny"], project, LONGEST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "evaluation on little, 24 rows" in done.stdout
    return runs.listed(runs.Workspace(project, project / "models", project / "runs"))[-1]


@pytest.fixture(scope="module")
def environment(trained: Run) -> dict[str, str]:
    """That of the run's children."""
    chosen = json.loads(trained.decisions.read_text(encoding="utf-8"))["environment"]
    return after.one_process({**os.environ, **chosen})


@pytest.fixture(scope="module")
def merged(trained: Run, project: Path) -> Path:
    """The run's export, made and proven by the command."""
    done = run(["export", "last"], project, LONGEST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal greedy answers:          20 of 20" in done.stdout
    return trained.export


def subject(trained: Run) -> after.Trained:
    arguments = after.read_arguments(trained)
    return after.Trained(trained.name, arguments, after.tuned_weights(arguments, trained.output), "fp32")


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


def test_an_export_never_writes_over_what_is_there(tmp_path: Path) -> None:
    assert check_target(tmp_path / "new") == check_target(tmp_path) == []
    (tmp_path / "file").write_text("x")
    assert [each.what for each in check_target(tmp_path)] == [f"'{tmp_path}' exists and is not empty"]


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


def test_what_comes_after_training_is_one_process_on_its_first_device() -> None:
    given = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "4", "ROCR_VISIBLE_DEVICES": "GPU-a,GPU-b", "HOME": "/h"}
    given |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "/kit/hook:/kit/hook/torchaudio_placeholder"}
    expected = {"ROCR_VISIBLE_DEVICES": "GPU-a", "HOME": "/h", "CUDA_VISIBLE_DEVICES": ""}
    assert after.one_process(given) == {**expected, "PYTHONPATH": "/kit/hook/torchaudio_placeholder"}


PROVEN: dict[str, Any] = {
    "logit_difference": 1e-6,
    "tolerance": 1e-4,
    "texts": 20,
    "equal_texts": 19,
    "near_ties": 1,
    "weights": {"compared": 26, "largest_difference": 0.0, "tolerance_exceeded": []},
    "missing": [],
    "unexpected": [],
    "tokenizer": {"prompts_equal": True, "template_equal": True, "stops_equal": True, "modelfile_equal": True},
    "own_template_equal": True,
}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"logit_difference": 0.5}, "logits differ by up to 0.5"),
        ({"near_ties": 0}, "1 of 20 greedy answers differ"),
        ({"missing": ["lm_head.weight"]}, "lacks tensors: lm_head.weight"),
        ({"weights": {**PROVEN["weights"], "tolerance_exceeded": ["a"]}}, "weights differ from base and adapter"),
        ({"weights": {**PROVEN["weights"], "tolerance_exceeded": ["a"] * 20}}, "merged from another base model"),
        ({"tokenizer": {**PROVEN["tokenizer"], "stops_equal": False}}, "the token that ends an answer"),
    ],
)
def test_each_difference_is_a_reason_of_its_own(changed: dict[str, Any], reason: str | None) -> None:
    found = [each.what for each in judge({**PROVEN, **changed}, Path("merged"))]
    assert (reason is None and found == []) or (reason is not None and reason in found[0] and len(found) == 1)


def test_an_adapter_that_cannot_be_merged_is_refused_before_it_is(tmp_path: Path, tiny_model: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"base_model_name_or_path": str(tiny_model), "target_modules": ["lm_head"], "r": 8}
    settings["init_lora_weights"] = "pissa_niter_16"
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "adapter_model.bin").write_bytes(b"")
    weights = after.Weights(str(tiny_model), (str(adapter),))
    found = " ".join(each.what for each in check_sources(after.Trained("x", {}, weights), "0" * 64))
    assert "which this model ties" in found
    assert "PiSSA" in found
    assert "are not those that x was trained on" in found


def test_a_fingerprint_is_that_of_the_weights_not_of_the_folder(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    assert fingerprint(tmp_path) == fingerprint(tiny_model) is not None
    (tmp_path / "model.safetensors").unlink()
    data = bytearray((tiny_model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert fingerprint(tmp_path) != fingerprint(tiny_model)


def test_a_reward_model_is_not_exported_without_the_head_it_scores_with(tmp_path: Path) -> None:
    result, merged = tmp_path / "output", tmp_path / "merged"
    weights = after.Weights(str(tmp_path / "base"), (str(result),))
    reward = after.Trained("reward", {"stage": "rm"}, weights)
    for folder in (result, merged):
        folder.mkdir()
    (result / "value_head.safetensors").write_bytes(b"head")
    assert ["value_head.safetensors" in each.what for each in check_files(reward, merged)] == [True]
    shutil.copy(result / "value_head.safetensors", merged)
    assert check_files(reward, merged) == []
    (merged / "value_head.safetensors").write_bytes(b"other")
    assert len(check_files(reward, merged)) == 1
    assert check_files(replace(reward, arguments={"stage": "dpo"}), merged) == []


# On a real run


@pytest.mark.slow
def test_the_metrics_are_those_llamafactory_writes_beside_the_same_answers(
    trained: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = after.read_arguments(trained)
    job = Job(tmp_path, "little", environment, Stop())
    given = material(job, arguments)
    side = Side("tuned", arguments, after.tuned_weights(arguments, trained.output.resolve()))
    rows = after.Rows(given.dataset_dir, tuple(given.parts), str(tmp_path / "out"), given.max_new_tokens)
    run_llamafactory(job, "tuned", after.predict(arguments, side.weights, rows), tmp_path / "out")
    theirs = json.loads((tmp_path / "out" / "predict_results.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out" / after.PREDICTIONS).read_text("utf-8").splitlines()]
    found = compare(None, score([line["predict"] for line in lines], [line["label"] for line in lines], Declared()))
    ours = {each.name: each.tuned for each in found}
    for name in ("rouge-1", "rouge-2", "rouge-l", "bleu-4"):
        assert ours[name] == pytest.approx(theirs[f"predict_{name}"], abs=1e-4), name
    assert ours["rouge-1"] != 0


@pytest.mark.slow
def test_an_evaluation_that_was_killed_goes_on_and_ends_with_the_same_numbers(trained: Run, project: Path) -> None:
    words = ["evaluate", "last", "--part", "8", "--json"]
    folder = trained.evaluation / "little"
    straight = run(words, project, LONGEST)
    assert straight.returncode == 0, straight.stderr
    for name in ("base.jsonl", "tuned.jsonl", "scores.json", "base.settings.json", "tuned.settings.json"):
        (folder / name).unlink()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-m", "iis_finetune", *words], cwd=project, env=environment, stdout=subprocess.DEVNULL
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
    again = run(words, project, LONGEST)
    assert json.loads(again.stdout) == json.loads(straight.stdout)


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_alone_and_leaves_the_result_of_the_run(trained: Run, project: Path) -> None:
    before = (trained.evaluation / "little" / "scores.json").read_text()
    words = ["evaluate", "last", "--checkpoint", "2", "--baseline", "none", "--label-field", "mark"]
    done = run(words, project, LONGEST)
    assert done.returncode == 0, done.stderr
    scores = json.loads((trained.evaluation / "little" / "scores-checkpoint-2.json").read_text())
    assert "label" in [metric["name"] for metric in scores["metrics"]]
    assert (trained.evaluation / "little" / "scores.json").read_text() == before
    missing = run(["evaluate", "last", "--checkpoint", "3"], project)
    assert missing.returncode == 2
    assert "has no checkpoint 3" in missing.stderr


@pytest.mark.slow
def test_an_export_is_whole_and_loads_with_plain_transformers(merged: Path) -> None:
    card = (merged / "README.md").read_text(encoding="utf-8")
    for told in ("fp32", "template: qwen", "SHA-256 of little.json", "valid JSON", "20 of 20", "lora_rank: 8"):
        assert told in card, told
    assert (merged / "Modelfile").is_file()
    assert not [path for path in merged.rglob("*") if path.is_symlink()]
    script = "import sys; from transformers import AutoModelForCausalLM as M; M.from_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(merged)], check=True, timeout=300, capture_output=True)


@pytest.mark.slow
def test_each_planted_fault_is_refused_with_its_reason(
    trained: Run, merged: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    ours = subject(trained)
    cases = {
        "one_weight": "weights differ from base and adapter",
        "tokenizer": "tokenizer files are missing: tokenizer.json",
        "template": "is not that of the training's template",
        "base": "merged from another base model",
    }
    for name, reason in cases.items():
        folder = tmp_path / name / "model"
        planted(name, ours, merged, (folder, environment))
        _, problems = export.prove(ours, folder, after.export(ours, str(folder), "float32"), environment)
        assert any(reason in problem.what for problem in problems), (name, problems)


def planted(name: str, ours: after.Trained, merged: Path, place: tuple[Path, dict[str, str]]) -> None:
    """A merged folder with one fault."""
    folder, environment = place
    folder.parent.mkdir()
    if name in ("one_weight", "tokenizer"):
        shutil.copytree(merged, folder)
    if name == "tokenizer":
        (folder / "tokenizer.json").unlink()
    if name == "one_weight":
        change_one_weight(folder / "model.safetensors")
    if name == "template":
        wrong = replace(ours, arguments={**ours.arguments, "template": "llama2"})
        merge(after.export(wrong, str(folder), "float32"), folder.parent, environment)
    if name == "base":
        other = folder.parent / "other"
        shutil.copytree(ours.weights.model, other)
        change_all_weights(other / "model.safetensors")
        wrong = replace(ours, weights=after.Weights(str(other), ours.weights.adapters))
        merge(after.export(wrong, str(folder), "float32"), folder.parent, environment)


def merge(arguments: dict[str, Any], folder: Path, environment: dict[str, str]) -> None:
    (folder / "e.yaml").write_text(launch.yaml_text(arguments), encoding="utf-8")
    words = launch.program("export", str(folder / "e.yaml"))
    subprocess.run(words, env=environment, check=True, capture_output=True, timeout=300)


def change_one_weight(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40  # the highest bit of the last number's exponent
    path.write_bytes(data)


def change_all_weights(path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(7)
    tensors = {
        name: each + 0.02 * torch.randn(each.shape, generator=generator) for name, each in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.slow
def test_an_export_that_is_refused_leaves_the_earlier_one(
    trained: Run, merged: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    ours = subject(trained)
    other = tmp_path / "tiny"
    shutil.copytree(ours.weights.model, other)
    (other / "config.json").write_text(
        (other / "config.json").read_text().replace('"hidden_size": 64', '"hidden_size": 32')
    )
    before = sorted(path.name for path in merged.iterdir())
    wrong = replace(ours, weights=after.Weights(str(other), ours.weights.adapters))
    with pytest.raises((ProblemsFound, RunFailed)):
        export.export(wrong, export.Wanted(merged, environment, run=trained, replace=True))
    assert sorted(path.name for path in merged.iterdir()) == before
    assert not list(merged.parent.glob(".export*"))


@pytest.mark.slow
@pytest.mark.parametrize("end", ["exit\n", ""], ids=["exit", "end of input"])
def test_chat_answers_in_the_terminal(trained: Run, project: Path, end: str) -> None:
    words = [sys.executable, "-m", "iis_finetune", "chat", "last"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words,
        cwd=project,
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
def server(trained: Run, project: Path) -> Iterator[str]:
    """The address of `serve` with a key; ended as Ctrl-C does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "iis_finetune", "serve", "last", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "API_KEY": "a-key"}
    log = project / "serve.log"
    with log.open("wb") as stream:
        child = subprocess.Popen(
            words, cwd=project, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + 200
    while "Uvicorn running" not in log.read_text(errors="replace") and time.monotonic() < deadline:
        assert child.poll() is None, log.read_text()
        time.sleep(0.3)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(child.pid, signal.SIGINT)
        child.wait(60)


@pytest.mark.slow
def test_the_openai_client_talks_to_the_server(server: str, trained: Run) -> None:
    import openai

    client = openai.OpenAI(base_url=server, api_key="a-key", timeout=60)
    assert [model.id for model in client.models.list()] == [trained.name]
    asked: Any = {
        "model": trained.name,
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
        client.chat.completions.create(model=trained.name, messages=picture)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server, api_key="wrong", timeout=60).models.list()


@pytest.mark.slow
def test_the_report_of_a_real_run_holds_its_figures(trained: Run, project: Path) -> None:
    done = run(["report", "last"], project)
    assert done.returncode == 0, done.stderr
    text = trained.report.read_text(encoding="utf-8")
    for told in ("learning rate", "valid JSON", "evaluating", "data-flags"):
        assert told in text, told


@pytest.mark.slow
def test_answers_that_are_there_are_read_and_not_asked_for_again(trained: Run, environment: dict[str, str]) -> None:
    arguments = after.read_arguments(trained)
    job = Job(trained.evaluation / "little", "little", {"PATH": "/nowhere"}, Stop(), part_rows=200)
    given = material(job, arguments)
    side = Side("tuned", arguments, after.tuned_weights(arguments, trained.output.resolve()))
    fresh = Job(job.folder, "little", environment, Stop())
    first = answers(fresh, side, given)
    assert answers(job, side, given) == first
