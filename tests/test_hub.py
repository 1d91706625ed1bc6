"""The hub module against a hub on loopback, and the hubs' own clients against the same one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Behaviour, Hub, Refusal
from msgspec.structs import replace

from iis_finetune import hub
from iis_finetune.errors import Problem, ProblemsFound
from iis_finetune.hub.file_lists import read_list
from iis_finetune.hub.folder import MANIFEST
from iis_finetune.hub.refusals import HubFailure
from iis_finetune.hub.selection import needed

MODEL = "Org/Tiny-0.5B"
TOKEN = "hf_secretsecretsecret"
QUICK = hub.Patience(probe_seconds=5, connect_seconds=2, read_seconds=1, tries=3, first_pause_seconds=0.01)
SHARDS = 3
SHARD_BYTES = 400_000


def write_shard(path: Path, tensor: str, size: int) -> None:
    header = json.dumps({tensor: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as handle:
        handle.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, size, 1 << 20):
            handle.write(random.randbytes(min(1 << 20, size - start)))


def write_model(folder: Path, shards: int = SHARDS, size: int = SHARD_BYTES) -> None:
    folder.mkdir(parents=True)
    names = {f"layer.{i}": f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)}
    for tensor, name in names.items():
        write_shard(folder / name, tensor, size)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_text(json.dumps({"name": name}))
    (folder / "merges.txt").write_text("a b\n")
    (folder / "README.md").write_text("not needed")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"not needed")
    (folder / "pytorch_model.bin").write_bytes(b"not needed")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    write_model(root / MODEL)
    return root


@pytest.fixture
def server(served: Path) -> Iterator[Hub]:
    with Hub(served) as running:
        yield running


class Place:
    """A home, a models folder and an environment of one's own."""

    def __init__(self, root: Path, server: Hub, monkeypatch: pytest.MonkeyPatch):
        self.root = root
        self.models = root / "models"
        self.environment = server.environment | {"HOME": str(root / "home")}
        self.request = hub.ModelOrder(MODEL, self.models, source="huggingface", patience=QUICK)
        self.notes: list[str] = []
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(root / "home" / "token"))
        for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MODELSCOPE_HOME", str(root / "home" / "modelscope"))

    def fetch(self, **changes: Any) -> hub.Fetched:
        return hub.fetch(replace(self.request, **changes), self.environment, self.note)

    def note(self, progress: hub.Progress) -> None:
        if progress.note:
            self.notes.append(progress.note)

    def problems(self, **changes: Any) -> list[Problem]:
        with pytest.raises(ProblemsFound) as found:
            self.fetch(**changes)
        assert not hub.is_whole(self.request.folder)
        assert not self.request.folder.exists()
        assert all(entry.complete is False for entry in hub.installed(self.models, self.environment))
        return found.value.problems

    def problem(self, **changes: Any) -> Problem:
        (problem,) = self.problems(**changes)
        assert problem.fix
        assert not problem.what.endswith(".")
        return problem


@pytest.fixture
def place(tmp_path: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, server, monkeypatch)


def same_files(folder: Path, original: Path) -> bool:
    names = {path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST}
    return all((folder / name).read_bytes() == (original / name).read_bytes() for name in names)


# ---- which files


@pytest.mark.parametrize(
    ("listed", "kept"),
    [
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "README.md", ".gitattributes"],
            ["config.json", "model.safetensors"],
        ),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "training_args.bin", "vocab.txt"],
            ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "vocab.txt"],
        ),
        (
            ["model.safetensors.index.json", "model-00001-of-00001.safetensors", "pytorch_model.bin.index.json"],
            ["model-00001-of-00001.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["consolidated.safetensors", "model-00001-of-00001.safetensors", "params.json", "original/params.json"],
            ["model-00001-of-00001.safetensors", "params.json"],
        ),
        (["model.safetensors", "model.fp16.safetensors", "onnx/model.onnx"], ["model.safetensors"]),
        (["model.safetensors-00001-of-00002.safetensors"], ["model.safetensors-00001-of-00002.safetensors"]),
        (["adapter_model.safetensors", "adapter_config.json"], ["adapter_config.json", "adapter_model.safetensors"]),
        (["qwen.tiktoken", "modeling_qwen.py", "tokenizer.model", "q4.gguf"], None),
        (["../config.json", "/etc/config.json", "additional_chat_templates/tool.jinja"], None),
    ],
)
def test_only_the_files_that_training_needs_are_listed(listed: list[str], kept: list[str] | None) -> None:
    if kept is None:
        kept = sorted(set(listed) - {"q4.gguf", "../config.json", "/etc/config.json"})
    assert [file.path for file in needed(hub.RemoteFile(path, 1) for path in listed)] == kept


