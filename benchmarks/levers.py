"""`python -m benchmarks.levers [--rows=...]`: what single fields do to a step's memory and work.

Compiles, by `ladd_jax.plan`, the distillation step of SD3-Medium at 1024^2 with 64 images for a
slice of 16 v5p: once as `configs/sd3_turbo.py` has it, and once for each change to that. A row has
what a chip holds and needs and what the step computes; the table compares it with the row without
the change. Two rows are steps of other stages.

Writes rows to `benchmarks/results/levers.json` as they finish, and the table to `memory.md` beside
it. Rows that are in the file are not compiled again, since each takes minutes: delete it to start
over.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.result_files import write_result

_RESULTS = Path(__file__).parent / "results"

_ROWS = flags.DEFINE_list(
    "rows", [], "Names of the rows to compile. Default: all that are missing."
)

TOPOLOGY, BATCH, BUCKET = "v5p:2x2x4", 64, "128x128"
MEDIUM, LARGE = "configs/sd3_turbo.py:size=medium", "configs/sd3_turbo.py:size=large"

AS_IS, AS_IS_LARGE = "as configured", "size=large as configured"

# Name: what it is measured against, the config, the changed fields.
ROWS: dict[str, tuple[str, str, dict[str, str]]] = {
    AS_IS: (AS_IS, MEDIUM, {}),
    "remat full": (AS_IS, MEDIUM, {"model.remat": "full"}),
    "remat dots": (AS_IS, MEDIUM, {"model.remat": "dots"}),
    "remat dots_attention": (AS_IS, MEDIUM, {"model.remat": "dots_attention"}),
    "accumulation 4 (heads updated)": (AS_IS, MEDIUM, {"distil.accumulation": "4"}),
    "accumulation 4 (heads from before)": (
        AS_IS, MEDIUM, {"distil.accumulation": "4", "distil.accumulated_heads": "before"},
    ),
    "teacher float32": (AS_IS, MEDIUM, {"model.teacher_dtype": "float32"}),
    "teacher int8": (AS_IS, MEDIUM, {"model.teacher_dtype": "int8"}),
    "moments bfloat16": (
        AS_IS, MEDIUM,
        {
            "distil.optimizer.moment_dtype": "bfloat16",
            "distil.heads_optimizer.moment_dtype": "bfloat16",
        },
    ),
    "heads on blocks 0 to 11": (
        AS_IS, MEDIUM, {"distil.hooked_blocks": f"({','.join(map(str, range(12)))})"},
    ),
    "objective add": (AS_IS, MEDIUM, {"distil.objective": "add"}),
    "objective add, distillation_weight 2.5": (
        AS_IS, MEDIUM, {"distil.objective": "add", "distil.distillation_weight": "2.5"},
    ),
    "objective lcm": (AS_IS, MEDIUM, {"distil.objective": "lcm"}),
    "objective dmd": (AS_IS, MEDIUM, {"distil.objective": "dmd"}),
    "objective progressive": (AS_IS, MEDIUM, {"distil.objective": "progressive"}),
    "consistency_weight 1": (AS_IS, MEDIUM, {"distil.consistency_weight": "1.0"}),
    "moments_weight 0.1": (AS_IS, MEDIUM, {"distil.moments_weight": "0.1"}),
    "paired_weight 0.25": (AS_IS, MEDIUM, {"distil.paired_weight": "0.25"}),
    "reconstruction_weight 1": (AS_IS, MEDIUM, {"distil.reconstruction_weight": "1.0"}),
    "distillation_weight 2.5": (AS_IS, MEDIUM, {"distil.distillation_weight": "2.5"}),
    "loss relativistic": (AS_IS, MEDIUM, {"distil.loss": "relativistic"}),
    "misaligned_share 0.5": (AS_IS, MEDIUM, {"distil.misaligned_share": "0.5"}),
    "own_share 0.5": (AS_IS, MEDIUM, {"distil.own_share": "0.5"}),
    "r1_noise 0.1": (AS_IS, MEDIUM, {"distil.r1_noise": "0.1"}),
    "refreshed_heads 0.01": (AS_IS, MEDIUM, {"distil.refreshed_heads": "0.01"}),
    "student_interval 2": (AS_IS, MEDIUM, {"distil.student_interval": "2"}),
    "head_updates 3": (AS_IS, MEDIUM, {"distil.head_updates": "3"}),
    "guidance_range 2 to 8": (AS_IS, MEDIUM, {"synthesize.guidance_range": "(2.0,8.0)"}),
    "stage prefer": (AS_IS, MEDIUM, {"prefer.steps": "3000"}),
    "stage finetune": (AS_IS, MEDIUM, {"finetune.steps": "10000"}),
    AS_IS_LARGE: (AS_IS_LARGE, LARGE, {}),
    "size=large with teacher=medium": (AS_IS_LARGE, f"{LARGE},teacher=medium", {}),
}  # fmt: skip

STAGES = {"stage prefer": "prefer", "stage finetune": "finetune"}
"""The stage of each row that is not a step of `distil`."""


def compiled(config: str, changes: dict[str, str], stage: str) -> dict[str, Any]:
    """What `plan` says about a stage's step in one setting."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        command = [
            sys.executable, "-m", "ladd_jax.plan", f"--config={config}", f"--topology={TOPOLOGY}",
            f"--stage={stage}", f"--batch={BATCH}", f"--buckets={BUCKET}", "--nolargest",
            f"--json={path}",
            *(f"--config.{name}={value}" for name, value in changes.items()),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        plan = json.loads(path.read_text())
    (bucket,) = plan["buckets"]
    return {
        "arguments": bucket["hbm"]["arguments"],
        "temporaries": bucket["hbm"]["temporaries"],
        "capacity": bucket["hbm"]["capacity"],
        # None where the program does not fit, for which the compiler makes no program.
        "compiled_flops": bucket.get("compiled_flops"),
        "roofline_s": bucket.get("roofline_s"),
        "versions": plan["versions"],
        "stage": stage,
        "config": config,
        "changes": changes,
    }


