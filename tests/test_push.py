"""Giving a run away: the hubs' own clients against a hub on loopback, with what is right and what goes wrong."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Command
from hub_server import Hub, Refusal

from iis_finetune import hub
from iis_finetune.export.parcel import examine
from iis_finetune.hub.folder import MANIFEST
from iis_finetune.models import without_folders
from iis_finetune.report import page
from iis_finetune.runs import Run

TOKEN = "hf_" + "pushpushpush" * 3
HUBS = ("huggingface", "modelscope")
ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"}
WORKERS_OWN = ("training_args.bin", "trainer_log.jsonl", "all_results.json", "optimizer.pt", ".hidden.json")
both = pytest.mark.parametrize("source", HUBS)
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub, of a file's bytes


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that one token may write to; large files go by plain LFS, which it speaks."""
    (tmp_path / "served").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "USE_MODELSCOPE_HUB", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Hub(tmp_path / "served") as running:
        running.uploads.token = TOKEN
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
        yield running


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a base model of a few bytes: nothing here is computed."""
    (tmp_path / "recipes").mkdir()
    write_json(tmp_path / "models" / "tiny" / "config.json", {"model_type": "qwen2"})
    return tmp_path


@pytest.fixture
def mine(project: Path) -> Run:
    """A run as a training, an evaluation and an export leave it, with much beside that is nobody else's."""
    made, base = Run(project / "runs" / "0001-tiny"), project / "models" / "tiny"
    write_json(made.output / "adapter_config.json", {"base_model_name_or_path": str(base), "r": 8})
    write_json(made.output / "tokenizer.json", {"vocab": ["/root", "/home/you", "task-specific-tokens-of-1-text"]})
    (made.output / "chat_template.jinja").write_text("{{ messages }}")
    (made.output / "adapter_model.safetensors").write_bytes(random.Random(1).randbytes(70_000))
    (made.output / "README.md").write_text(f"---\nbase_model: {base}\n---\nPEFT's own\n")
    for name in WORKERS_OWN:
        (made.output / name).write_text(f"{base}\n")
    write_json(made.output / "checkpoint-2" / "adapter_config.json", {})
    write_json(made.trainer_state, {"global_step": 4, "max_steps": 4})
    who = {"pid": 1, "boot": "x", "started": 1}
    write_json(made.attempts, {"attempt": 1, "started": 1.0, "supervisor": who, "returncode": 0, "ending": "finished"})
    made.arguments.write_text(f"model_name_or_path: {base}\nfinetuning_type: lora\nlora_rank: 8\ntemplate: qwen\n")
    made.recipe.write_text(f"model_name_or_path: {base}\ndataset_dir: {project}/data\nstage: sft\nlora_rank: 8\n")
    write_json(made.provenance, {"model": str(base), "data_sha256": {f"{project}/data/little.json": "ab12"}})
    metric = {
        "name": "valid_json",
        "title": "valid JSON",
        "base": 0.5,
        "tuned": 0.75,
        "difference": 0.25,
        "low": 0.1,
        "high": 0.4,
    }
    guard = {"told": "forgetting: not worse"}
    scores = {
        "data": "held_out",
        "rows": 4,
        "base": "base",
        "tuned": "tuned",
        "metrics": [{**metric, "verdict": "better"}],
        "guard": guard,
    }
    write_json(made.evaluation / "held_out" / "scores.json", scores)
    return made


@pytest.fixture
def merged(mine: Run) -> Run:
    """The same run, exported, in two shards of different size, with a GGUF file."""
    for name, size in (("model-00001-of-00002", 150_000), ("model-00002-of-00002", 1_500_000)):
        mine.export.mkdir(exist_ok=True)
        (mine.export / f"{name}.safetensors").write_bytes(random.Random(size).randbytes(size))
    write_json(mine.export / "config.json", {"model_type": "qwen2"})
    write_json(mine.export / "model.safetensors.index.json", {"weight_map": {}})
    (mine.export / "Modelfile").write_text("FROM .\n")
    old = f"---\nbase_model: tiny\n---\n\n# 0001-tiny\n\nmade from `{mine.folder.parent.parent}/models/tiny`, proven\n"
    (mine.export / "README.md").write_text(old)
    (mine.export / "gguf").mkdir()
    (mine.export / "gguf" / "0001-tiny-q8_0.gguf").write_bytes(b"GGUF" + random.Random(3).randbytes(9000))
    (mine.export / "gguf" / "Modelfile.q8_0").write_text("FROM ./0001-tiny-q8_0.gguf\n")
    return mine


