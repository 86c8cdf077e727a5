r"""`python -m ladd_jax.plan --config=FILE --topology=v5p:4x4x4`: does it fit, how fast is it?

Compiles the very step that a training runs, for TPUs or GPUs that are not here, and reads memory,
operations and communication from the compiled program. Then says what all stages cost together,
for `--records` prompts or pictures. TPUs need libtpu and GPUs JAX's CUDA plugin; neither needs a
chip. `--mesh=slices=2,data=2` is for two TPU slices.

Examples:

    python -m ladd_jax.plan --config=sd3_turbo:size=medium --topology=v5p:2x2x4 --batch=64 \\
        --records=100000
    python -m ladd_jax.plan --config=sd3_turbo:size=large --topology=gpu:80x8 --mesh=fsdp=8,data=1
    python -m ladd_jax.plan --config=sd3_turbo:size=medium --topology=v5p:2x2x4 --stage=prefer \\
        --config.prefer.steps=3000
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from ladd_jax.cli.run import run_without_workdir
from ladd_jax.paths import COPY_LATER, expand_file

if TYPE_CHECKING:
    from ladd_jax.config.fields import Config

FLAGS = flags.FlagValues()
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "A TPU slice such as v5p:4x4x4, or gpu:80, gpu:80x8.", flag_values=FLAGS
)
_MESH = flags.DEFINE_string(
    "mesh", "", "Fields of mesh, such as data=2,fsdp=-1.", flag_values=FLAGS
)
_STAGE = flags.DEFINE_string(
    "stage",
    "distil",
    "The training to compile: distil, finetune, prefer, pretrain, and, for networks of other "
    "sizes, pretrain_student, pretrain_teacher.",
    flag_values=FLAGS,
)
_BATCH = flags.DEFINE_integer(
    "batch",
    0,
    "Global batch, in pairs for prefer; 0 is the stage's batch_size.",
    flag_values=FLAGS,
)
_BUCKETS = flags.DEFINE_list(
    "buckets", [], "Buckets of data.buckets to compile; default: all.", flag_values=FLAGS
)
_UTILISATION = flags.DEFINE_float(
    "utilisation",
    0.5,
    "Share of the slowest roofline that the expected speed reaches.",
    flag_values=FLAGS,
)
_RECORDS = flags.DEFINE_integer(
    "records",
    0,
    "Prompts or pictures of the whole run; 0 counts those that the config names.",
    flag_values=FLAGS,
)
_LARGEST = flags.DEFINE_bool(
    "largest",
    True,
    "Find the largest batch that fits, by one more compilation.",
    flag_values=FLAGS,
)
_COMPILE = flags.DEFINE_bool(
    "compile",
    True,
    "Compile the step; if not, all stages are estimated from their model FLOPs.",
    flag_values=FLAGS,
)
_JSON = flags.DEFINE_string("json", "", "Where to write the result.", flag_values=FLAGS)


def main(config: Config) -> None:
    """Plans as the flags say."""
    from ladd_jax.planning.plan import Options, plan

    options = Options(
        topology=_TOPOLOGY.value,
        mesh=_MESH.value,
        stage=_STAGE.value,
        batch=_BATCH.value,
        buckets=_BUCKETS.value,
        utilisation=_UTILISATION.value,
        records=_RECORDS.value,
        largest=_LARGEST.value,
        compile=_COMPILE.value,
        json=_JSON.value and str(expand_file(_JSON.value, "json", COPY_LATER)),
    )
    plan(config, options)


if __name__ == "__main__":
    run_without_workdir(main, FLAGS, needed={"topology": "SLICE"})