def table(rows: dict[str, Any]) -> str:
    """The rows in Markdown, each with its change from the row that it is measured against."""
    lines = [
        "# Memory and work, lever by lever",
        "",
        f"The distillation step at 1024 x 1024, {BATCH} images on {TOPOLOGY} (16 chips), as",
        "`python -m benchmarks.levers` compiles it; nothing here was run on a chip. Arguments are",
        "what the step is given, temporaries the most that it needs besides at one time, both in",
        "GiB per chip; brackets hold the change from the row `as configured` of the same size.",
        "FLOPs are those of the compiled step. The roofline is the longest of compute, memory and",
        f"network. Two rows are steps of other stages: `stage prefer` of {BATCH} pairs, with",
        "adapters of rank 256, and `stage finetune` of flow matching.",
        "",
        "| setting | arguments | temporaries | FLOPs | roofline |",
        "|---|---|---|---|---|",
    ]
    for name, (base, _, _) in ROWS.items():
        if name not in rows or base not in rows:
            continue
        row, against = rows[name], rows[base]

        def memory(field: str, row: Any = row, against: Any = against) -> str:
            change = (row[field] - against[field]) / 2**30
            value = f"{row[field] / 2**30:.2f}"
            return value if row is against else f"{value} ({change:+.2f})"

        if row["compiled_flops"] is None:
            work, time = "does not fit", ""
        else:
            work = f"{row['compiled_flops']:.3g}"
            if row is not against:
                work += f" (x {row['compiled_flops'] / against['compiled_flops']:.2f})"
            time = f"{max(row['roofline_s'].values()):.2f} s"
        lines.append(
            f"| {name} | {memory('arguments')} | {memory('temporaries')} | {work} | {time} |"
        )
    return "\n".join(lines) + "\n"


def main(_: list[str]) -> None:
    """Compiles the missing rows and writes both files."""
    for name in _ROWS.value:
        if name not in ROWS:
            raise SystemExit(
                f"error: row {name!r} is not one of {', '.join(ROWS)}: use one of them"
            )
    path = _RESULTS / "levers.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    for name in _ROWS.value or ROWS:
        if name in rows:
            continue
        print(f"compile: {name}", flush=True)
        rows[name] = compiled(*ROWS[name][1:], STAGES.get(name, "distil"))
        write_result(path, rows)
    (_RESULTS / "memory.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    app.run(main)
