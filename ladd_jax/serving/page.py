"""The gradio page: one-step pictures while a prompt is typed, and all steps after a pause."""

from __future__ import annotations

import asyncio
import dataclasses
import html
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastapi
import gradio
from PIL import Image

from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError
from ladd_jax.serving.engine import Engine, SupersededError
from ladd_jax.serving.fields import conditions_in, fields_of, ready_words
from ladd_jax.serving.painting import canvas_of
from ladd_jax.serving.ready import Ready
from ladd_jax.serving.student import Student, Wish, read_picture

_PAUSE = 0.6
"""Seconds without a keystroke that count as a pause in typing."""

_ONE_ROW = 4
"""Up to how many tall pictures are shown in a single row."""

_PIXELATED = 256
"""Side in pixels below which pictures are enlarged without smoothing."""

_LARGEST_FILE = "64mb"
"""Largest size of an uploaded picture."""

# Keeps the browser from contacting any other host, whatever gradio's files refer to. The editor
# loads its picture and its paint layer from data: and blob: URLs of the page itself.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "connect-src 'self' data: blob: ws: wss:"
)

_FONTS = ["system-ui", "sans-serif"]

# The pictures share the available space, and none is cropped, whatever their number and aspect.
_CSS = """
footer { display: none !important }
#title p { color: var(--body-text-color-subdued) }
#pictures .grid-wrap { overflow: hidden }
#pictures .grid-container { height: 100%; grid-auto-rows: 1fr }
#pictures .gallery-item { min-width: 0; min-height: 0 }
#pictures .thumbnail-item {
  aspect-ratio: auto; width: 100%; height: 100%; border: none; box-shadow: none; background: none;
}
#pictures .thumbnail-item img { width: 100%; height: 100%; object-fit: contain }
#status { min-height: 1.6em }
"""

_SQUARES = "#pictures img { image-rendering: pixelated }"


@dataclasses.dataclass
class _Session:
    """What one browser tab has asked for.

    Attributes:
      inputs: number of its keystrokes, strokes and choices so far; the next one ends a pause.
      wishes: number of its requests to the student so far; the newest supersedes all others.
      whole: the last wish that was made, or is being made, in all steps.
      painted: path of a picture, and the painting last sent for it.
    """

    inputs: int = 0
    wishes: int = 0
    whole: Wish | None = None
    painted: tuple[str | None, bytes | None] = (None, None)

    def painting(self, picture: str | None) -> bytes | None:
        """The painting over a picture; None if the last painting was over another one."""
        return self.painted[1] if self.painted[0] == picture else None