def there(server: Hub, name: str) -> dict[str, bytes]:
    """What lies in a repository, but for what the hub itself put there."""
    folder = server.folder / name
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".gitattributes"}


@pytest.mark.usefixtures("mine")
def test_without_a_terminal_a_list_is_shown_and_nothing_is_sent(quick: Command, server: Hub, project: Path) -> None:
    done = quick("push", "1", "--to", "me/tiny model")
    assert done.returncode == 2 and "'me/tiny model' is not a repository's name" in done.stderr
    done = quick("push", "1", "--to", "me/tiny", "--private")
    assert done.returncode == 2
    assert f"to me/tiny on Hugging Face ({server.url}), private:" in done.stdout
    listed = {line.split()[0]: line for line in done.stdout.splitlines()[2:-1]}
    assert set(listed) == ADAPTER
    assert "70.0 kB" in listed["adapter_model.safetensors"]
    assert "'tiny' in place of a folder of this machine" in listed["adapter_config.json"]
    assert "fix:   iis-finetune push 1 --to me/tiny --private --yes" in done.stderr
    assert "'tiny' came from no hub: others cannot load the adapter without it" in done.stderr
    assert str(project) not in done.stdout
    assert server.uploads.committed == [] and not server.uploads.private


@pytest.mark.parametrize(
    "name", ["../..", "./x", "我/模型", "me/x.git", "me/-z", "-me/x", "me/a--b", "me/a..b", "me", "me/x."]
)
def test_a_name_that_no_hub_takes_is_refused_before_anything(quick: Command, server: Hub, mine: Run, name: str) -> None:
    done = quick("push", mine.name, f"--to={name}", "--yes")
    assert (done.returncode, done.stdout) == (2, "") and f"'{name}' is not a repository's name" in done.stderr
    assert server.behaviour.requests == []


