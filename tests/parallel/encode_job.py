"""One process of a job that encodes pictures: `encode_job.py PICTURES WORKDIR`.

It writes beside the workdir the digests of the pictures that it has decoded.
"""

import hashlib
import json
import sys
from pathlib import Path

import jax

from configs import small
from ladd_jax.config.fields import typed
from ladd_jax.data import images
from ladd_jax.parallel.processes import together
from ladd_jax.stages.encode import encode


def run(pictures, workdir):
    decode, decoded = images._decode, []

    def counted(data, **limit):
        decoded.append(hashlib.sha256(data).hexdigest())
        return decode(data, **limit)

    images._decode = counted
    config = small.get_config(f"data={pictures},resolution=16")
    config.pretrain.batch_size = 4
    config.data.update(
        dict(
            held_out=0.2, records_per_shard=4, max_unreadable=(0.0, 1),
            text_width=8, text_heads=1, text_layers=1, pooled_width=8, text_length=16,
        )
    )  # fmt: skip
    encode(typed(config), workdir)
    path = workdir.with_name(f"{workdir.name}.decoded.{jax.process_index()}")
    path.write_text(json.dumps(decoded))


if __name__ == "__main__":
    with together(60):
        run(Path(sys.argv[1]), Path(sys.argv[2]))
