"""Server of the explorer on a local address, with a model behind it.

    /TOKEN/              the page
    /TOKEN/explorer.js   its program
    /TOKEN/payload       the first measurements
    /TOKEN/ask/METHOD    questions (`answers.py`), by POST

The server listens on 127.0.0.1 only. TOKEN is random and new at each start; an address without it
is "not found". A request that names another host is refused, which stops a page elsewhere whose
name was pointed at this machine (DNS rebinding). The server reads no files: all parts of the page
are in memory.

One thread answers questions one at a time, so that two tabs can share a model. The thread is a
daemon, so that unfinished work does not delay the end of the server.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import queue
import re
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .._util.progress import visible
from ..errors import DensitometerError, InputError
from .answers import Answers
from .page import SCRIPT, html, policy, script
from .payload import encode

HOST = "127.0.0.1"
_LOCAL = re.compile(rf"(?:{re.escape(HOST)}|localhost)(?::[0-9]{{1,5}})?")
# Largest size of a question.
MOST_BODY_BYTES = 4 * 2**20

_PAGE = html(f'<script type="module" src="{SCRIPT}"></script>', "'self'", connect="'self'")
_HEADERS = {
    # frame-ancestors works in a header only, not in the page
    "Content-Security-Policy": policy("'self'", "'self'") + "; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Worker:
    """One thread that does tasks in the order in which they are submitted."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    async def do(self, task: Callable[[], Any]) -> Any:
        future: Future[Any] = Future()
        self._tasks.put((future, task))
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while True:
            future, task = self._tasks.get()
            # the client has closed the connection
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)


def application(payload: dict[str, Any], answers: Answers, token: str) -> Starlette:
    """Build the web application.

    Args:
        payload: the first measurements that the page shows.
        answers: answers to the page's questions.
        token: secret with which every address must begin.
    """
    worker = Worker()
    first = encode(payload)
    refused = _refusal(404, "not found; give the whole address that `densitometer explore` printed")

    def checked(answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            if not is_local(request.headers.get("host", "")):
                return _refusal(421, f"the host must be {HOST}, got {request.headers.get('host', '')!r}")
            if not hmac.compare_digest(request.path_params["token"].encode(), token.encode()):
                return refused
            response: Response = await answer(request)
            return response

        return endpoint

    async def page(_: Request) -> Response:
        return Response(_PAGE, media_type="text/html", headers=_HEADERS)

    async def program(_: Request) -> Response:
        return Response(script(), media_type="text/javascript", headers=_HEADERS)

    async def data(_: Request) -> Response:
        return Response(first, media_type="application/gzip", headers=_HEADERS)

    async def ask(request: Request) -> Response:
        origin = request.headers.get("origin")
        # the page asks from the address that it was loaded from, which a tunnel may have changed
        if origin is not None and origin != f"http://{request.headers['host']}":
            return _refusal(403, f"questions must come from this server's page, got one from {origin!r}")
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return _refusal(415, "a question must be application/json")
        body = b""
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BODY_BYTES:
                    return _refusal(
                        413, f"the question is too large: more than {MOST_BODY_BYTES // 2**20} MiB"
                    )
        except ClientDisconnect:
            return _refusal(400, "the question was cut short")
        try:
            parameters = json.loads(body)
        except (ValueError, RecursionError):
            return _refusal(400, "the question is not JSON")
        method = request.path_params["method"]
        try:
            answer = await worker.do(lambda: _answer(answers, method, parameters))
        except asyncio.CancelledError:
            return _refusal(
                503, "the server was stopped while this ran; start it again with `densitometer explore`"
            )
        except DensitometerError as error:
            return _refusal(422, str(error))
        except MemoryError:
            return _refusal(500, "there is not enough memory for this; give a shorter text")
        except Exception as error:
            return _refusal(500, f"the answer could not be computed: {type(error).__name__}")
        return Response(answer, media_type="application/json", headers=_HEADERS)

    async def elsewhere(_: Request, __: Exception) -> Response:
        return refused

    async def wrong_method(_: Request, __: Exception) -> Response:
        return _refusal(405, "this address does not accept this method of request")

    return Starlette(
        routes=[
            Route("/{token}/", checked(page), methods=["GET"]),
            Route(f"/{{token}}/{SCRIPT}", checked(program), methods=["GET"]),
            Route("/{token}/payload", checked(data), methods=["GET"]),
            Route("/{token}/ask/{method}", checked(ask), methods=["POST"]),
        ],
        exception_handlers={404: elsewhere, 405: wrong_method},
    )


def bind(port: int = 0) -> socket.socket:
    """Bind a socket to the loopback address.

    Args:
        port: the port; 0 for any free one.

    Raises:
        InputError: the port is out of range, in use, or not allowed.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} is out of range; expected 0 (any that is free) to 65535")
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise InputError(
            f"port {port} on {HOST} cannot be used ({error.strerror or error}); give another, or --port 0 for "
            "any that is free"
        ) from error
    return listening


def serve(
    payload: dict[str, Any], answers: Answers, listening: socket.socket, announce: Callable[[str], Any]
) -> None:
    """Serve the explorer until it is interrupted.

    Args:
        payload: the first measurements that the page shows.
        answers: answers to the page's questions.
        listening: socket from `bind`.
        announce: function that is called with the address before the server starts.
    """
    import uvicorn

    token = secrets.token_urlsafe(18)
    config = uvicorn.Config(
        application(payload, answers, token), log_level="error", access_log=False, server_header=False,
        timeout_graceful_shutdown=1, lifespan="off",
    )  # fmt: skip
    announce(f"http://{HOST}:{listening.getsockname()[1]}/{token}/")
    uvicorn.Server(config).run(sockets=[listening])


def _answer(answers: Answers, method: str, parameters: Any) -> bytes:
    text = json.dumps(
        answers.ask(method, parameters), ensure_ascii=True, separators=(",", ":"), allow_nan=False
    )
    return text.encode("ascii")


def is_local(host: str) -> bool:
    """Whether a Host header names this machine's loopback address, with or without a port."""
    return _LOCAL.fullmatch(host) is not None


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": visible(message)}, status_code=status, headers=_HEADERS)
