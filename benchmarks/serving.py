"""`python -m benchmarks.serving --checkpoint=DIR [--json=FILE]`: time from a key to its picture.

A headless Chromium types prompts into the page of `ladd_jax.serve`, which runs in this process. For
each key it measures the time until a new picture has been drawn, and for Enter the time until the
picture in all steps has. Then clients without a page send one request after another to the engine,
each for a picture with its own prompt and seed, in one step and in all.

Needs Chromium. The result has the machine's load average before and after, which shows whether
other programs were running.
"""

import importlib.metadata
import logging
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import uvicorn
from absl import app, flags

from benchmarks.browser import Browser, find_browser
from benchmarks.result_files import write_result
from ladd_jax.models.base import parameter_count
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.serving.engine import Engine
from ladd_jax.serving.page import Page
from ladd_jax.serving.ready import Ready
from ladd_jax.serving.student import Student, Wish
from ladd_jax.stages.sample import choose_bucket
from ladd_jax.stages.trained import open_trained

_CHECKPOINT = flags.DEFINE_string("checkpoint", "runs/digits", "A student, as for ladd_jax.serve.")
_PROMPTS = flags.DEFINE_list("prompts", ["three and seven", "two and five", "nine", "six and one"],
                             "Prompts to type, in turn.")  # fmt: skip
_ASPECT = flags.DEFINE_string("aspect", "2:1", "Shape of the pictures.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often all prompts are typed.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Pictures in the largest batch.")
_CLIENTS = flags.DEFINE_integer("clients", 8, "Clients that ask at the same time.")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Seconds for which clients ask.")
_JSON = flags.DEFINE_string("json", None, "Where to write the result.")

# Times are taken by the page's own clock, from the key's event to the frame with the picture.
_WATCH = """
const picture = () => document.querySelector('#pictures img')
const status = () => document.querySelector('#status').innerText
document.querySelector('#prompt textarea').addEventListener('keydown', () => {
  const start = performance.now(), old = picture()?.src
  const until = (done) => new Promise((resolve) => {
    const look = () => done() ? resolve(performance.now() - start) : requestAnimationFrame(look)
    look()
  })
  window.first = until(() => picture() && picture().src != old && picture().complete)
  window.whole = until(() => status().includes(window.told) && picture().complete)
}, true)
"""


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile of milliseconds, and how many there are."""
    return {
        "median": round(statistics.median(times), 1),
        "p95": round(float(np.percentile(times, 95)), 1),
        "count": len(times),
    }


def typed(address: str, label: str, steps: int) -> dict[str, dict[str, float]]:
    """Types the prompts into the page, and measures milliseconds from keys to pictures."""
    keys, enters, engine = list[float](), list[float](), list[float]()
    with Browser() as page:
        page.open(address)
        page.wait("document.querySelector('#status')?.innerText.includes('Ready')")
        page.value(
            f"[...document.querySelectorAll('#aspect label')].find(l => l.innerText == '{label}')"
            ".querySelector('input').click(), true"
        )
        page.value(_WATCH)
        page.value(f"window.told = '{steps} steps in', true")
        box = "document.querySelector('#prompt textarea')"
        for _round in range(_ROUNDS.value):
            for prompt in _PROMPTS.value:
                page.value(f"{box}.focus(), {box}.select(), true")
                for letter in prompt:
                    page.press(letter)
                    keys.append(page.value("window.first"))
                    told = page.value("document.querySelector('#status').innerText")
                    engine.append(float(told.partition(" in ")[2].partition(" ms")[0]))
                page.press("Enter")
                enters.append(page.value("window.whole"))
                # So that nothing is running when the next prompt's first key is pressed.
                time.sleep(1.0)
    return {
        "key_to_picture": spread(keys),
        "of_which_the_engine": spread(engine),
        "enter_to_picture_in_all_steps": spread(enters),
    }


def asked(student: Student, engine: Engine, clients: int, wish: Wish) -> dict[str, float]:
    """Pictures a second for clients that wait for each picture before they ask for the next."""
    stop, made = time.monotonic() + _SECONDS.value, [list[float]() for _ in range(clients)]

    def ask(number: int) -> None:
        turn = 0
        while time.monotonic() < stop:
            start = time.perf_counter()
            prompt = _PROMPTS.value[(number + turn) % len(_PROMPTS.value)]
            own = Wish(prompt, wish.bucket, wish.steps, seed=1000 * number + turn)
            engine.submit(f"client {number}", *student.rows_of(own)).result()
            made[number].append(1000 * (time.perf_counter() - start))
            turn += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = [taken for own in made for taken in own]
    rate = len(times) / (time.monotonic() - start)
    return {"pictures_per_second": round(rate, 1), **spread(times)}


def main(_: list[str]) -> None:
    """Measures, prints, writes."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    before = os.getloadavg()[0]
    mesh = make_mesh({"fsdp": -1}, jax.local_devices())
    trained = open_trained(_CHECKPOINT.value, None, None, None, mesh)
    bucket = choose_bucket(_ASPECT.value, trained)
    student = Student(trained, mesh, _BATCH_SIZE.value)
    engine, ready = Engine(student, student.sizes, 4 * _CLIENTS.value), Ready()
    page = Page(student, engine, ready)
    start = time.monotonic()
    student.warm_up(ready.told)
    warm = time.monotonic() - start
    server = uvicorn.Server(uvicorn.Config(page.app(), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    milliseconds = typed(f"http://127.0.0.1:{port}", page.label(bucket), student.steps)
    server.should_exit = True
    thread.join()
    load: dict[str, Any] = {}
    for clients in (1, _CLIENTS.value):
        for steps in (1, student.steps):
            wish = Wish("", bucket, steps)
            name = f"{clients} client{'s' * (clients > 1)}, {steps} step{'s' * (steps > 1)}"
            load[name] = asked(student, engine, clients, wish)
    engine.close()
    browser = subprocess.run(
        [str(find_browser()), "--version"], capture_output=True, text=True, check=True
    )
    height, width = bucket.image_size(trained.reduction)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "gradio", "pillow")}
    result = {
        "setting": {
            "checkpoint": _CHECKPOINT.value, "size": f"{width}x{height}",
            "parameters": parameter_count(trained.family.backbone(trained.architecture)),
            "batch_sizes": student.sizes, "prompts": _PROMPTS.value, "rounds": _ROUNDS.value,
            "device": jax.devices()[0].device_kind, "cores": os.cpu_count(), **versions,
            "browser": browser.stdout.strip(),
            # If it is above 0 before, other programs were running too.
            "load_average": {"before": round(before, 1), "after": round(os.getloadavg()[0], 1)},
        },
        "warm_up_seconds": round(warm, 1),
        # If so, most of the warm-up is reading compiled programs.
        "programs_were_kept": bool(jax.config.jax_compilation_cache_dir),
        "milliseconds_on_the_page": milliseconds,
        "engine_without_page": load,
    }  # fmt: skip
    for name, found in (milliseconds | load).items():
        print(f"{name}: {', '.join(f'{key} {value:g}' for key, value in found.items())}")
    write_result(_JSON.value, result)


if __name__ == "__main__":
    app.run(main)
