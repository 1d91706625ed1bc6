"""The half of the stand-in hub that takes uploads, as huggingface_hub and modelscope send them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hub_server import Handler

BLOCK_BYTES = 1 << 16
LARGE = (".safetensors", ".bin", ".gguf")


@dataclass
class Uploads:
    """What was sent, and what goes wrong with it; `spoil` names files that are kept with one wrong byte."""

    token: str = ""  # who may write; nobody else may
    spoil: set[str] = field(default_factory=set)
    bytes_per_second: float = 0.0
    blobs: dict[str, bytes] = field(default_factory=dict)  # large ones by sha256; they outlast a broken upload
    sent: Counter[str] = field(default_factory=Counter)  # bytes by sha256
    committed: list[list[str]] = field(default_factory=list)  # the files of each commit
    private: dict[str, bool] = field(default_factory=dict)  # what was made, by name


def receive(handler: Handler, path: str) -> None:  # noqa: C901 - one case an address
    """Answer a POST or PUT."""
    body, parts = _body(handler), path.strip("/").split("/")
    if parts[0] == "blobs":
        _store(handler, parts[-1], body)
        return
    if handler.headers.get("Authorization") != f"Bearer {handler.hub.uploads.token}":
        handler.answer(403, '{"Code": 403, "Message": "no permission", "Success": false}')
        return
    sent = json.loads(body) if b"\n" not in body else {}
    match parts:
        case ["api", "repos", "create"]:
            name = f"{sent['organization']}/{sent['name']}"
            _make(handler, name, sent.get("visibility") == "private", ".gitattributes")
        case ["api", "v1", "models"]:
            _make(handler, f"{sent['Path']}/{sent['Name']}", sent["Visibility"] == 1, "README.md")
        case ["api", "validate-yaml"]:
            _validate(handler, sent["content"])
        case ["api", "models", _, _, "preupload", _]:
            modes = [(each["path"], each["path"].endswith(LARGE)) for each in sent["files"]]
            files = [
                {"path": name, "uploadMode": ("regular", "lfs")[big], "shouldIgnore": False} for name, big in modes
            ]
            handler.answer(200, json.dumps({"files": files}))
        case [*_, "info", "lfs", "objects", "batch"]:
            objects = {"objects": [_instruction(handler, each) for each in sent["objects"]]}
            handler.answer(200, json.dumps({**objects, "transfer": "basic", "Code": 200, "Data": objects}))
        case ["api", "models", org, name, "commit", _]:
            lines = [json.loads(line) for line in body.splitlines()]
            _commit(handler, f"{org}/{name}", [line["value"] for line in lines if line["key"] != "header"])
        case ["api", "v1", "repos", "models", org, name, "commit", _]:
            _commit(handler, f"{org}/{name}", [{**each, "oid": each["sha256"]} for each in sent["actions"]])
        case _:
            handler.answer(404)


def about(handler: Handler, repository: str) -> None:
    """What a hub says of a repository."""
    if not (handler.hub.folder / repository).is_dir():
        return handler.answer(404, headers={"X-Error-Code": "RepoNotFound"})
    private = handler.hub.uploads.private.get(repository, False)
    of_modelscope = {
        "Path": repository.partition("/")[0],
        "License": "Apache License 2.0",
        "Visibility": 1 if private else 5,
    }
    of_huggingface = {"id": repository, "private": private, "cardData": {"license": "apache-2.0"}, "siblings": []}
    return handler.answer(200, json.dumps({**of_huggingface, "Code": 200, "Data": of_modelscope}))


def _body(handler: Handler) -> bytes:
    uploads, left, body = handler.hub.uploads, int(handler.headers.get("Content-Length", 0)), bytearray()
    while left and (block := handler.rfile.read(min(left, BLOCK_BYTES))):
        body += block
        left -= len(block)
        if uploads.bytes_per_second and handler.command == "PUT":
            time.sleep(len(block) / uploads.bytes_per_second)
    return bytes(body)


def _store(handler: Handler, oid: str, body: bytes) -> None:
    uploads = handler.hub.uploads
    if hashlib.sha256(body).hexdigest() == oid:  # else it broke off
        uploads.blobs[oid] = body
        uploads.sent[oid] += len(body)
    handler.answer(200, headers={"ETag": '"x"'})


def _instruction(handler: Handler, asked: dict[str, Any]) -> dict[str, Any]:
    """Where a large file is to be sent; nothing where it is here already."""
    here = {"oid": asked["oid"], "size": asked["size"]}
    if asked["oid"] in handler.hub.uploads.blobs:
        return here
    return {**here, "actions": {"upload": {"href": f"{handler.hub.url}/blobs/{asked['oid']}"}}}


def _make(handler: Handler, repository: str, private: bool, first: str) -> None:
    folder: Path = handler.hub.folder / repository
    if folder.exists():
        return handler.answer(409, '{"Code": 409, "Message": "already exists", "Success": false}')
    folder.mkdir(parents=True)
    (folder / first).write_text("made by the hub\n")
    handler.hub.uploads.private[repository] = private
    said = {"url": f"{handler.hub.url}/{repository}", "name": repository, "Code": 200, "Data": {}, "Success": True}
    return handler.answer(200, json.dumps(said))


def _validate(handler: Handler, card: str) -> None:
    """Hugging Face refuses a card whose base model is no model's id."""
    base = re.search(r"^base_model: (.*)$", card, re.MULTILINE)
    if base and not re.fullmatch(r"[\w.-]+/[\w.-]+", base[1]):
        handler.answer(400, json.dumps({"errors": [{"message": f'"base_model" with value "{base[1]}" is not valid'}]}))
    else:
        handler.answer(200, json.dumps({"errors": [], "warnings": []}))


def _commit(handler: Handler, repository: str, files: list[dict[str, Any]]) -> None:
    hub, uploads = handler.hub, handler.hub.uploads
    for each in files:
        content = base64.b64decode(each["content"]) if each.get("content") else uploads.blobs[each["oid"]]
        if each["path"] in uploads.spoil:
            content = content[:-1] + bytes([content[-1] ^ 1])
        target = hub.folder / repository / each["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    hub.listings.pop(repository, None)
    uploads.committed.append([each["path"] for each in files])
    said = {"commitUrl": f"{hub.url}/{repository}/commit/x", "commitOid": "c" * 40, "Code": 200, "Success": True}
    handler.answer(200, json.dumps(said))
