"""What a killed writer left is gone at the next start, and nothing else."""

from ladd_jax.cli.unfinished import remove_unfinished


def test_what_was_not_finished_is_removed_and_all_else_stays(tmp_path):
    unfinished = [
        "config.json.partial",
        "synthesized/8x8/1.0.0/.latents-b8x8.array_record-00000-of-00002.0f.partial",
        "distil/checkpoints/40.orbax-checkpoint-tmp/state/_METADATA",
        "distil/.wandb_run.partial",
        ".0f.removed/checkpoints/20/state/_METADATA",
    ]
    stays = [
        "config.json",
        "synthesized/8x8/1.0.0/latents-b8x8.array_record-00001-of-00002",
        "distil/checkpoints/20/state/_METADATA",
        # Of a command that runs beside.
        "pictures/.0001.0f.partial",
    ]
    for name in unfinished + stays:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == set(stays)
    assert not (tmp_path / "distil/checkpoints/40.orbax-checkpoint-tmp").exists()