@both
def test_of_a_repository_that_is_there_it_says_what_is_replaced(
    quick: Command, server: Hub, mine: Run, source: str
) -> None:
    assert "is there already" not in quick("push", "1", "--to", "me/tiny", "--source", source, "--yes").stdout
    (server.folder / "me" / "tiny" / "notes.txt").write_text("mine")
    (mine.output / "chat_template.jinja").write_text("another")
    server.listings.clear()
    others = len(list((server.folder / "me" / "tiny").iterdir())) - len(ADAPTER)
    done = quick("push", "1", "--to", "me/tiny", "--source", source)
    told = f"1 of its files are replaced: chat_template.jinja; {others} other files stay there"
    assert done.returncode == 2 and f"me/tiny is there already: {told}\n" in done.stdout
    assert (server.folder / "me" / "tiny" / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.usefixtures("mine")
def test_on_a_terminal_it_asks(server: Hub, project: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "iis_finetune", "push", "last", "--to", "me/tiny"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, cwd=project, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.write(ours, b"n\n")
    assert child.wait(120) == 0
    said = os.read(ours, 65536).decode()
    assert "send these 5 files? [y/N]" in said and said.rstrip().endswith("nothing was sent")
    assert server.uploads.committed == [] and not server.uploads.private
    os.close(ours)
    os.close(theirs)


@both
def test_the_adapter_arrives_with_its_card_and_without_this_machine(
    quick: Command, server: Hub, project: Path, mine: Run, source: str
) -> None:
    before = (mine.output / "adapter_config.json").read_bytes()
    done = quick("push", "last", "--to", "me/tiny", "--source", source, "--yes")
    assert done.returncode == 0, done.stderr
    assert "5 files are there, 5 of them sent now; every hash is as it is here" in done.stdout
    assert done.stdout.rstrip().endswith("next: iis-finetune report 0001")
    files = there(server, "me/tiny")
    assert set(files) == ADAPTER
    assert files["adapter_model.safetensors"] == (mine.output / "adapter_model.safetensors").read_bytes()
    assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "tiny", "r": 8}
    assert (mine.output / "adapter_config.json").read_bytes() == before
    card = files["README.md"].decode()
    for told in ("made from `tiny`", "library_name: peft", "lora_rank: 8", "SHA-256 of little.json: `ab12`"):
        assert told in card, told
    assert "| valid JSON | 0.5 | 0.75 | +0.1 to +0.4 | better |" in card
    assert "forgetting: not worse" in card and "PEFT's own" not in card and "base_model:" not in card
    assert not [name for name, data in files.items() if str(project).encode() in data]
    again = quick("push", "last", "--to", "me/tiny", "--source", source, "--yes")
    assert again.returncode == 0, again.stderr
    assert "5 files are there, 0 of them sent now" in again.stdout


@both
def test_a_base_of_a_hub_is_named_by_its_id_and_with_its_licence(
    quick: Command, server: Hub, project: Path, mine: Run, source: str
) -> None:
    (server.folder / "Org" / "Base").mkdir(parents=True)
    origin = {"model": "Org/Base", "source": source, "endpoint": "x", "revision": "main", "commit": None}
    write_json(project / "models" / "tiny" / MANIFEST, {**origin, "files": [], "verified": None})
    done = quick("push", "1", "--to", "me/tiny", "--source", source, "--yes")
    assert done.returncode == 0, done.stderr
    files = there(server, "me/tiny")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "Org/Base"
    card = files["README.md"].decode()
    assert card.startswith("---\nbase_model: Org/Base\nlicense: apache-2.0\nlibrary_name: peft\n")
    assert {"model_name_or_path: Org/Base", "dataset_dir: data"} <= set(re.sub(r": *\n +", ": ", card).splitlines())
    assert "The base model's licence (apache-2.0) and limits apply too." in card
    assert "Org/Base" in page([mine]) and str(project) not in page([mine])
    assert hub.licence_of("Org/Base", {**server.environment, "HF_ENDPOINT": "http://127.0.0.1:9"}) == "apache-2.0"


def test_a_folder_is_renamed_where_it_is_named_and_nowhere_else(quick: Command, server: Hub, mine: Run) -> None:
    for file in (mine.arguments, mine.recipe):
        file.write_text(re.sub("model_name_or_path: .*", "model_name_or_path: /model", file.read_text()))
    write_json(mine.provenance, {"model": "/model"})
    words = {"added_tokens_decoder": {"/model": {"content": "/model"}}, "chat_template": "</model> /model"}
    data = {"vocab.json": {"/model": 1, "/models": 2}, "tokenizer.json": {"vocab": {"/model": 1, "a/model": "/model"}}}
    for name, content in data.items():
        write_json(mine.output / name, content)
    write_json(mine.output / "tokenizer_config.json", {**words, "name_or_path": "/model", "vocab_file": "/model/vocab"})
    write_json(mine.output / "adapter_config.json", {"base_model_name_or_path": "/model", "a_path": "/models/model"})
    done = quick("push", "1", "--to", "me/tiny", "--yes")
    assert done.returncode == 0, done.stderr
    sent = {name: json.loads(text) for name, text in there(server, "me/tiny").items() if name.endswith(".json")}
    assert {name: sent[name] for name in data} == data
    assert sent["tokenizer_config.json"] == {**words, "name_or_path": "model", "vocab_file": "model/vocab"}
    assert sent["adapter_config.json"] == {"base_model_name_or_path": "model", "a_path": "/models/model"}
    assert "made from `model`" in there(server, "me/tiny")["README.md"].decode()


@pytest.mark.parametrize("what", ["adapter", "export"])
def test_commands_and_variables_of_the_recipe_stay_here(quick: Command, server: Hub, merged: Run, what: str) -> None:
    own = "kit:\n  notify: curl https://chat.corp/hook\n  env: {PROXY: 'http://10.0.0.9'}\n  precision: bf16\n"
    merged.recipe.write_text(own + merged.recipe.read_text())
    with (merged.export / "README.md").open("a") as file:
        file.write(f"\n## Recipe\n\n```yaml\n{own}```\n\nas it was\n")
    done = quick("push", "1", "--to", "me/tiny", "--what", what, "--yes")
    assert done.returncode == 0, done.stderr
    card = there(server, "me/tiny")["README.md"].decode()
    assert (
        "kit:\n  precision: bf16\n" in card and "lora_rank: 8" in card and ("as it was" in card) == (what == "export")
    )
    assert not [word for word in ("notify", "chat.corp", "env:", "10.0.0.9") if word in card]


@pytest.mark.usefixtures("merged")
@pytest.mark.parametrize(("what", "source"), [("export", "huggingface"), ("gguf", "modelscope")])
def test_a_merged_model_and_its_gguf_files_can_be_given_away(
    quick: Command, server: Hub, project: Path, what: str, source: str
) -> None:
    done = quick("push", "1", "--to", "me/whole", "--what", what, "--source", source, "--yes")
    assert done.returncode == 0, done.stderr
    files = there(server, "me/whole")
    wanted = {
        "export": {"README.md", "config.json", "model.safetensors.index.json", "Modelfile"}
        | {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)},
        "gguf": {"README.md", "0001-tiny-q8_0.gguf", "Modelfile.q8_0"},
    }
    assert set(files) == wanted[what]
    card = files["README.md"].decode()
    kept, made = "made from `tiny`, proven", "ollama create NAME -f Modelfile.KIND"
    assert (kept in card, made in card) == (what == "export", what == "gguf")
    assert str(project) not in card and "base_model: tiny" not in card


