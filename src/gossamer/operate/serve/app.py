"""The server's doors: who is let in, how a request is read and given to the model's thread, how its answer goes out."""

import asyncio
import hmac
import time
import traceback
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from gossamer.engine.decode import Event
from gossamer.engine.stepping import context_of
from gossamer.operate.serve.metrics import Metrics, usage_of
from gossamer.operate.serve.protocol import (
    Answer,
    ApiError,
    ChatCompletion,
    Completion,
    TextCompletion,
    api_error,
    parse,
    server_sent,
)
from gossamer.operate.serve.reading import Reader
from gossamer.operate.serve.worker import Job, Said, Worker
from gossamer.operate.writer import Writer

CLIENT_GONE = 499
"""The status that a request is counted with whose client left; nobody gets it."""

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How much is taken on: `batch` requests at once, `queue` more that wait, each with a body of at most `body_bytes`
    that comes within `body_s`, and at most `images`. `prefix_bytes` bound what is
    kept of sequences that have left. `keys` are the API keys, one of which a client must have; none:
    everybody is let in. `hosts` are the names that a browser may know this server by; none: any."""

    batch: int = 8
    queue: int = 64
    body_bytes: int = 16 * 2**20
    body_s: float = 30.0
    images: int = 8
    prefix_bytes: int = 0
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


@dataclass
class Visit:
    """A request as it is counted: when it came, its job once that writes, and how it ended."""

    arrived: float = field(default_factory=time.monotonic)
    job: Job | None = None
    status: int = CLIENT_GONE


class Service:
    """A model being served. `open` counts the requests that are inside; once `draining`, no more are let in."""

    def __init__(self, writer: Writer, name: str, limits: Limits) -> None:
        opened = writer.opened
        self.name, self.limits = name, limits
        self.open, self.draining = 0, False
        self.worker = Worker(writer, limits.batch, self._deliver, limits.prefix_bytes)
        self.metrics = Metrics(self.worker)
        self._writer = writer
        self._reader = Reader(opened, limits.images)
        self._reading = ThreadPoolExecutor(1, "reader")
        self._inboxes: dict[Job, asyncio.Queue[Said]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._since = int(time.time())

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """The model's thread works inside."""
        self._loop = asyncio.get_running_loop()
        self.worker.start()
        yield
        self.worker.stop()
        self._reading.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.worker.join)

    def models(self) -> dict[str, Any]:
        """What is served."""
        opened, prefixes = self._writer.opened, self.worker.prefixes
        can = {
            "family": opened.hierarchy.family,
            "fingerprint": opened.fingerprint,
            "engine": self._writer.engine,
            "kv": None if self._writer.keeper is None else self._writer.keeper.described,
            "prefix_cache": {"off": prefixes.off} if prefixes.off else {"bytes": prefixes.limit},
            "context_tokens": context_of(opened.model),
            "images": getattr(opened.processor, "image_processor", None) is not None,
            "conversation": any(getattr(each, "chat_template", None) for each in (opened.processor, opened.tokenizer)),
        }
        card = {"id": self.name, "object": "model", "created": self._since, "owned_by": "gossamer", "gossamer": can}
        return {"object": "list", "data": [card]}

    @contextmanager
    def inside(self) -> Iterator[None]:
        """A place for one request. Raises `ApiError` 503 while stopping, 429 when all places are taken."""
        if self.draining:
            raise ApiError(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"})
        if self.open >= self.limits.batch + self.limits.queue:
            raise ApiError(429, "too many requests wait: try again", code="queue_full", headers={"Retry-After": "1"})
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    @contextmanager
    def visit(self) -> Iterator["Visit"]:
        """One request, from its first byte to its last, counted at the end."""
        visit = Visit()
        try:
            yield visit
        finally:
            self.metrics.ended(visit.status, visit.job)

    async def read(self, body: Completion, arrived: float) -> Job:
        """The job that a body asks for."""
        request = await asyncio.get_running_loop().run_in_executor(self._reading, self._reader.read, body)
        return Job(request, arrived)

    @contextmanager
    def work(self, job: Job) -> Iterator["asyncio.Queue[Said]"]:
        """Has a job done; what comes of it comes here. Leaving early cancels it."""
        inbox = self._inboxes[job] = asyncio.Queue()
        self.worker.submit(job)
        try:
            yield inbox
        finally:
            del self._inboxes[job]
            self.worker.cancel(job)

    def _deliver(self, said: Sequence[tuple[Job, Said]]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._sort, said)

    def _sort(self, said: Sequence[tuple[Job, Said]]) -> None:
        for job, each in said:
            if job in self._inboxes:
                self._inboxes[job].put_nowait(each)


def build_app(service: Service) -> FastAPI:
    """The routes of a service."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=service.running)
    if service.limits.hosts:  # a page from elsewhere cannot reach a server on this machine under a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(service.limits.hosts), www_redirect=False)

    @app.exception_handler(ApiError)
    async def _(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        said = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(said.body, error.status_code, error.headers)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answer(service, request, ChatCompletion)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _answer(service, request, TextCompletion)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        _check_key(request, service.limits.keys)
        return JSONResponse(service.models())

    @app.get("/health")
    async def health() -> Response:
        well = service.worker.is_alive() and not service.draining
        return JSONResponse({"status": "ok" if well else "stopping"}, 200 if well else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(files(__package__).joinpath("chat.html").read_text("utf-8"), headers=_PAGE_HEADERS)

    return app


_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


async def _answer(service: Service, request: Request, kind: type[Completion]) -> Response:
    with ExitStack() as held:
        visit = held.enter_context(service.visit())
        try:
            _check_key(request, service.limits.keys)
            held.enter_context(service.inside())
            body = parse(kind, await _body(request, service.limits))
            if body.model != service.name:
                message = f"the model {body.model!r} is not served here: {service.name!r} is"
                raise ApiError(404, message, param="model", code="model_not_found")
            job = await _while_there(request, service.read(body, visit.arrived))
            inbox = held.enter_context(service.work(job))
            first = await _while_there(request, _event(inbox))
            visit.job = job
            if body.stream:
                return _Stream(_pieces(Answer(body), visit, job, first, inbox), held.pop_all())
            events = await _while_there(request, _rest(inbox, first))
        except _ClientLeftError:
            return Response(status_code=CLIENT_GONE)
        except Exception as error:
            said = api_error(error)
            visit.status = said.status
            if said.status == 500:
                traceback.print_exception(error)
            raise said from error
        visit.status = 200
        text = "".join(event.text for event in events)
        return JSONResponse(Answer(body).whole(text, events[-1].finished or "length", usage_of(job)))


async def _pieces(
    answer: Answer, visit: Visit, job: Job, event: Event, inbox: "asyncio.Queue[Said]"
) -> AsyncIterator[bytes]:
    """The answer as it comes: whatever has come by now goes out together, as each sending costs more than it holds."""
    ready = [answer.first()]
    try:
        while event.finished is None:
            if event.text:
                ready.append(answer.piece(event.text, None))
            if inbox.empty() and any(ready):
                yield b"".join(ready)
                ready = []
            event = await _event(inbox)
    except Exception as error:
        said = api_error(error)
        visit.status = said.status
        traceback.print_exception(error)
        yield b"".join([*ready, server_sent(said.body)])
        return
    visit.status = 200
    yield b"".join([*ready, answer.piece(event.text, event.finished), answer.last(usage_of(job))])


class _Stream(StreamingResponse):
    """Server-sent events. What the request holds is given up at their end, however it comes."""

    def __init__(self, pieces: AsyncIterator[bytes], held: ExitStack) -> None:
        super().__init__(pieces, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._held = held

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


async def _event(inbox: "asyncio.Queue[Said]") -> Event:
    said = await inbox.get()
    if isinstance(said, Exception):
        raise said
    return said


async def _rest(inbox: "asyncio.Queue[Said]", first: Event) -> list[Event]:
    events = [first]
    while events[-1].finished is None:
        events.append(await _event(inbox))
    return events


class _ClientLeftError(Exception):
    """The client has closed its connection."""


async def _while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Raises `_ClientLeftError`, and gives it up, if the client leaves before."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(work), asyncio.create_task(leaves())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise _ClientLeftError
    finally:
        for task in tasks:
            task.cancel()


def _check_key(request: Request, keys: Sequence[str]) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = ""
    right = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]  # all: none is told by its time
    if keys and not any(right):
        raise ApiError(401, "an API key is needed: Authorization: Bearer KEY", code="invalid_api_key")


async def _body(request: Request, limits: Limits) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # any page may send a browser's other kinds here, but not this one
        raise ApiError(415, f"the content type {kind!r} is not read: send application/json")
    parts: list[bytes] = []
    size, most = 0, limits.body_bytes
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                size += len(part)
                parts = [*parts, part] if size <= most else []
                if size > _DRAINED * most:
                    break
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {limits.body_s:g} seconds") from None
    except ClientDisconnect:
        raise _ClientLeftError from None
    if size > most:
        raise ApiError(413, f"the body is too large: {most} bytes are accepted", code="too_large")
    return b"".join(parts)


_DRAINED = 8
"""A body up to so many times too large is received and dropped: many clients read no answer before they have sent."""
