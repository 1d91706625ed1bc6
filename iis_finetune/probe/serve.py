"""LLaMA-Factory's own server, closed to web pages: its application lets every origin and every Host in.

Usage: python -m iis_finetune.probe.serve arguments.yaml

API_HOST, API_PORT, API_KEY, API_MODEL_NAME as LLaMA-Factory reads them (api/app.py); IIS_ALLOW_ORIGIN: web
pages that may ask, separated by commas. The port is taken before the model is loaded; an exit code that is an `errno`
says why it could not be. Prints one line when it answers.
"""

import contextlib
import errno
import os
import re
import socket
import sys
from collections.abc import Callable
from typing import Any

from .several import ADAPTERS, application

ORIGINS = tuple(filter(None, os.environ.get("IIS_ALLOW_ORIGIN", "").split(",")))
OURS = ("localhost", "127.0.0.1", "[::1]")
PORT = re.compile(r":\d+$")


def listening(host: str, port: int) -> socket.socket:
    """A socket of our own at once: a second server learns in a moment, not after loading, that it comes too late."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except socket.gaierror:
        sys.exit(errno.EADDRNOTAVAIL)
    except OSError as error:
        sys.exit(error.errno)


def refusal(headers: dict[bytes, bytes], hosts: tuple[str, ...] | None) -> str | None:
    """Why a request is not answered; `hosts` are the names this server goes by, None for any (there is a key)."""
    host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin", b"").decode("latin-1")
    if hosts is not None and PORT.sub("", host).lower() not in hosts:
        return "without a key this server answers under its own address alone"
    own = origin.partition("://")[2] == host
    if origin and not own and origin not in ORIGINS and "*" not in ORIGINS:
        return "web pages may not ask this server: start it with --allow-origin"
    return None


def closed(app: Any, hosts: tuple[str, ...] | None) -> Callable[..., Any]:
    """The application behind these refusals; CORS only for the origins that were named."""
    from starlette.middleware.cors import CORSMiddleware
    from starlette.responses import PlainTextResponse

    app.user_middleware = [each for each in app.user_middleware if each.cls is not CORSMiddleware]
    if ORIGINS:
        app.add_middleware(CORSMiddleware, allow_origins=ORIGINS, allow_methods=["*"], allow_headers=["*"])

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        why = refusal(dict(scope["headers"]), hosts) if scope["type"] == "http" else None
        await (PlainTextResponse(why + "\n", 403) if why else app)(scope, receive, send)

    return answer


def serve(host: str, port: int) -> None:
    taken = listening(host, port)
    import uvicorn
    from llamafactory.api.app import create_app
    from llamafactory.chat import ChatModel

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.started:
                return
            name = f"[{host}]" if ":" in host else host
            sys.stdout.write(f"ready: {os.environ['API_MODEL_NAME']} at http://{name}:{port}/v1 (Ctrl-C ends it)\n")
            sys.stdout.flush()

    hosts = None if os.environ.get("API_KEY") else (*OURS, f"[{host}]" if ":" in host else host.lower())
    config = uvicorn.Config(closed(application() if ADAPTERS else create_app(ChatModel()), hosts), log_level="warning")
    Server(config).run([taken])


if __name__ == "__main__":
    address = os.environ["API_HOST"].strip("[]"), int(os.environ["API_PORT"])
    with contextlib.suppress(KeyboardInterrupt):
        serve(*address)
    os._exit(0)  # an answer under way is a thread that would go on to its end
