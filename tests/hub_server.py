"""A hub on loopback that speaks what huggingface_hub and modelscope ask for, and misbehaves on demand.

As a program, `python tests/hub_server.py FOLDER` serves FOLDER/<org>/<name>/ and prints its address. A data set lies in
FOLDER/datasets/<org>/<name>/.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import ssl
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

import hub_uploads

COMMIT = "c0ffee" + "0" * 34
BLOCK_BYTES = 1 << 20


@dataclass
class Refusal:
    """Answer requests whose path matches `pattern` with a status instead; `times` counts down."""

    pattern: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    times: int = 1_000_000
    endless: bool = False  # the body comes again and again, until nobody reads any more
    pause_seconds: float = 0.0  # between two bodies


@dataclass
class Behaviour:
    """What the hub does wrong, and what it has seen."""

    refusals: list[Refusal] = field(default_factory=list)
    cut_at: list[int] = field(default_factory=list)  # drop the connection when this many weight bytes have gone out
    corrupt: Counter[str] = field(default_factory=Counter)  # file name: how many times to send one wrong byte
    stall_seconds: dict[str, float] = field(default_factory=dict)  # file name: silence after the first block
    size_lie: dict[str, int] = field(default_factory=dict)  # file name: what the answer's length is wrong by
    ignore_ranges: bool = False
    token: str | None = None  # files are given only to who sends it
    gated: bool = False
    bytes_per_second: float = 0.0
    served: Counter[str] = field(default_factory=Counter)
    served_endless: int = 0
    requests: list[str] = field(default_factory=list)
    elsewhere_with_token: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def served_weights(self) -> int:
        return sum(count for name, count in self.served.items() if name.endswith(".safetensors"))


@dataclass(frozen=True)
class Served:
    """One file as a hub lists it."""

    path: str
    file: Path
    size: int
    sha256: str
    git_sha1: str

    @property
    def is_large(self) -> bool:
        return self.path.endswith((".safetensors", ".bin", ".pth", ".gguf"))

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_sha1


class Hub:
    """The server, its models and its behaviour; a context manager."""

    def __init__(self, folder: Path, behaviour: Behaviour | None = None, certificate: Path | None = None):
        self.folder = folder
        self.behaviour = behaviour or Behaviour()
        self.uploads = hub_uploads.Uploads()
        self.listings: dict[str, dict[str, Served]] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self  # type: ignore[attr-defined]
        self.scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
            self.scheme = "https"

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "MODELSCOPE_ENDPOINT": self.url}

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def listing(self, model: str) -> dict[str, Served]:
        if model not in self.listings:
            root = self.folder / model
            files = [path for path in sorted(root.rglob("*")) if path.is_file()]
            self.listings[model] = {file.path: file for file in (describe(root, path) for path in files)}
        return self.listings[model]


def describe(root: Path, path: Path) -> Served:
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as handle:
        while block := handle.read(BLOCK_BYTES):
            sha256.update(block)
            git.update(block)
    return Served(path.relative_to(root).as_posix(), path, size, sha256.hexdigest(), git.hexdigest())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    @property
    def hub(self) -> Hub:
        found: Hub = self.server.hub  # type: ignore[attr-defined]
        return found

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        behaviour, path = self.hub.behaviour, unquote(self.path)
        with behaviour.lock:
            behaviour.requests.append(f"{self.command} {path}")
            meant = [refusal for refusal in behaviour.refusals if fnmatch.fnmatch(path, refusal.pattern)]
            refusal = next((refusal for refusal in meant if refusal.times > 0), None)
            if refusal:
                refusal.times -= 1
        if refusal and refusal.endless:
            self.answer_endlessly(refusal)
        elif refusal:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(refusal.status, refusal.body or "{}", refusal.headers)
        elif self.command in ("POST", "PUT"):
            hub_uploads.receive(self, urlsplit(path).path)
        else:
            self.route(urlsplit(self.path).path)

    def route(self, path: str) -> None:  # noqa: C901 - one case an address
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        match unquote(path).strip("/").split("/"):
            case ["api", "models", org, name, "revision" | "tree" as kind, revision]:
                self.huggingface_list(f"{org}/{name}", revision, tree=kind == "tree")
            case [org, name, "resolve", revision, *rest]:
                self.huggingface_file(f"{org}/{name}", revision, "/".join(rest))
            case ["api", "models", org, name] | ["api", "v1", "models", org, name]:
                hub_uploads.about(self, f"{org}/{name}")
            case ["cdn", org, name, *rest]:
                self.hub.behaviour.elsewhere_with_token += "Authorization" in self.headers or "Cookie" in self.headers
                self.send_file(self.hub.listing(f"{org}/{name}")["/".join(rest)])
            case ["api", "v1", "models", org, name, "repo", "files"]:
                self.modelscope_list(f"{org}/{name}", query)
            case ["api", "v1", "models", org, name, "repo"]:
                self.modelscope_file(f"{org}/{name}", query)
            case ["api", "datasets", org, name, "revision", revision]:
                self.huggingface_list(f"datasets/{org}/{name}", revision, tree=False)
            case ["datasets", org, name, "resolve", revision, *rest]:
                self.huggingface_file(f"datasets/{org}/{name}", revision, "/".join(rest))
            case ["api", "v1", "datasets", org, name, "repo", "tree"]:
                self.modelscope_list(f"datasets/{org}/{name}", query)
            case ["api", "v1", "datasets", org, name, "repo"]:
                self.modelscope_file(f"datasets/{org}/{name}", query)
            case _:
                self.answer(404)

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.behaviour.token}"

    # ---- Hugging Face

    def huggingface_list(self, model: str, revision: str, *, tree: bool) -> None:
        if self.huggingface_refuses(model, revision):
            return
        files = self.hub.listing(model).values()
        if tree:
            entries: Any = [self.huggingface_entry(file, "path") for file in files]
        else:
            with_blobs = "blobs=" in self.path
            siblings = [self.huggingface_entry(file, "rfilename") for file in files]
            entries = {
                "id": model,
                "modelId": model,
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "downloads": 0,
                "siblings": siblings if with_blobs else [{"rfilename": file.path} for file in files],
            }
        self.answer(200, json.dumps(entries))

    def huggingface_entry(self, file: Served, key: str) -> dict[str, Any]:
        entry: dict[str, Any] = {key: file.path, "size": file.size}
        entry |= {"type": "file", "oid": file.git_sha1} if key == "path" else {"blobId": file.git_sha1}
        if file.is_large:
            digest = {"oid": file.sha256} if key == "path" else {"sha256": file.sha256}
            entry["lfs"] = digest | {"size": file.size, "pointerSize": 134}
        return entry

    def huggingface_refuses(self, model: str, revision: str, *, content: bool = False) -> bool:
        """Answer as the hub does; 401 stands for a missing model as well as for a private one."""
        token, sent = self.hub.behaviour.token, self.headers.get("Authorization")
        if sent and token and not self.has_token():
            self.answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        elif not (self.hub.folder / model).is_dir() or (token and not sent and not self.hub.behaviour.gated):
            said = {"X-Error-Code": "RepoNotFound"} if sent else {"X-Error-Message": "Invalid username or password."}
            self.answer(404 if sent else 401, headers=said)
        elif content and self.hub.behaviour.gated and not (token and sent):
            self.answer(403 if sent else 401, headers={"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", COMMIT):
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def huggingface_file(self, model: str, revision: str, path: str) -> None:
        if self.huggingface_refuses(model, revision, content=True):
            return None
        file = self.hub.listing(model).get(path)
        if file is None:
            return self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{file.etag}"'}
        if not file.is_large:
            return self.send_file(file, headers)
        # Large files come from another host, which must not see the token.
        headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        location = f"{self.hub.scheme}://localhost:{self.hub.port}/cdn/{model}/{path}"
        return self.answer(302, headers=headers | {"Location": location})

    # ---- ModelScope

    def modelscope_refuses(self, model: str, revision: str | None) -> bool:
        token, sent = self.hub.behaviour.token, self.headers.get("Authorization")
        if token and sent and not self.has_token():
            self.answer(401, '{"Code": 10010101006, "Message": "token is invalid", "Success": false}')
        elif not (self.hub.folder / model).is_dir() or (token and not sent):
            self.answer(404, '{"Code": 10010205001, "Message": "record not found", "Success": false}')
        elif revision not in ("master", COMMIT):
            self.answer(404, '{"Code": 10010205001, "Message": "revision not found", "Success": false}')
        else:
            return False
        return True

    def modelscope_list(self, model: str, query: dict[str, str]) -> None:
        if self.modelscope_refuses(model, query.get("Revision")):
            return
        files = [
            {
                "Path": file.path,
                "Name": Path(file.path).name,
                "Type": "blob",
                "Size": file.size,
                "Sha256": file.sha256,
                "IsLFS": file.is_large,
                "Revision": COMMIT,
                "CommittedDate": 1_700_000_000,
            }
            for file in self.hub.listing(model).values()
        ]
        self.answer(200, json.dumps({"Code": 200, "Success": True, "Data": {"Files": files, "LatestCommitter": {}}}))

    def modelscope_file(self, model: str, query: dict[str, str]) -> None:
        if self.modelscope_refuses(model, query.get("Revision")):
            return None
        file = self.hub.listing(model).get(query["FilePath"])
        if file is None:
            return self.answer(404, '{"Code": 404, "Message": "file not found", "Success": false}')
        return self.send_file(file)

    # ---- answers

    def answer(self, status: int, body: str = "{}", headers: dict[str, str] | None = None) -> None:
        data = body.encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer_endlessly(self, refusal: Refusal) -> None:
        self.close_connection = True
        self.send_response(refusal.status)
        for name, value in refusal.headers.items():
            self.send_header(name, value)
        self.end_headers()
        while True:
            self.wfile.write(refusal.body.encode())
            self.hub.behaviour.served_endless += len(refusal.body)
            time.sleep(refusal.pause_seconds)

    def send_file(self, file: Served, headers: dict[str, str] | None = None) -> None:
        behaviour, size = self.hub.behaviour, file.size
        start, end = 0, size - 1
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and not behaviour.ignore_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or end), end)
            if start >= size:
                return self.answer(416, headers={"Content-Range": f"bytes */{size}"})
        self.send_response(206 if wanted and not behaviour.ignore_ranges else 200)
        length = end - start + 1 + behaviour.size_lie.get(file.path, 0)
        extra = {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Length": str(length)}
        if wanted and not behaviour.ignore_ranges:
            extra["Content-Range"] = f"bytes {start}-{end}/{size}"
        for name, value in (extra | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.flush()
            self.send_bytes(file, start, end + 1)
        return None

    def send_bytes(self, file: Served, start: int, end: int) -> None:
        behaviour = self.hub.behaviour
        with behaviour.lock:
            corrupt = behaviour.corrupt[file.path] > 0 and start == 0
            behaviour.corrupt[file.path] -= corrupt
        with file.file.open("rb") as handle:
            while start < end:
                sent = self.send_block(file, handle, start, end, corrupt)
                if sent is None:
                    self.close_connection = True
                    return
                start, corrupt = start + sent, False

    def send_block(self, file: Served, source: BinaryIO, start: int, end: int, corrupt: bool) -> int | None:
        """Send at most a block; None when the connection is to be cut."""
        behaviour = self.hub.behaviour
        length = min(int(behaviour.bytes_per_second / 20) or BLOCK_BYTES, end - start)
        with behaviour.lock:
            cut = bool(behaviour.cut_at) and behaviour.served_weights + length >= behaviour.cut_at[0]
            cut = cut and file.is_large
            if cut:
                length = max(1, min(length, behaviour.cut_at.pop(0) - behaviour.served_weights))
            behaviour.served[file.path] += length
        try:
            self.put(source, start, length, corrupt)
        except OSError:  # nobody reads any more: it was not served
            with behaviour.lock:
                behaviour.served[file.path] -= length
            raise
        if file.path in behaviour.stall_seconds:
            time.sleep(behaviour.stall_seconds.pop(file.path))
        if behaviour.bytes_per_second:
            time.sleep(length / behaviour.bytes_per_second)
        return None if cut else length

    def put(self, source: BinaryIO, start: int, length: int, corrupt: bool) -> None:
        if corrupt:
            data = bytearray(os.pread(source.fileno(), length, start))
            data[len(data) // 2] ^= 1
            self.connection.sendall(data)
        elif self.hub.scheme == "https":
            self.connection.sendall(os.pread(source.fileno(), length, start))
        else:
            self.connection.sendfile(source, start, length)


if __name__ == "__main__":
    with Hub(Path(sys.argv[1])) as running:
        sys.stdout.write(f"{running.url}\n")
        sys.stdout.flush()
        threading.Event().wait()