class Page:
    """The page of one student."""

    def __init__(self, student: Student, engine: Engine, ready: Ready):
        """Prepares the page.

        Args:
          student: the student.
          engine: the engine that makes its pictures.
          ready: whether the student is compiled.
        """
        self._student, self._engine, self._ready = student, engine, ready
        self._sessions: dict[str, _Session] = {}
        self._names: tuple[str, ...] = ()
        self._buckets = {self.label(bucket): bucket for bucket in student.trained.buckets}

    def label(self, bucket: Bucket) -> str:
        """The label of a shape on the page."""
        height, width = bucket.image_size(self._student.trained.reduction)
        common = math.gcd(height, width)
        ratio = f"{width // common}:{height // common}"
        return f"{ratio} ({width}x{height})" if len(ratio) < 6 else f"{width}x{height}"

    def _wish(self, session: _Session, values: Sequence[Any]) -> Wish:
        """The wish that the values of the page's fields, in their order, stand for."""
        given = dict(zip(self._names, values, strict=True))
        if given["seed"] is None:
            raise UserError("there is no seed: use a number from 0 on")
        picture = given.get("picture")
        return Wish(
            prompt=given["prompt"],
            bucket=self._buckets[given["aspect"]],
            steps=1,
            seed=given["seed"],
            count=int(given.get("count", 1)),
            guidance=given.get("guidance"),
            image_guidance=given.get("image_guidance"),
            picture=None if picture is None else Path(picture),
            painting=session.painting(picture),
            strength=given.get("strength", 1.0),
            conditions=conditions_in(given),
        )

    def _session(self, request: gradio.Request) -> tuple[str, _Session]:
        name = str(request.session_hash)
        return name, self._sessions.setdefault(name, _Session())

    async def _make(self, name: str, session: _Session, wish: Wish) -> tuple[Any, Any]:
        """New values of gallery and status line: pictures, or an error in the status line.

        Changes nothing if the tab asked for something else before the pictures were begun.
        """
        start = time.perf_counter()
        session.wishes += 1
        number = session.wishes
        try:
            self._ready.check()
            kind, rows = await asyncio.to_thread(self._student.rows_of, wish)
            # The engine only drops superseded requests that already wait in its queue. This one was
            # still being prepared.
            if session.wishes != number:
                raise SupersededError
            made = await asyncio.wrap_future(self._engine.submit(name, kind, rows))
        except SupersededError:
            return gradio.skip(), gradio.skip()
        except UserError as error:
            told = _warning(error) if session.wishes == number else gradio.skip()
            return gradio.skip(), told
        taken = time.perf_counter() - start
        pictures = [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in made]
        steps = len(kind.sigmas) - 1
        seeds = f"seed {wish.seed}"
        if wish.count > 1:
            seeds = f"seeds {wish.seed} to {wish.seed + wish.count - 1}"
        told = f"{steps} step{'s' * (steps > 1)} in {1000 * taken:.0f} ms, {seeds}"
        if rows[0].start is not None:
            told += f", from t = {kind.sigmas[0]:g}"
        columns = math.ceil(math.sqrt(wish.count))
        if kind.bucket.height > kind.bucket.width and wish.count <= _ONE_ROW:
            columns = wish.count
        return gradio.Gallery(value=pictures, columns=columns), told

    async def _first(self, request: gradio.Request, *values: Any) -> tuple[Any, Any]:
        """Makes pictures in one step, unless all steps were requested in the meantime."""
        name, session = self._session(request)
        try:
            wish = self._wish(session, values)
        except UserError as error:
            return gradio.skip(), _warning(error)
        if session.whole == wish or not wish.prompt.strip():
            return gradio.skip(), gradio.skip()
        session.whole = None
        return await self._make(name, session, wish)

    async def _paused(self, request: gradio.Request, *values: Any) -> tuple[Any, Any]:
        """Makes pictures in all steps, once nothing was typed, chosen or painted for a while."""
        _, session = self._session(request)
        session.inputs += 1
        number = session.inputs
        await asyncio.sleep(_PAUSE)
        if session.inputs != number:
            return gradio.skip(), gradio.skip()
        return await self._all(request, *values)

    async def _all(self, request: gradio.Request, *values: Any) -> tuple[Any, Any]:
        """Makes pictures in all steps now, and cancels the request after a pause still running."""
        name, session = self._session(request)
        session.inputs += 1
        try:
            wish = self._wish(session, values)
        except UserError as error:
            return gradio.skip(), _warning(error)
        if not wish.prompt.strip():
            return gradio.skip(), gradio.skip()
        session.whole = wish
        wish = dataclasses.replace(wish, steps=self._student.steps)
        return await self._make(name, session, wish)

    async def _painted(
        self, request: gradio.Request, painting: bytes | None, *values: Any
    ) -> tuple[Any, Any]:
        """Does what `_first` does, after a stroke.

        The painting is kept in the session, so that it need not be sent again with each keystroke.
        """
        _, session = self._session(request)
        # Cancels the pause that began with the stroke before.
        session.inputs += 1
        session.painted = (values[self._names.index("picture")], painting)
        return await self._first(request, *values)

    def _canvas(self, request: gradio.Request, picture: str | None) -> tuple[Any, Any]:
        """New values of the canvas and the status line after another picture was chosen."""
        _, session = self._session(request)
        # Also if the path is the same, since the file may be chosen again, or its paint cleared.
        session.painted = (None, None)
        if picture is None:
            return None, self._state()[0]
        try:
            shown = canvas_of(read_picture(Path(picture)))
        except UserError as error:
            return None, _warning(error)
        return shown, "Paint over the part to fill."

    def _left(self, request: gradio.Request) -> None:
        name = str(request.session_hash)
        if session := self._sessions.pop(name, None):
            # Cancels a pause and a request in preparation, whose pictures nobody would see.
            session.inputs += 1
            session.wishes += 1
        self._engine.drop(name)

    def _state(self) -> tuple[Any, Any]:
        """The status line until all programs are compiled, and the timer that polls for it."""
        state = self._ready.state
        if state["ready"]:
            return ready_words(self._student.trained), gradio.Timer(active=False)
        told = f"Compiling: {state['compiled']} of {state['programs']} programs are ready."
        return told, gradio.Timer(active=True)

    def blocks(self) -> gradio.Blocks:
        """The page."""
        trained = self._student.trained
        with gradio.Blocks(
            title=f"{Path(trained.place).name} · ladd_jax",
            analytics_enabled=False,
            # Pictures are served from files; every 600 s, those older than an hour are deleted.
            delete_cache=(600, 3600),
        ) as blocks:
            fields = fields_of(trained, self._buckets, self._engine.largest)
            prompt, status, gallery = fields.prompt, fields.status, fields.gallery
            self._names, inputs = tuple(fields.inputs), list(fields.inputs.values())
            timer = gradio.Timer(1.0, active=False)
            blocks.load(self._state, None, [status, timer], **_QUIET)
            timer.tick(self._state, None, [status, timer], **_QUIET)
            shown = [gallery, status]
            # gradio's queue would need two requests per keystroke, one to join the queue and one
            # for the picture, and so answer later.
            wishes = [prompt.input, *fields.changes]
            gradio.on(
                wishes,
                self._first,
                inputs,
                shown,
                trigger_mode="always_last",
                queue=False,
                **_QUIET,
            )
            # "multiple": a request for all steps never blocks the next one.
            gradio.on(wishes, self._paused, inputs, shown, trigger_mode="multiple", **_QUIET)
            prompt.submit(self._all, inputs, shown, trigger_mode="multiple", **_QUIET)
            if fields.editor is not None:
                picture, editor = fields.inputs["picture"], fields.editor
                # Clearing the editor removes the picture together with its paint, so the picture is
                # put back on the canvas.
                gradio.on(
                    [picture.change, editor.clear],
                    self._canvas,
                    picture,
                    [editor, status],
                    **_QUIET,
                )
                # "always_last": of the strokes made while a picture is in work, only the last is
                # handled after it. Unlike after a keystroke, the pause begins after the one-step
                # picture instead of beside it, because all steps need the painting that `_painted`
                # has kept.
                editor.change(
                    self._painted,
                    [editor, *inputs],
                    shown,
                    trigger_mode="always_last",
                    **_QUIET,
                ).then(self._paused, inputs, shown, trigger_mode="multiple", **_QUIET)
            blocks.unload(self._left)
        return blocks

    def app(self) -> fastapi.FastAPI:
        """The server's application: the page, and `/ready`."""
        app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

        @app.get("/ready")
        def ready() -> Any:
            state = self._ready.state
            return fastapi.responses.JSONResponse(state, 200 if state["ready"] else 503)

        @app.middleware("http")
        async def alone(request: fastapi.Request, call_next: Any) -> Any:
            response = await call_next(request)
            response.headers["Content-Security-Policy"] = _POLICY
            return response

        sizes = [b.image_size(self._student.trained.reduction) for b in self._buckets.values()]
        squares = _SQUARES if max(map(max, sizes)) < _PIXELATED else ""
        blocks = self.blocks()
        # Until blocks are launched, gradio treats any file of this machine that a request names as
        # an upload. Mounted blocks are never launched, so this must be set by hand.
        blocks.has_launched = True
        return gradio.mount_gradio_app(
            app,
            blocks,
            path="",
            footer_links=[],
            ssr_mode=False,
            max_file_size=_LARGEST_FILE,
            mcp_server=False,
            enable_monitoring=False,
            css=_CSS + squares,
            theme=gradio.themes.Default(
                primary_hue="blue",
                neutral_hue="slate",
                font=_FONTS,
                font_mono=["ui-monospace", "monospace"],
            ),
        )


def _warning(error: UserError) -> str:
    """An error's message, as the page shows it."""
    return html.escape(f"⚠ {error}", quote=False)


_QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
}
"""Options of events that fire with every keystroke: nothing flickers, and none waits for others."""