# ---- the server is honest: the hubs' own clients accept it


def test_huggingface_hub_itself_fetches_from_this_server(server: Hub, tmp_path: Path, served: Path) -> None:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(MODEL, cache_dir=tmp_path, endpoint=server.url, token=False)
    assert hashlib.sha256(Path(folder, "model-00002-of-00003.safetensors").read_bytes()).hexdigest() == (
        server.listing(MODEL)["model-00002-of-00003.safetensors"].sha256
    )


def test_modelscope_itself_fetches_from_this_server(server: Hub, tmp_path: Path, served: Path) -> None:
    from modelscope.hub.snapshot_download import snapshot_download

    folder = snapshot_download(MODEL, local_dir=str(tmp_path / "model"), endpoint=server.url)
    assert same_files(Path(folder), served / MODEL)
    assert Path(folder, "model-00002-of-00003.safetensors").stat().st_size > SHARD_BYTES


# ---- a fetch


@pytest.mark.parametrize(("source", "revision"), [("huggingface", "main"), ("modelscope", "master")])
def test_a_model_is_fetched_verified_and_recorded(place: Place, served: Path, source: str, revision: str) -> None:
    done = place.fetch(source=source)
    assert same_files(done.folder, served / MODEL)
    assert done.folder == place.models / "Org--Tiny-0.5B"
    names = {path.name for path in done.folder.iterdir()}
    assert len(names) == SHARDS + 6 + 1
    assert "README.md" not in names
    manifest = hub.read_manifest(done.folder)
    assert manifest
    assert (manifest.model, manifest.source, manifest.revision, manifest.commit) == (MODEL, source, revision, COMMIT)
    assert all(
        hashlib.sha256((done.folder / file.path).read_bytes()).hexdigest() == file.sha256 for file in manifest.files
    )
    assert hub.verify(done.folder) == []
    assert done.as_json()["fetched_bytes"] == manifest.size_bytes
    assert not [path for path in place.models.iterdir() if path.name.endswith(".incomplete")]


def test_a_model_that_is_here_costs_no_packet(place: Place, server: Hub) -> None:
    place.fetch()
    server.behaviour.requests.clear()
    assert place.fetch().fetched_bytes == 0
    assert place.fetch(revision=COMMIT).fetched_bytes == 0
    assert server.behaviour.requests == []


def test_the_default_branch_is_the_same_model_whatever_the_hub_calls_it(place: Place, server: Hub) -> None:
    place.fetch(source="modelscope")
    server.behaviour.requests.clear()
    assert place.fetch(revision="main").fetched_bytes == 0
    assert server.behaviour.requests == []


def test_a_model_goes_into_an_exact_folder(place: Place) -> None:
    done = place.fetch(to=place.root / "mine", exact=True)
    assert done.folder == place.root / "mine"
    assert hub.is_whole(place.root / "mine")


def test_a_folder_with_something_else_in_it_is_left_alone(place: Place) -> None:
    folder = place.root / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    with pytest.raises(ProblemsFound) as found:
        place.fetch(to=folder, exact=True)
    assert found.value.exit_code == 2
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_another_revision_replaces_the_model_and_fetches_only_what_differs(place: Place, server: Hub) -> None:
    done = place.fetch()
    manifest = hub.read_manifest(done.folder)
    assert manifest
    hub.folder.write_manifest(done.folder, replace(manifest, revision="v1", commit="1" * 40))
    server.behaviour.served.clear()
    again = place.fetch(revision="main")
    assert (again.fetched_bytes, again.manifest.commit) == (0, COMMIT)
    assert hub.verify(done.folder) == []


# ---- cut, killed, corrupted


def test_a_broken_connection_is_taken_up_where_it_ended(place: Place, server: Hub, served: Path) -> None:
    server.behaviour.cut_at = [100_000, 300_000, 300_001, 700_000, 1_000_000]
    assert same_files(place.fetch().folder, served / MODEL)
    assert server.behaviour.cut_at == []
    assert server.behaviour.served_weights < SHARDS * (SHARD_BYTES + 1000)


def test_a_server_without_ranges_is_read_from_the_start(place: Place, server: Hub, served: Path) -> None:
    server.behaviour.ignore_ranges = True
    server.behaviour.cut_at = [100_000]
    assert same_files(place.fetch().folder, served / MODEL)