def test_what_a_training_of_all_weights_made_goes_as_a_model(quick: Command, server: Hub, mine: Run) -> None:
    mine.arguments.write_text(mine.arguments.read_text().replace("lora\n", "full\n"))
    (mine.output / "adapter_config.json").unlink()
    (mine.output / "adapter_model.safetensors").rename(mine.output / "model.safetensors")
    write_json(mine.output / "config.json", {"_name_or_path": str(mine.output.resolve())})
    done = quick("push", "1", "--to", "me/whole", "--yes")
    assert done.returncode == 0, done.stderr
    files = there(server, "me/whole")
    assert set(files) == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert json.loads(files["config.json"]) == {"_name_or_path": "0001-tiny"}
    card = files["README.md"].decode()
    assert "library_name: transformers" in card and "made from `tiny`." in card and "vllm serve FOLDER`" in card


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(("what", "fix"), [("export", "export 0001"), ("gguf", "export 0001 --gguf q8_0")])
def test_what_is_not_there_yet_is_to_be_exported_first(quick: Command, server: Hub, what: str, fix: str) -> None:
    done = quick("push", "1", "--to", "me/tiny", "--what", what, "--yes")
    assert done.returncode == 2
    assert f"fix:   iis-finetune {fix}\n" in done.stderr
    assert server.behaviour.requests == []


def test_an_adapter_that_stands_on_another_is_given_away_merged(quick: Command, server: Hub, mine: Run) -> None:
    with mine.arguments.open("a") as file:
        file.write("adapter_name_or_path: /models/first\ncreate_new_adapter: true\n")
    done = quick("push", "1", "--to", "me/tiny", "--yes")
    assert done.returncode == 2 and "stands on another one" in done.stderr and "--what export" in done.stderr
    assert server.behaviour.requests == []


# ---- secrets

