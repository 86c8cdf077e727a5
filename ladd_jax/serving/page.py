"""The page, by gradio: a picture in one step while a prompt is typed, in all steps after it."""

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
"""Seconds without a key after which typing has paused."""

_ONE_ROW = 4
"""Tall pictures that stand beside each other."""

_PIXELATED = 256
"""Pixels below which pictures are shown with their pixels as squares."""

_LARGEST_FILE = "64mb"
"""Of a picture that is uploaded."""

# The browser asks no other host for anything, whatever gradio's files name. What is painted on and
# the paint are data: and blob: of the page itself, which the editor asks for as if they were files.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "connect-src 'self' data: blob: ws: wss:"
)

_FONTS = ["system-ui", "sans-serif"]

# The pictures share what room there is, each whole, whatever their number and aspect.
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
    """What a browser's tab has asked for.

    Attributes:
      inputs: counts its keys, strokes and choices: a pause ends with the next one.
      wishes: counts what it asked the student for: the newest drops those before.
      whole: the last wish that was made, or is being made, in all steps.
      painted: the file of a picture, and what was last painted over it.
    """

    inputs: int = 0
    wishes: int = 0
    whole: Wish | None = None
    painted: tuple[str | None, bytes | None] = (None, None)

    def painting(self, picture: str | None) -> bytes | None:
        """What is painted over a picture; nothing of what was over another one."""
        return self.painted[1] if self.painted[0] == picture else None


class Page:
    """The page of one student."""

    def __init__(self, student: Student, engine: Engine, ready: Ready):
        """Prepares it.

        Args:
          student: the student.
          engine: makes its pictures.
          ready: whether it is compiled.
        """
        self._student, self._engine, self._ready = student, engine, ready
        self._sessions: dict[str, _Session] = {}
        self._names: tuple[str, ...] = ()
        self._buckets = {self.label(bucket): bucket for bucket in student.trained.buckets}

    def label(self, bucket: Bucket) -> str:
        """The name of a shape on the page."""
        height, width = bucket.image_size(self._student.trained.reduction)
        common = math.gcd(height, width)
        ratio = f"{width // common}:{height // common}"
        return f"{ratio} ({width}x{height})" if len(ratio) < 6 else f"{width}x{height}"

    def _wish(self, session: _Session, values: Sequence[Any]) -> Wish:
        """What the page's fields say, in their order."""
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
        """Pictures, and a line about them; or what is wrong; or nothing, where the tab has asked
        for something else before they were begun."""
        start = time.perf_counter()
        session.wishes += 1
        number = session.wishes
        try:
            self._ready.check()
            kind, rows = await asyncio.to_thread(self._student.rows_of, wish)
            # The engine drops what waits there, and knows nothing of what is still prepared.
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
        """In one step, unless all steps were asked for in the meantime."""
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
        """In all steps, once nothing was typed, chosen or painted for a while."""
        _, session = self._session(request)
        session.inputs += 1
        number = session.inputs
        await asyncio.sleep(_PAUSE)
        if session.inputs != number:
            return gradio.skip(), gradio.skip()
        return await self._all(request, *values)

    async def _all(self, request: gradio.Request, *values: Any) -> tuple[Any, Any]:
        """In all steps; a pause that is not over has nothing to ask for any more."""
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
        """As `_first`, after a stroke; what is painted is kept for what is asked for next, so that
        it is not sent with each key."""
        _, session = self._session(request)
        # Whoever pauses after the stroke before asks for nothing any more.
        session.inputs += 1
        session.painted = (values[self._names.index("picture")], painting)
        return await self._first(request, *values)

    def _canvas(self, request: gradio.Request, picture: str | None) -> tuple[Any, Any]:
        """What is painted on, for another picture, and a line about it."""
        _, session = self._session(request)
        # The same file may be chosen again, or its paint cleared.
        session.painted = (None, None)
        if picture is None:
            return None, self._state()[0]
        try:
            shown = canvas_of(read_picture(Path(picture)))
        except UserError as error:
            return None, _warning(error)
        return shown, "Paint over what is to be filled."

    def _left(self, request: gradio.Request) -> None:
        name = str(request.session_hash)
        if session := self._sessions.pop(name, None):
            # Nobody would see what is still to come after a pause, or is being prepared.
            session.inputs += 1
            session.wishes += 1
        self._engine.drop(name)

    def _state(self) -> tuple[Any, Any]:
        """The line below the prompt until all is compiled, and whether to ask again."""
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
            # Pictures that were shown are files: an hour later they are gone.
            delete_cache=(600, 3600),
        ) as blocks:
            fields = fields_of(trained, self._buckets, self._engine.largest)
            prompt, status, gallery = fields.prompt, fields.status, fields.gallery
            self._names, inputs = tuple(fields.inputs), list(fields.inputs.values())
            timer = gradio.Timer(1.0, active=False)
            blocks.load(self._state, None, [status, timer], **_QUIET)
            timer.tick(self._state, None, [status, timer], **_QUIET)
            shown = [gallery, status]
            # By gradio's queue the server would be asked twice, to wait and for the picture: each
            # key would be answered later.
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
            # What takes all steps never holds back what is asked for next.
            gradio.on(wishes, self._paused, inputs, shown, trigger_mode="multiple", **_QUIET)
            prompt.submit(self._all, inputs, shown, trigger_mode="multiple", **_QUIET)
            if fields.editor is not None:
                picture, editor = fields.inputs["picture"], fields.editor
                # The editor clears the picture together with its paint; it is painted on again.
                gradio.on(
                    [picture.change, editor.clear],
                    self._canvas,
                    picture,
                    [editor, status],
                    **_QUIET,
                )
                # The last stroke of those that are made during one step is asked for after that.
                # The pause is after the step, and not beside it as of a key: all steps are asked
                # for with what is kept of the stroke.
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
        # Until blocks are launched gradio takes any file of this machine that a request names for
        # one that was uploaded, and those that are mounted are never launched.
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
    """What is wrong, as the page shows it."""
    return html.escape(f"⚠ {error}", quote=False)


_QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
}
"""Of events that come with every key: nothing flickers, and none waits for another."""