def test_a_silent_connection_is_given_up_and_taken_up_again(place: Place, server: Hub, served: Path) -> None:
    server.behaviour.stall_seconds = {"merges.txt": 0, "model-00001-of-00003.safetensors": 3}
    server.behaviour.cut_at = [10_000]
    started = time.monotonic()
    assert same_files(place.fetch().folder, served / MODEL)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "tokenizer.json"])
def test_one_wrong_byte_costs_one_more_fetch_of_that_file(place: Place, server: Hub, source: str, name: str) -> None:
    server.behaviour.corrupt[name] = 1
    done = place.fetch(source=source)
    assert hub.verify(done.folder) == []
    size = server.listing(MODEL)[name].size
    assert server.behaviour.served[name] == 2 * size
    assert done.fetched_bytes == done.manifest.size_bytes + size


def test_a_file_that_stays_wrong_is_named_and_nothing_looks_whole(place: Place, server: Hub) -> None:
    server.behaviour.corrupt["tokenizer.json"] = 2
    problem = place.problem()
    assert "tokenizer.json" in problem.what
    assert "sha" in problem.what or "git hash" in problem.what
    assert problem.exit_code == 3
    server.behaviour.served.clear()
    assert hub.verify(place.fetch().folder) == []
    assert server.behaviour.served["tokenizer.json"] > 0


def test_a_server_that_lies_about_a_length_is_not_believed(place: Place, server: Hub) -> None:
    server.behaviour.size_lie = {"merges.txt": 5}
    problem = place.problem()
    assert "merges.txt" in problem.what
    assert "9 bytes where the hub's list says 4" in problem.what


def test_an_index_that_names_a_shard_that_is_not_there_is_an_error(tmp_path: Path, place: Place) -> None:
    broken = tmp_path / "broken" / MODEL
    write_model(broken)
    (broken / "model-00003-of-00003.safetensors").unlink()
    write_shard(broken / "model-00002-of-00003.safetensors", "other", 100)
    with Hub(tmp_path / "broken") as server:
        place.environment |= server.environment
        problems = place.problems()
    assert "lacks tensors" in problems[0].what
    assert "model-00003-of-00003.safetensors" in problems[1].what


CHILD = """
import sys
from pathlib import Path
from iis_finetune import hub
request = hub.ModelOrder(sys.argv[1], Path(sys.argv[2]), source=sys.argv[3],
                      patience=hub.Patience(first_pause_seconds=0.05, read_seconds=5))
import os
try:
    done = hub.fetch(request, os.environ, lambda progress: print(progress.note, flush=True) if progress.note else None)
except KeyboardInterrupt:
    sys.exit(130)
print("fetched", done.fetched_bytes)
"""


def start(place: Place, model: str = MODEL, source: str = "huggingface") -> subprocess.Popen[str]:
    environment = os.environ | place.environment
    command = [sys.executable, "-c", CHILD, model, str(place.models), source]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_a_killed_download_leaves_nothing_that_looks_whole_and_is_taken_up(place: Place, server: Hub) -> None:
    server.behaviour.bytes_per_second = 400_000
    child = start(place)
    wait_for(lambda: server.behaviour.served_weights > SHARD_BYTES)
    with child:
        child.kill()
    assert not place.request.folder.exists()
    assert [entry.complete for entry in hub.installed(place.models, place.environment)] == [False]
    server.behaviour.bytes_per_second = 0
    before = server.behaviour.served_weights
    done = place.fetch()
    assert hub.verify(done.folder) == []
    assert done.fetched_bytes < done.manifest.size_bytes - SHARD_BYTES / 2
    assert server.behaviour.served_weights - before < SHARDS * (SHARD_BYTES + 1000)


def test_ctrl_c_ends_a_download_at_once_and_keeps_its_bytes(place: Place, server: Hub) -> None:
    server.behaviour.bytes_per_second = 100_000
    child = start(place)
    wait_for(lambda: server.behaviour.served_weights > 0)
    time.sleep(0.2)
    with child:
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=2) == 130
    assert not place.request.folder.exists()