SECRETS = {
    "hf_" + "a1B2" * 9: "a Hugging Face token",
    "ms-0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f": "a ModelScope token",
    "AKIA" + "A1B2" * 4: "an AWS access key",
    "-----BEGIN RSA PRIVATE KEY-----": "a private key",
    "sk-proj-" + "a1B2" * 6: "an API key",
    "my own long secret": "the value of CORPORATE_API_KEY",
    "my own long password": "the value of DB_PWD",
    "https://me:pa:ss@host.corp/x": "a password in an address",
    "https://hooks.slack.com/services/T0/B0/x": "a Slack webhook",
    "github_pat_" + "a1B2" * 8: "a GitHub token",
    "gho_" + "a1B2" * 9: "a GitHub token",
    "ghs_" + "a1B2" * 9: "a GitHub token",
    "glpat-" + "a1B2" * 5: "a GitLab token",
    "AIza" + "a1B2c" * 7: "a Google API key",
    "/home/of-me": "a folder of this machine",
    "/home/of-me/x": "a folder of this machine",
}


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_refused_with_its_file_and_line(
    quick: Command, server: Hub, mine: Run, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPORATE_API_KEY", "my own long secret")
    monkeypatch.setenv("DB_PWD", "my own long password")
    monkeypatch.setenv("HOME", "/home/of-me")
    file = mine.output / "chat_template.jinja"
    file.write_text(f"one\ntwo\n{{# {secret} #}}\n")
    done = quick("push", "1", "--to", "me/tiny", "--yes")
    assert done.returncode == 2
    assert f"chat_template.jinja holds {SECRETS[secret]}" in done.stderr
    assert f"where: {file}:3\n" in done.stderr
    assert secret not in done.stderr + done.stdout
    assert server.behaviour.requests == []


@pytest.mark.usefixtures("server")
def test_every_kind_of_secret_on_a_line_is_told_and_what_is_none_is_not(
    quick: Command, mine: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/of-me")
    file = mine.output / "chat_template.jinja"
    file.write_text("/home/of-mechanics https://hub:8080/a@b redis://:${PASS}@host /home/of-me-too")
    assert "5 files" in quick("push", "1", "--to", "me/tiny", "--yes").stdout
    file.write_text(" ".join(list(SECRETS)[:3]))
    done = quick("push", "1", "--to", "me/tiny", "--yes")
    assert done.returncode == 2 and "3 errors" in done.stderr and done.stderr.count("chat_template.jinja:1\n") == 3
    monkeypatch.setenv("HOME", "/root")
    file.write_text("/root/of/me")
    assert "a folder of this machine" in quick("push", "1", "--to", "me/tiny", "--yes").stderr


def test_a_secret_in_the_recipe_and_one_in_the_weights_are_found_too(quick: Command, server: Hub, mine: Run) -> None:
    with mine.recipe.open("a") as file:
        file.write(f"dataset: {list(SECRETS)[2]}\n")
    weights = mine.output / "adapter_model.safetensors"
    weights.write_bytes(bytes((1 << 20) - 5) + b"\x00" + next(iter(SECRETS)).encode() + bytes(1 << 20))
    done = quick("push", "1", "--to", "me/tiny", "--yes")
    assert done.returncode == 2 and "2 errors" in done.stderr
    assert "README.md holds an AWS access key" in done.stderr
    assert "adapter_model.safetensors holds a Hugging Face token" in done.stderr
    assert server.behaviour.requests == []


def test_hashes_are_those_that_git_and_the_hubs_state(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(random.Random(5).randbytes(3 << 20))
    found, secrets = examine(file, {b"\0" * 9: (re.compile(b"\0" * 9), "none")})
    command = ["git", "hash-object", str(file)]
    assert found.git_sha1 == subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    summed = subprocess.run(["sha256sum", str(file)], capture_output=True, text=True, check=True).stdout
    assert found.sha256 == summed.split()[0] and secrets == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dataset_dir: /home/me/project/data", "dataset_dir: data"),
        ("[~/rows/one.json, '/data/two.json']", "[one.json, 'two.json']"),
        ('a: "/home/a b/c d/e", b: "/x y/z", c: \'~/k l/m n\'', 'a: "e", b: "z", c: \'m n\''),
        ("see https://hub.org/owner/name, or 3/4 of it, or /", "see https://hub.org/owner/name, or 3/4 of it, or /"),
    ],
)
def test_of_a_path_of_this_machine_the_last_name_is_left(text: str, told: str) -> None:
    assert without_folders(text) == told


# ---- what goes wrong on the way


@pytest.mark.usefixtures("merged")
@both
def test_a_push_that_was_killed_goes_on_where_it_was(server: Hub, project: Path, source: str) -> None:
    words = ["push", "1", "--to", "me/whole", "--what", "export", "--source", source, "--yes", "--private"]
    command = [sys.executable, "-m", "iis_finetune", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    server.uploads.bytes_per_second = 1_000_000
    child = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not server.uploads.blobs and time.monotonic() < until:
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert len(server.uploads.blobs) == 1  # the smaller of the two
    server.uploads.bytes_per_second = 0
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(server.uploads.sent.values()) == [150_000, 1_500_000]  # each of them once
    assert server.uploads.private == {"me/whole": True}
    assert len(there(server, "me/whole")) == 6


@pytest.mark.usefixtures("mine")
@both
def test_a_file_that_is_not_the_same_there_is_named_and_sent_anew_next_time(
    quick: Command, server: Hub, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iis_finetune.hub.sending.LIST_LAGS", (0.01,))
    for name in ("adapter_model.safetensors", "tokenizer.json"):  # one by its sha256, one by git's hash
        server.uploads.spoil, words = {name}, ("push", "1", "--to", f"me/{name[:5]}", "--source", source, "--yes")
        done = quick(*words)
        assert done.returncode == 3
        assert re.search(rf"error: {name} on \w.* has the hash [0-9a-f]+ there and [0-9a-f]+ here", done.stderr), (
            done.stderr
        )
        assert "1 error" in done.stderr and "next:" not in done.stdout
        server.uploads.spoil = set()
        server.uploads.blobs.clear()
        done = quick(*words)
        assert done.returncode == 0 and "5 files are there, 1 of them sent now" in done.stdout, done.stderr


@pytest.mark.usefixtures("mine")
@both
def test_a_private_push_makes_it_private_and_never_goes_to_a_public_one(
    quick: Command, server: Hub, source: str
) -> None:
    words = ("push", "1", "--source", source, "--yes", "--to")
    assert quick(*words, "me/open").returncode == 0
    assert quick(*words, "me/closed", "--private").returncode == 0
    assert server.uploads.private == {"me/open": False, "me/closed": True}
    assert quick(*words, "me/closed", "--private").returncode == 0
    commits = len(server.uploads.committed)
    done = quick(*words, "me/open", "--private")
    assert done.returncode == 3 and "me/open on" in done.stderr and "is public, and --private was given" in done.stderr
    assert len(server.uploads.committed) == commits


REFUSALS: dict[str, tuple[Callable[[Hub, pytest.MonkeyPatch], object], str]] = {
    "no right to write": (lambda at, _: setattr(at.uploads, "token", "another"), "this token may not write to me/x"),
    "a wrong token": (
        lambda at, _: setattr(at.behaviour, "refusals", [Refusal("/api/*", 401)]),
        "does not accept the token",
    ),
    "too busy": (
        lambda at, _: setattr(at.behaviour, "refusals", [Refusal("*/me/x/*", 429)]),
        "refuses for the moment: it answered 429",
    ),
    "a quota": (
        lambda at, _: setattr(at.behaviour, "refusals", [Refusal("*/commit/*", 402)]),
        "does not take it: it answered 402",
    ),
    "offline": (lambda _, patch: patch.setenv("HF_HUB_OFFLINE", "1"), "the network is switched off"),
    "nobody there": (lambda at, _: at.server.server_close(), "cannot reach"),
}


@pytest.mark.usefixtures("mine")
@both
@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_sentence(
    quick: Command, server: Hub, source: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrange, what = REFUSALS[case]
    if case == "nobody there":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("MODELSCOPE_DOMAIN", "http://127.0.0.1:9")
        monkeypatch.delenv("MODELSCOPE_ENDPOINT")
    else:
        arrange(server, monkeypatch)
    done = quick("push", "1", "--to", "me/x", "--source", source, "--yes")
    assert (done.returncode, done.stderr.count("error: ")) == (3, 1), done.stderr
    assert what in done.stderr
    assert TOKEN not in done.stderr + done.stdout


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("source", "names"), [("huggingface", ("HF_TOKEN", "hf auth login")), ("modelscope", ("MODELSCOPE_API_TOKEN",))]
)
def test_without_a_token_one_sentence_says_what_to_set(
    quick: Command, server: Hub, source: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope"))
    done = quick("push", "1", "--to", "me/tiny", "--source", source, "--yes")
    assert done.returncode == 3 and "there is no token for" in done.stderr
    assert all(name in done.stderr for name in names)
    assert server.behaviour.requests == []


# ---- a real run


@pytest.mark.slow
@both
def test_what_a_real_training_left_is_given_away(
    evaluated_project: Path, evaluated_run: Run, server: Hub, source: str
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    words = ["push", evaluated_run.name, "--to", "me/real", "--source", source, "--yes"]
    command = [sys.executable, "-m", "iis_finetune", *words]
    done = subprocess.run(
        command, cwd=evaluated_project, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    files = there(server, "me/real")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer_config.json", "README.md"} <= set(files)
    assert not {"training_args.bin", "trainer_state.json", "trainer_log.jsonl"} & set(files)
    assert not [name for name, data in files.items() if str(evaluated_project).encode() in data]
    assert "valid JSON" in files["README.md"].decode()
