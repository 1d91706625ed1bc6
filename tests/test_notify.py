"""What is told of a run, and how it is delivered; whole runs that tell are in test_resume."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iis_finetune import notify, process
from iis_finetune.notify import Notice

NOTICE = Notice("0001-tiny", "failed", "the disk is full", step=3, total_steps=9, host="here", time=1.0)


class Listener(http.server.BaseHTTPRequestHandler):
    bodies: list[dict[str, Any]] = []  # noqa: RUF012 - emptied by the fixture
    answer = 200

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.answer)
        self.end_headers()

    def log_message(self, *_words: Any) -> None:
        """Quiet."""


@pytest.fixture
def address() -> Iterator[str]:
    Listener.bodies.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a-secret"
        server.shutdown()


def test_a_notice_has_a_line_for_people_under_the_key_that_chat_services_read() -> None:
    told = json.loads(NOTICE.as_json())
    assert told["text"] == "0001-tiny on here: failed at step 3 of 9: the disk is full"
    assert (told["run"], told["event"], told["step"]) == ("0001-tiny", "failed", 3)


def test_a_webhook_is_given_the_notice(address: str) -> None:
    assert notify.deliver("env:HOOK", NOTICE.as_json(), {"HOOK": address}) is None
    assert [body["event"] for body in Listener.bodies] == ["failed"]


def test_a_webhook_that_refuses_is_told_of_without_its_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Listener, "answer", 403)
    wrong = notify.deliver("env:HOOK", NOTICE.as_json(), {"HOOK": address})
    assert wrong is not None and "did not take it: Forbidden" in wrong and "a-secret" not in wrong


@pytest.mark.parametrize("value", ["", "ftp://somewhere", "file:///etc/passwd"])
def test_only_http_addresses_are_called(value: str) -> None:
    assert notify.deliver("env:HOOK", "{}", {"HOOK": value}) == "HOOK holds no http(s) address"


def test_a_command_gets_the_notice_as_its_last_word(tmp_path: Path) -> None:
    script = tmp_path / "tell me.py"
    script.write_text(f"import sys, pathlib\npathlib.Path({str(tmp_path / 'heard')!r}).write_text(repr(sys.argv[1:]))")
    assert notify.deliver(f"{sys.executable} '{script}' loud", "{}", {}) is None
    assert (tmp_path / "heard").read_text() == "['loud', '{}']"


def test_a_command_that_fails_or_is_not_there_is_told_of() -> None:
    failing = f"{sys.executable} -c 'import sys; sys.exit(\"no voice\")'"
    assert str(notify.deliver(failing, "{}", {})).endswith("ended with 1: no voice")
    assert notify.deliver("no-such-program", "{}", {}) == "there is no program 'no-such-program'"


def test_sending_does_not_wait_and_leaves_what_went_wrong_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = notify.send("env:HOOK", NOTICE, {}, log)
    assert process.ended(child, 60) == 1
    assert "notice not delivered: HOOK holds no http(s) address" in log.read_text()