def test_two_processes_fetch_a_model_once(place: Place, server: Hub) -> None:
    server.behaviour.bytes_per_second = 2_000_000
    children = [start(place) for _ in range(2)]
    outputs = sorted(child.communicate(timeout=30)[0].strip().splitlines()[-1] for child in children)
    assert outputs[0] == "fetched 0"
    assert int(outputs[1].split()[1]) > SHARDS * SHARD_BYTES
    assert server.behaviour.served_weights < SHARDS * (SHARD_BYTES + 1000)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_200_mb_model_survives_20_cuts_5_kills_and_a_wrong_byte(place: Place, tmp_path: Path, source: str) -> None:
    shards, size = 4, 50_000_000
    write_model(tmp_path / "large" / MODEL, shards, size)
    chance = random.Random(5)
    with Hub(tmp_path / "large") as server:
        place.environment |= server.environment
        server.behaviour.cut_at = sorted(chance.sample(range(1_000_000, shards * size), 20))
        server.behaviour.corrupt["model-00003-of-00004.safetensors"] = 1
        server.behaviour.bytes_per_second = 40_000_000
        for kill in range(5):  # while the connections are being cut
            child = start(place, source=source)
            goal = (kill + 1) * 35_000_000 + chance.randrange(5_000_000)
            wait_for(lambda goal=goal: server.behaviour.served_weights > goal)  # type: ignore[misc]
            with child:
                child.kill()
            assert not place.request.folder.exists()
        done = place.fetch(source=source)
        assert server.behaviour.cut_at == []
        assert hub.verify(done.folder) == []
        total = sum(file.size for file in server.listing(MODEL).values() if file.path.endswith(".safetensors"))
        shard = server.listing(MODEL)["model-00003-of-00004.safetensors"].size
        bound = total + shard + (20 + 5 * 4) * 10 * 2**20
        assert server.behaviour.served_weights <= bound
        # Far inside the bound: only a kill loses anything, and that is what lay in the sockets of the open streams.
        assert server.behaviour.served_weights <= total + shard + 5 * 4 * 4 * 2**20


# ---- refusals


def refuse(pattern: str, status: int, **headers: str) -> Refusal:
    return Refusal(pattern, status, {name.replace("_", "-"): value for name, value in headers.items()})


TOKENS = {"HF_TOKEN": TOKEN, "MODELSCOPE_API_TOKEN": TOKEN}
REFUSALS: dict[str, tuple[str, dict[str, Any], dict[str, str], str, str]] = {
    # name: source, behaviour, environment, words of what, words of the fix
    "gated without a token": ("huggingface", {"token": "t", "gated": True}, {}, "no token is set", "HF_TOKEN"),
    "licence not accepted": (
        "huggingface",
        {"refusals": [refuse("/*/resolve/*", 403, X_Error_Code="GatedRepo")]},
        TOKENS,
        "licence has not been accepted",
        f"/{MODEL}",
    ),
    "gated on ModelScope": ("modelscope", {"refusals": [refuse("*FilePath*", 403)]}, TOKENS, "may not read", "terms"),
    "private": ("huggingface", {"token": "t"}, {}, "or it is private", "HF_TOKEN"),
    "private on ModelScope": ("modelscope", {"token": "t"}, {}, "or it is private", "modelscope login"),
    "wrong token": ("huggingface", {"token": "other"}, TOKENS, "does not accept the token", "hf auth login"),
    "wrong token on ModelScope": ("modelscope", {"token": "other"}, TOKENS, "does not accept", "MODELSCOPE_API_TOKEN"),
    "403": ("huggingface", {"refusals": [refuse("/api/*", 403)]}, TOKENS, "may not read", "right to read"),
    "429": ("huggingface", {"refusals": [refuse("/api/*", 429, Retry_After="0")]}, {}, "answered 429", "repeat"),
    "503": ("modelscope", {"refusals": [refuse("/api/*", 503)]}, {}, "answered 503", "repeat"),
    "503 on files": ("huggingface", {"refusals": [refuse("/cdn/*", 503)]}, {}, "answered 503", "is kept"),
    "a listed file that is not there": (
        "huggingface",
        {"refusals": [refuse("/cdn/*", 404, X_Error_Code="EntryNotFound")]},
        {},
        "does not have",
        "repeat",
    ),
    "proxy": ("huggingface", {"refusals": [refuse("/api/*", 407)]}, {}, "proxy", "NO_PROXY"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_every_refusal_says_what_to_do_and_never_the_token(place: Place, server: Hub, case: str) -> None:
    source, behaviour, environment, what, fix = REFUSALS[case]
    for name, value in behaviour.items():
        setattr(server.behaviour, name, value)
    place.environment |= environment
    problems = place.problems(source=source)
    assert {(problem.what, problem.fix) for problem in problems} == {(problems[0].what, problems[0].fix)}
    assert what in problems[0].what
    assert fix in problems[0].fix
    assert all(problem.exit_code == 3 for problem in problems)
    assert_token_nowhere(place, [problem.as_json() for problem in problems])


def assert_token_nowhere(place: Place, said: Any) -> None:
    assert TOKEN not in repr(said) + repr(place.notes)
    written = [path for path in place.root.rglob("*") if path.is_file()]
    assert all(TOKEN.encode() not in path.read_bytes() for path in written)


def test_a_model_that_is_not_there_gets_near_names(place: Place) -> None:
    problem = place.problem(model="Qwen/Qwen2.5-7B-Instrukt")
    assert "there is no model Qwen/Qwen2.5-7B-Instrukt" in problem.what
    assert "did you mean Qwen/Qwen2.5-7B-Instruct" in problem.fix


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_revision_that_is_not_there_is_named(place: Place, source: str) -> None:
    problem = place.problem(source=source, revision="v9")
    assert "has no revision v9" in problem.what
    assert MODEL in problem.fix


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_the_token_opens_what_is_private_and_goes_to_no_other_host(place: Place, server: Hub, source: str) -> None:
    server.behaviour.token, server.behaviour.gated = TOKEN, True
    place.environment |= TOKENS
    done = place.fetch(source=source)
    assert server.behaviour.elsewhere_with_token == 0
    assert_token_nowhere(place, [done.as_json(), repr(hub.order.hubs(place.request, place.environment))])


def test_the_logins_of_the_hubs_own_clients_are_used(place: Place, server: Hub) -> None:
    from modelscope_hub.config import HubConfig

    server.behaviour.token = TOKEN
    (place.root / "home").mkdir()
    (place.root / "home" / "token").write_text(TOKEN)
    HubConfig().save_token(TOKEN)
    assert place.fetch(source="huggingface").fetched_bytes
    assert place.fetch(source="modelscope", to=place.root / "other").fetched_bytes


def test_a_busy_hub_is_asked_again_with_growing_pauses(place: Place, server: Hub) -> None:
    server.behaviour.refusals = [Refusal("/cdn/*00001*", 503, times=2), Refusal("/api/*", 429, times=2)]
    place.request = replace(place.request, patience=replace(QUICK, first_pause_seconds=0.2))
    started = time.monotonic()
    assert place.fetch().fetched_bytes
    assert time.monotonic() - started > 0.2 + 0.4
    assert sum("it answered 429; asking again in" in note for note in place.notes) == 1
    assert sum("it answered 503; going on in" in note for note in place.notes) == 2


def test_retry_after_is_honoured(place: Place, server: Hub) -> None:
    server.behaviour.refusals = [Refusal("/cdn/*00001*", 429, {"Retry-After": "1"}, times=1)]
    started = time.monotonic()
    place.fetch()
    assert 1 <= time.monotonic() - started < 4


def test_a_retry_after_without_end_is_not_waited_for(place: Place, server: Hub) -> None:
    assert hub.Patience().pause_seconds(HubFailure("busy", retry_after=1e9), 1) == 120
    server.behaviour.refusals = [Refusal("/cdn/*00001*", 429, {"Retry-After": "9" * 5000}, times=1)]
    assert place.fetch().fetched_bytes


# ---- answers that no hub gives


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_refusal_without_end_is_cut_off(place: Place, server: Hub, source: str, status: int) -> None:
    server.behaviour.refusals = [
        Refusal("/api/*", status, {"Location": "/elsewhere"} if status == 302 else {}, "x" * (1 << 16), endless=True)
    ]
    problem = place.problem(source=source)
    assert "404" in problem.what or "there is no model" in problem.what or "answered 500" in problem.what
    assert server.behaviour.served_endless < 100 * 2**20  # what the sockets hold, for each time it was asked


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_list_without_end_is_refused_at_once(place: Place, server: Hub, source: str) -> None:
    server.behaviour.refusals = [Refusal("/api/*", 200, {}, "[" * (1 << 20), endless=True)]
    patient = replace(QUICK, read_seconds=30)  # 64 MB through a busy machine
    assert "longer than 64 MB" in place.problem(source=source, patience=patient).what
    assert len(server.behaviour.requests) == 1


def test_an_answer_that_drips_is_given_up(place: Place, server: Hub) -> None:
    server.behaviour.refusals = [Refusal("/api/*", 200, {}, "[", endless=True, pause_seconds=0.2)]
    started = time.monotonic()
    place.problem()
    assert time.monotonic() - started < 3


def test_a_compressed_answer_is_refused(place: Place, server: Hub) -> None:
    server.behaviour.refusals = [Refusal("/api/*", 200, {"Content-Encoding": "gzip"}, "a bomb")]
    assert "compresses its answers" in place.problem().what


@pytest.mark.parametrize(
    ("location", "what"),
    [
        ("file:///etc/passwd", "not http or https"),
        ("/api/models/again", "in a circle"),
        ("http://[::1", "cannot reach"),
        ("https://hub.invalid:99999/", "cannot reach"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_named(place: Place, server: Hub, location: str, what: str) -> None:
    server.behaviour.refusals = [Refusal("/api/*", 302, {"Location": location})]
    assert what in place.problem().what


WRONG_LISTS = {
    "no JSON": "<html>sign in</html>",
    "no object": "[]",
    "deep": "[" * 100_000,
    "too long": "[" + "0," * 6_000_000 + "0]",
    "files are no list": '{"siblings": {"a": 1}, "Data": {"Files": {"a": 1}}}',
    "no name": '{"siblings": [{}], "Data": {"Files": [{}]}}',
    "a number for a name": '{"siblings": [{"rfilename": 5}], "Data": {"Files": [{"Path": 5}]}}',
    "NUL": r'{"siblings": [{"rfilename": "a\u0000.json"}], "Data": {"Files": [{"Path": "a\u0000.json"}]}}',
    "surrogate": r'{"siblings": [{"rfilename": "\ud800.json"}], "Data": {"Files": [{"Path": "\ud800.json"}]}}',
    "escape sequence": r'{"siblings": [{"rfilename": "\u001b[2J"}], "Data": {"Files": [{"Path": "\u001b[2J"}]}}',
    "outside": '{"siblings": [{"rfilename": "../a.json"}], "Data": {"Files": [{"Path": "/etc/a.json"}]}}',
    "size": '{"siblings": [{"rfilename": "a", "size": -1}], "Data": {"Files": [{"Path": "a", "Size": 1e999}]}}',
    "hash": '{"siblings": [{"rfilename": "a", "blobId": "x"}], "Data": {"Files": [{"Path": "a", "Sha256": [1]}]}}',
    "twice": '{"siblings": [{"rfilename": "a"},{"rfilename": "a"}], "Data": {"Files": [{"Path": "b"}, {"Path": "b"}]}}',
    "commit": r'{"sha": "\u001b", "Data": {"LatestCommitter": {"Id": "a b"}}}',
}


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("case", WRONG_LISTS)
def test_a_malformed_list_is_one_sentence_at_once(place: Place, server: Hub, source: str, case: str) -> None:
    server.behaviour.refusals = [Refusal("/api/*", 200, {}, WRONG_LISTS[case])]
    problem = place.problem(source=source)
    assert "its list of files cannot be read: " in problem.what
    assert "\x1b" not in problem.what
    assert len(server.behaviour.requests) == 1


def mutated(chance: random.Random, value: Any) -> Any:
    """A value with something in it replaced by something of another kind."""
    strange: list[Any] = [
        None,
        True,
        -1,
        1e308,
        10**400,
        "",
        "../x",
        "a\0b",
        "\udcff",
        [],
        {},
        [[]],
        {"": None},
        "x" * 5000,
    ]
    if isinstance(value, (dict, list)) and value and chance.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        changed, key = value.copy(), chance.choice(list(keys))
        changed[key] = mutated(chance, value[key])
        return changed
    return chance.choice(strange)


def test_whatever_a_hub_answers_is_a_list_or_a_failure(server: Hub) -> None:
    import urllib.request

    chance, kinds = random.Random(12), set()
    for url in (f"/api/models/{MODEL}/revision/main?blobs=true", f"/api/v1/models/{MODEL}/repo/files?Revision=master"):
        with urllib.request.urlopen(server.url + url) as response:
            whole = response.read()
        for _ in range(500):
            body = bytearray(json.dumps(mutated(chance, json.loads(whole))).encode())
            if chance.random() < 0.3:
                body[chance.randrange(len(body))] = chance.randrange(256)
            try:
                _, files = read_list(bytes(body[: chance.randrange(len(body))] if chance.random() < 0.1 else body))
            except HubFailure as failure:
                kinds.add(failure.kind)
                continue
            kinds.add("read")
            assert all(file.size >= 0 and not {"..", ""} & set(file.path.split("/")) for file in files)
    assert {"read", "malformed"} <= kinds <= {"read", "malformed", "busy", "model", "revision"}


def test_no_network_names_what_is_on_disk(place: Place) -> None:
    place.fetch()
    place.environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "MODELSCOPE_ENDPOINT": "http://127.0.0.1:9"}
    for source in ("auto", "huggingface"):
        with pytest.raises(ProblemsFound) as found:
            place.fetch(model="Org/Other", source=source)
        (problem,) = found.value.problems
        assert "cannot reach" in problem.what
        assert "Org--Tiny-0.5B" in problem.fix
        assert problem.exit_code == 3


def test_a_dead_proxy_is_told_apart_from_a_dead_hub(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:pass@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    place.environment |= {"HF_ENDPOINT": "http://hub.invalid"}
    problem = place.problem()
    assert "proxy" in problem.what
    assert "hub.invalid" in problem.fix
    assert "pass" not in problem.what + problem.fix


def make_certificate(folder: Path) -> Path:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*command, "-keyout", key, "-out", certificate, "-days", "2", *subject], check=True, capture_output=True
    )
    both = folder / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())
    return both


def test_a_certificate_is_checked_against_the_organisations_own_authority(
    place: Place, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = make_certificate(place.root)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    with Hub(served, certificate=both) as secure:
        place.environment |= secure.environment
        problem = place.problem()
        assert "certificate" in problem.what
        assert "REQUESTS_CA_BUNDLE" in problem.fix
        place.environment["SSL_CERT_FILE"] = str(place.root / "certificate.pem")
        assert place.fetch().fetched_bytes


def test_too_little_room_is_said_before_the_first_byte(place: Place, server: Hub) -> None:
    files = server.listing(MODEL)
    files["merges.txt"] = dataclasses.replace(files["merges.txt"], size=10**18)
    problem = place.problem()
    assert "needs 10000000000" in problem.what
    assert problem.kind == "machine"
    assert server.behaviour.served_weights == 0


def test_a_folder_that_cannot_be_written_to_is_named(place: Place) -> None:
    problem = place.problem(to=Path("/sys/kernel/models"))
    assert "/sys/kernel" in problem.what
    assert "--to" in problem.fix
    assert problem.exit_code == 3


def test_a_disk_that_fills_up_on_the_way_is_a_problem_and_not_a_trace(place: Place) -> None:
    small = place.root / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        filler = small / "filler"

        def fill(progress: hub.Progress) -> None:
            if not filler.exists():
                with filler.open("wb", buffering=0) as handle, pytest.raises(OSError):
                    while True:
                        handle.write(bytes(1 << 16))

        with pytest.raises(ProblemsFound) as found:
            hub.fetch(replace(place.request, to=small), place.environment, fill)
        (problem,) = found.value.problems
        assert "full" in problem.what
        assert problem.exit_code == 3
        filler.unlink()
        assert hub.verify(place.fetch(to=small).folder) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_repository_without_a_model_is_said_to_be_none(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty" / MODEL).mkdir(parents=True)
    (tmp_path / "empty" / MODEL / "README.md").write_text("nothing")
    with Hub(tmp_path / "empty") as server:
        place.environment |= server.environment
        assert "no files to train on" in place.problem().what


# ---- which hub


def test_the_first_hub_that_has_the_model_is_chosen_and_the_reason_given(place: Place, server: Hub) -> None:
    request = replace(place.request, source="auto")
    assert hub.choose_source(request, place.environment).hub.source == "huggingface"
    swapped = place.environment | {"USE_MODELSCOPE_HUB": "1"}
    assert hub.choose_source(request, swapped).hub.source == "modelscope"
    server.behaviour.refusals = [Refusal("/api/models/*", 404, {"X-Error-Code": "RepoNotFound"})]
    choice = hub.choose_source(request, place.environment)
    assert choice.hub.source == "modelscope"
    assert "Hugging Face" in choice.reason
    assert "answered 404" in choice.reason


def test_a_dead_or_silent_hub_does_not_hold_up_the_other(place: Place, server: Hub) -> None:
    with Hub(server.folder, Behaviour()) as silent:
        silent.server.shutdown()  # accepts connections and never answers
        environment = place.environment | {"HF_ENDPOINT": silent.url}
        request = replace(place.request, source="auto", patience=replace(QUICK, probe_seconds=0.5))
        started = time.monotonic()
        choice = hub.choose_source(request, environment)
        assert time.monotonic() - started < 2
        assert choice.hub.source == "modelscope"
        threading.Thread(target=silent.server.serve_forever, daemon=True).start()


def test_each_hub_gets_the_id_that_it_knows_the_model_by(place: Place, tmp_path: Path) -> None:
    here, there = "meta-llama/Meta-Llama-3-8B-Instruct", "LLM-Research/Meta-Llama-3-8B-Instruct"
    write_model(tmp_path / "served" / there)
    with Hub(tmp_path / "served") as server:
        place.environment |= server.environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
        for name in (here, there, "Llama-3-8B-Instruct"):
            done = place.fetch(model=name, source="auto")
            assert (done.manifest.source, done.manifest.model) == ("modelscope", there)
            assert done.folder.name == (there if name == there else here).replace("/", "--")
        assert place.fetch(model=here, source="auto").fetched_bytes == 0


# ---- what is on disk


def test_offline_sends_no_packet(place: Place, server: Hub) -> None:
    place.fetch()
    server.behaviour.requests.clear()
    place.environment["HF_HUB_OFFLINE"] = "1"
    assert place.fetch().fetched_bytes == 0
    assert hub.verify(place.request.folder) == []
    with pytest.raises(ProblemsFound) as found:
        place.fetch(model="Org/Other")
    assert "not on this disk" in found.value.problems[0].what
    assert "Org--Tiny-0.5B" in found.value.problems[0].fix
    assert server.behaviour.requests == []


def fill_huggingface_cache(place: Place, server: Hub) -> None:
    from huggingface_hub import snapshot_download

    cache = place.root / "home" / ".cache" / "huggingface" / "hub"
    snapshot_download(MODEL, cache_dir=cache, endpoint=server.url, token=False)


def fill_modelscope_cache(place: Place, server: Hub) -> None:
    from modelscope_hub.compat.snapshot_download import snapshot_download

    cache = place.root / "home" / ".cache" / "modelscope"
    snapshot_download(MODEL, cache_dir=str(cache), endpoint=server.url)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("fill", [fill_huggingface_cache, fill_modelscope_cache])
def test_a_model_in_a_hubs_cache_is_linked(
    place: Place, server: Hub, fill: Callable[[Place, Hub], None], offline: bool
) -> None:
    fill(place, server)
    server.behaviour.requests.clear()
    server.behaviour.served.clear()
    done = place.fetch(offline=offline, source="auto")
    assert server.behaviour.served_weights == 0
    assert done.fetched_bytes == 0
    assert bool(server.behaviour.requests) != offline
    assert all((done.folder / file.path).is_symlink() for file in done.manifest.files)
    assert hub.verify(done.folder) == []
    places = {entry.place: entry for entry in hub.installed(place.models, place.environment)}
    assert places["models"].complete
    assert len(places) == 2
    assert all(entry.model == MODEL and entry.complete for entry in places.values())


def test_a_damaged_cache_is_neither_trusted_nor_changed(place: Place, server: Hub) -> None:
    fill_huggingface_cache(place, server)
    name = "model-00002-of-00003.safetensors"
    (blob,) = (path.resolve() for path in (place.root / "home").rglob(f"snapshots/*/{name}"))
    blob.write_bytes(bytes(blob.stat().st_size))
    done = place.fetch()
    assert hub.verify(done.folder) == []
    assert not (done.folder / name).is_symlink()
    assert not any(blob.read_bytes())


def test_a_half_fetched_cache_is_not_taken_for_a_model(place: Place, server: Hub) -> None:
    fill_huggingface_cache(place, server)
    next((place.root / "home").rglob("snapshots/*/model-00002-of-00003.safetensors")).unlink()
    assert "not on this disk" in place.problem(offline=True).what


@pytest.mark.parametrize("damage", ["changed", "short", "gone"])
def test_verify_finds_damage_offline_and_the_next_fetch_repairs_it(place: Place, server: Hub, damage: str) -> None:
    folder = place.fetch().folder
    shard = folder / "model-00002-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(content if damage == "changed" else content[:-1])
    server.behaviour.requests.clear()
    (problem,) = hub.verify(folder)
    assert shard.name in problem.what
    assert MODEL in problem.fix
    assert problem.exit_code == 3
    assert server.behaviour.requests == []
    assert not hub.is_whole(folder)
    server.behaviour.served.clear()
    place.fetch()
    assert hub.verify(folder) == []
    assert set(+server.behaviour.served) == {shard.name}


def test_verify_says_when_there_is_nothing_to_verify_against(place: Place) -> None:
    for folder in (place.models / "none", place.root):
        (problem,) = hub.verify(folder)
        assert problem.exit_code == 3


def test_models_on_disk_are_listed_with_origin_and_size(place: Place) -> None:
    done = place.fetch()
    own = place.models / "own"
    write_model(own)
    (place.models / "Org--Tiny-0.5B@fp32").mkdir()
    fetched, mine = hub.installed(place.models, place.environment)
    assert fetched.as_json() == {
        "model": MODEL,
        "folder": str(done.folder),
        "place": "models",
        "source": "huggingface",
        "commit": COMMIT,
        "size_bytes": done.manifest.size_bytes,
        "verified": done.manifest.verified,
        "complete": True,
    }
    assert (mine.model, mine.source, mine.complete) == ("own", None, True)


def test_importing_the_module_loads_no_hub_client_and_no_http_library() -> None:
    heavy = {"requests", "huggingface_hub", "modelscope"}
    code = f"import sys, iis_finetune.hub; print(*{heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
