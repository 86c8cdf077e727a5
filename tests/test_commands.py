"""What a user sees at the command line."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from pipelines import save_pipeline
from quick_compilation import quick_flags

from ladd_jax import main
from ladd_jax.cli import flags
from ladd_jax.cli import run as command
from ladd_jax.data.shards import Shards
from ladd_jax.models import families
from ladd_jax.models.sd3 import weights
from ladd_jax.weights import source

ROOT = Path(__file__).parent.parent

# Processes as real as any, forked from one that has done the imports: seconds less for each.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "ladd_jax.main",
        "ladd_jax.cli.preflight",
        "ladd_jax.stages.distil",
        "ladd_jax.stages.evaluate",
    ]
)


def _command(arguments, devices, streams):
    for target, path in zip((1, 2), streams, strict=True):
        os.dup2(os.open(path, os.O_WRONLY), target)
    os.chdir(ROOT)
    # Read when JAX first looks for devices, which its import does not.
    os.environ["XLA_FLAGS"] = quick_flags(devices)
    sys.argv = ["main", *arguments]
    command.run(main.main)


def run(*arguments, devices=1):
    """A command's exit code and what it printed."""
    with tempfile.TemporaryDirectory() as directory:
        streams = [Path(directory, name) for name in ("stdout", "stderr")]
        for stream in streams:
            stream.touch()
        process = PROCESSES.Process(target=_command, args=(arguments, devices, streams))
        process.start()
        process.join()
        out, error = (stream.read_text() for stream in streams)
        return SimpleNamespace(returncode=process.exitcode, stdout=out, stderr=error)


def assert_refused(result, words):
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize(
    "module, own, other",
    [("plan", "--topology", "--workdir"), ("export", "--layout", "--config"),
     ("main", "--workdir", "--topology"), ("evaluate", "--samples", "--topology"),
     ("sample", "--prompt", "--workdir"), ("encode", "--config", "--checkpoint"),
     ("synthesize", "--config", "--checkpoint"), ("serve", "--port", "--workdir")],
)  # fmt: skip
def test_help_lists_the_flags_that_a_command_reads_with_examples(module, own, other):
    command = [sys.executable, "-m", f"ladd_jax.{module}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"  {own}:" in result.stdout and f"  {other}:" not in result.stdout
    examples = result.stdout.partition("Examples:")[2].partition("flags:")[0]
    assert examples.count(f"python -m ladd_jax.{module} --") >= 2
    # A line that goes on is shown as it is written, and not joined to the next.
    assert not any("  " in line.strip() for line in examples.splitlines())
    # What an error says of a command's flags is what its help lists.
    told = {name for name in flags.SHARED if f"  --{name}:" in result.stdout}
    assert told == set(flags.READ[module])


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("main", "--nope", "there is no flag --nope: valid are column, config"),
        ("main", "", "--config=NAME and --workdir=DIR are needed"),
        ("main", "--config=digits", "--config=NAME and --workdir=DIR are needed"),
        ("sample", "--out=x", "--checkpoint=DIR and --out=DIR are needed"),
        ("sample", "--seed=many", "--seed is 'many': use a whole number"),
        ("main", "--config=digits --config.distil.steps=True --workdir=x",
         "--config.distil.steps is 'True': use a whole number"),
        ("main", "--config=digits --config.log.decode=2 --workdir=x", "is '2': use true or false"),
        ("main", "--config=digits --config.heads=3 --workdir=x", "--config.heads.FIELD=VALUE"),
        (
            "sample",
            "--checkpoint=x --out=x --column=y",
            "--column=y belongs to a file of prompts: name",
        ),
        (
            "evaluate",
            "--samples=x --extractor=y --column=z",
            "--column=z belongs to a file of prompts",
        ),
        ("sample", "--flagfile=nowhere", "--flagfile cannot be read (Unable to open flagfile"),
        ("sample", "--checkpoint=x --out=x --join_timeout=nan", "--join_timeout is nan: use a"),
        ("main", "--checkpoint=x", "here a run is named by --workdir=DIR"),
        ("sample", "--workdir=x", "here a run is named by --checkpoint=DIR"),
        ("sample", "--topology v5e:2x2", "--topology is a flag of plan and not of this command"),
        ("plan", "--workdir=x", "a flag of main, encode, synthesize, evaluate, export and study"),
        ("export", "--largest", "--largest is a flag of plan and not of this command"),
        ("plan", "--nolargest --config=digits", "--config=NAME and --topology=SLICE are needed"),
        ("serve", "--port=1", "--checkpoint=DIR is needed"),
        ("serve", "--prompt=x", "--prompt is a flag of sample and not of this command"),
        ("sample", "--prompt --x --out x", "--checkpoint=DIR and --out=DIR are needed"),
        ("evaluate", "--compare a b", "--compare=A,B and --page=DIR are needed"),
        ("evaluate", "--compare=a --reference=b", "a flag of --samples and not of --compare"),
        ("evaluate", "--votes=a.json --prompts=b", "--prompts is a flag of"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_flags_is_told_before_what_is_large_is_imported(module, arguments, words):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{module}', *{arguments.split()}]\n"
        f"try: runpy.run_module('ladd_jax.{module}', run_name='__main__', alter_sys=True)\n"
        "finally: print({'jax', 'flax', 'tensorflow_datasets'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert_refused(result, words)
    # A config is made of the fields of networks, which import JAX; nothing else is.
    if "--config" not in arguments:
        assert result.stdout == "set()\n"


def test_a_stage_that_is_run_alone_is_checked_though_the_config_leaves_it_out(tmp_path):
    command = [sys.executable, "-m", "ladd_jax.evaluate", "--config=digits"]
    command += ["--config.stages=('encode',)", "--config.evaluate.per_prompt=1"]
    command += [f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert_refused(result, "the diversity of a prompt's samples needs 2: raise it")
    assert not (tmp_path / "run").exists()


def test_a_command_is_a_module_that_runs():
    command = [sys.executable, "-m", "ladd_jax.main", "--config=configs/none.py", "--workdir=none"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "no config file" in result.stderr


def config_file(tmp_path, body):
    path = tmp_path / "config.py"
    path.write_text(
        "from ladd_jax.config.fields import base_config\n\n\ndef get_config():\n"
        f"    config = base_config()\n    {body}\n    return config\n"
    )
    return f"--config={path}"


DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([DIGITS, "--config.distil.lose=hinge"], "unknown config field distil.lose: did you mean"),
        ([DIGITS, "--config.distil.steps=many"], "many"),
        ([DIGITS, "--config.distil.batch_size=6"], "6 is not divisible by 4"),
        (
            [DIGITS, "--config.distil.accumulation=16"],
            "32 is not divisible by 64 (data=4 x fsdp=1 x accumulation=16): use 64",
        ),
        ([DIGITS, "--config.pretrain.optimizer.moment_dtype=half"], "'half' is not one of float32"),
        ([DIGITS, "--config.mesh.fsdp=64"], "needs 64 devices and there are 4"),
        ([DIGITS, "--config.distil.loss=hing"], "hinge, softplus, lsgan"),
        ([DIGITS, "--config.heads.channels=30"], "not divisible by groups"),
        ([DIGITS, "--config.log.every=0"], "log.every is 0"),
        ([DIGITS, "--config.model.channels=4"], "digits have 1"),
        ([DIGITS, "--config.synthesize.samples=16"], "fewer than one batch"),
        (
            [DIGITS, "--config.data.examples=20"],
            "data.examples 20 of a bucket are fewer than one batch of pretrain.batch_size 64",
        ),
        (
            [DIGITS, "--config.model.position_table=4"],
            "8x16 exceeds the position table of model, which ends at 8 latent pixels",
        ),
        ([DIGITS, "--config.data.buckets=('7x8',)"], "not a multiple of 2, which is model.patch"),
        ([DIGITS, "--config.seed=-1"], "seed is -1: use a number from 0 to 4294967295"),
        ([DIGITS, "--config.evaluate.student_steps=(3,)"], "3 steps do not divide"),
        ([DIGITS, "--config.evaluate.per_prompt=1"], "needs 2: raise it"),
        ([DIGITS, "--config.evaluate.metrics=('fid',)"], "'fid' is not one of fd, fd_real"),
        ([DIGITS, "--config.evaluate.extractor=eye"], "'eye' is not one of digits"),
        ([DIGITS, "--config.stages=('distill',)"], "'distill' is not one of encode, pretrain"),
        ([DIGITS, "--config.stages=('distil',)"], "no complete latent shards in"),
        ([DIGITS, "--config.stages=('pretrain',)"], "no complete latent shards in"),
        ([DIGITS, "--config.stages=('synthesize', 'distil')"], "'finetune' is not among stages"),
        ([DIGITS, "--config.data.source=cifar"], "'cifar' is not one of digits"),
        ([DIGITS, "--profile=100"], "is not START:STOP"),
        ([DIGITS, "--from=nowhere"], "--from=nowhere holds no student: name the --workdir"),
        ([DIGITS, "--from=gs://b/run"], "--from=gs://b/run cannot be an address of a bucket: name"),
        ([DIGITS, "--data=setup.py"], "--data=setup.py is a file: name a directory"),
        ([DIGITS, "--on_change=again"], "on_change 'again' is not one of stop, redo"),
        ([DIGITS, "--profile=2000:2003"], "begins after the last of 1600 steps"),
        (["--config=configs/none.py"], "no config file"),
        (["--config=digitz"], "there is no config 'digitz': did you mean digits?"),
        (["--confg=configs/digits.py"], "confg"),
        ([DIGITS, "extra"], "unexpected argument 'extra'"),
        # Of what is given again the last counts.
        (
            [DIGITS, "--config.log.every=x", "--config.log.every", "0", "--config.log.every=-1"],
            "log.every is -1: use 1 or more",
        ),
        (["--config=configs/none.py", "--config=digits", "--config.seed=-1"], "seed is -1"),
        (["--config=digits:size=3"], "'size=3' after the config's colon is not name=value"),
    ],
    ids=lambda value: value[-1].split("=", 1)[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, arguments, words):
    assert_refused(run(*arguments, f"--workdir={tmp_path / 'run'}", devices=4), words)


def test_arguments_of_a_config_that_takes_none_are_refused(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("from ladd_jax.config import base_config as get_config\n")
    result = run(f"--config={own}:size=3", f"--workdir={tmp_path / 'run'}", devices=4)
    assert_refused(result, "this config takes no arguments")


def test_a_run_writes_nothing_into_a_bucket(bucket, tmp_path):
    address = f"gs://{bucket[1]}/data"
    result = run(DIGITS, f"--workdir={address}", devices=4)
    assert_refused(result, f"--workdir={address} cannot be an address of a bucket: name a folder")
    # Its own process has this one's variables, which lead to the server.
    command = [sys.executable, "-m", "ladd_jax.main", DIGITS, f"--data={address}"]
    command += [f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert_refused(result, f"--data={address} is missing data that the stages would make")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline")
    save_pipeline(directory)
    return directory


def sd3(weights, data):
    arguments = f"size=tiny,weights={weights},data={data},resolution=128"
    return f"--config=configs/sd3_turbo.py:{arguments}"


def truncated(folder):
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def of_a_lora(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"x")


def of_a_unet(folder):
    (folder / "transformer").rename(folder / "unet")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncated, "is truncated: its header promises"),
        (of_a_lora, "holds a LoRA and no MMDiT: give a Stable Diffusion 3 pipeline"),
        (of_a_unet, "holds a U-Net and no MMDiT: give a Stable Diffusion 3 pipeline"),
        (shutil.rmtree, "weights does not exist, and of its folders"),
    ],
)
def test_weights_of_no_use_are_one_sentence_and_leave_nothing(pipeline, tmp_path, spoil, words):
    shutil.copytree(pipeline, tmp_path / "weights")
    spoil(tmp_path / "weights")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    config = sd3(tmp_path / "weights", tmp_path / "prompts.txt")
    assert_refused(run(config, f"--workdir={tmp_path / 'run'}"), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("size", "option", "words"),
    [
        ("large", "--config.seed=0", "model.depth is 38 and the weights"),
        ("tiny", "--config.model.width=7", "--config.model.width is 7 and the weights"),
        ("tiny", "--config.data.text_width=7", "--config.data.text_width is 7 and the weights"),
    ],
)
def test_a_network_that_is_described_and_is_not_that_of_its_weights_is_refused(
    pipeline, tmp_path, size, option, words
):
    config = f"--config=sd3_turbo:size={size},weights={pipeline},data=prompts.txt"
    assert_refused(run(config, option, f"--workdir={tmp_path / 'run'}"), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "blocks: use 0 for theirs"),
        # The remedy: what is refused next is another thing.
        (("--config.model.depth=0",), "digits have 1"),
    ],
)
def test_a_depth_of_0_is_that_of_the_weights(pipeline, tmp_path, options, words):
    given = ("--config=digits", f"--config.weights={pipeline}", *options)
    assert_refused(run(*given, f"--workdir={tmp_path / 'run'}"), words)


def _parse(arguments):
    def look(*_, **__):
        raise AssertionError("weights are looked for")

    source.find = source.fetch_pipeline = source.pipeline_class = source._fetch = look
    weights.find = families.pipeline_class = look
    sys.argv = ["main", *arguments]
    flags.parse(sys.argv)
    config = flags.config()
    assert config.weights and config.model.depth == 0


@pytest.mark.parametrize("place", ["nowhere/at/all", "owner/name"])
@pytest.mark.parametrize(
    "arguments", ["--config=sd3_turbo:weights={0},teacher={0}", "--config=digits --weights={0}"]
)
def test_parsing_flags_looks_for_no_weights(arguments, place):
    process = PROCESSES.Process(target=_parse, args=(arguments.format(place).split(),))
    process.start()
    process.join()
    assert process.exitcode == 0


def files(folder, spoil):
    """Prompts, or images of which one of twenty is spoilt."""
    if isinstance(spoil, str):
        (folder / "prompts.txt").write_text(spoil)
        return folder / "prompts.txt"
    (folder / "images").mkdir()
    lines = []
    for i in range(20):
        Image.new("RGB", (16, 16)).save(folder / "images" / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"image {i}"}))
    (folder / "images/3.png").write_bytes(spoil)
    (folder / "images/metadata.jsonl").write_text("\n".join(lines))
    return folder / "images"


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        ("a cat\n\na dog\n", [], "prompts.txt, line 2 is empty: write a prompt or remove it"),
        ("a cat\n" + 10_001 * "x", [], "line 2 has a prompt of 10001 characters and the limit is"),
        (
            "a cat",
            ["--config.model.dtype=float17"],
            "dtype 'float17' is not one of float32, bfloat16",
        ),
        (
            b"",
            ["--config.distil.batch_size=8"],
            "1 of 20 records cannot be read and the limit is 1 %: repair or remove those",
        ),
    ],
    ids=["empty line", "long prompt", "dtype", "image of no bytes"],
)
def test_data_of_no_use_are_one_sentence_and_leave_nothing(
    pipeline, tmp_path, spoil, options, words
):
    config = sd3(pipeline, files(tmp_path, spoil))
    assert_refused(run(config, *options, f"--workdir={tmp_path / 'run'}"), words)
    assert not list(tmp_path.rglob("*array_record*")) + list(tmp_path.rglob("*partial*"))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
def test_encode_reads_a_table_with_the_flags_for_weights_and_prompts(pipeline, tmp_path, suffix):
    table = tmp_path / f"prompts.{suffix}"
    rows = [{"id": i, "title": f"cat {i}", "text": "no"} for i in range(9)] + [
        {"id": 9, "title": 10_000 * "x", "text": "no"}
    ]
    tsv = ["id\ttitle\ttext", *("\t".join(map(str, row.values())) for row in rows)]
    lines = tsv if suffix == "tsv" else [json.dumps(row) for row in rows]
    table.write_text("\n".join(lines))
    result = run(
        "--config=configs/sd3_turbo.py:resolution=128", f"--weights={pipeline}",
        f"--prompts={table}", "--config.data.column=title", "--config.stages=('encode',)",
        "--config.data.text_length=85", "--config.data.text_batch_size=4",
        "--config.distil.batch_size=1", f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "1 prompts are longer than t5 reads and were cut" in result.stderr
    shards = Shards(tmp_path / "run/encoded")
    found = [p for b in shards.buckets for p in shards.read(b, range(shards.sizes[b]))["prompt"]]
    assert sorted(found) == sorted(row["title"] for row in rows)


def test_an_argument_of_no_use_is_one_sentence(tmp_path):
    result = run("--config=configs/sd3_turbo.py:size=huge", f"--workdir={tmp_path / 'run'}")
    assert_refused(result, "error: size 'huge' is not one of tiny, medium, medium3.5, large")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("config.distil.stepz = 3", "steps"),
        ("config.distil.steps = 'many'", "int"),
        ("pass; config.unlock(); config.distil.lose = 1", "distil.lose: did you mean loss"),
    ],
)
def test_a_bad_field_in_a_config_file_is_named(tmp_path, body, words):
    result = run(config_file(tmp_path, body), f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2, result.stderr
    assert words in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a page of text", "config.py, line 1, is not valid Python (invalid syntax): repair it"),
        (
            "%PDF-1.4\0",
            "config.py is not valid Python (source code string cannot contain null bytes)",
        ),
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("steps = 3", "the config file has no function get_config()"),
        (
            "def get_config():\n    return 3",
            "gives int: let it return what base_config() gave it",
        ),
        ("def get_config():\n    pass", "gives NoneType: let it return what base_config() gave it"),
        ("def get_config():\n    raise RuntimeError('x')", "line 2: RuntimeError: x"),
        ("import sys\n\nsys.exit(0)", "config.py is not valid, line 3: SystemExit: 0"),
        ("def get_config():\n    exit('no')", "config.py is not valid, line 2: SystemExit: no"),
        ("get_config = 3", "config.py is not valid: TypeError: 'int' object is not callable"),
    ],
)
def test_a_config_file_of_no_use_is_one_sentence(tmp_path, text, words):
    (tmp_path / "config.py").write_text(text)
    given = f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"
    assert_refused(run(*given), words)
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_config_is_refused_and_left_alone(tmp_path):
    only = "--config.stages=('encode',)"
    small = "--config.data.examples=20"
    first = run(DIGITS, only, small, f"--workdir={tmp_path}")
    assert first.returncode == 0
    # Told once: absl's handler of the root logger would tell it again.
    assert first.stderr.count("stage encode") == 1
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = run(DIGITS, only, "--config.data.examples=30", f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert "data.examples was 20 and is 30" in result.stderr
    # What does not change the result may differ: how often it logs, where it runs.
    again = run(DIGITS, only, small, "--config.log.every=7", f"--workdir={tmp_path}")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


TINY = [
    DIGITS,
    "--config.data.examples=64",
    "--config.model.depth=2",
    "--config.model.width=16",
    "--config.heads.channels=8",
    "--config.pretrain.steps=6",
    "--config.pretrain.batch_size=16",
    "--config.synthesize.samples=32",
    "--config.synthesize.records_per_shard=16",
    "--config.synthesize.steps=2",
    "--config.finetune.steps=2",
    "--config.finetune.batch_size=16",
    "--config.distil.steps=6",
    "--config.distil.batch_size=16",
    "--config.evaluate.samples=20",
    "--config.evaluate.per_prompt=2",
    "--config.data.held_out_examples=40",
    "--config.evaluate.teacher_steps=(2,)",
    "--config.evaluate.student_steps=(1,)",
    "--config.log.every=3",
    "--config.log.samples_every=3",
]


@pytest.mark.slow
def test_a_run_reads_data_from_a_bucket_and_goes_on_on_another_host(bucket, tmp_path, monkeypatch):
    client, name = bucket
    programs = f"--config.compilation_cache={tmp_path / 'programs'}"
    given = [*TINY, programs, "--config.data.buckets=('8x8',)", "--config.finetune.steps=0"]
    given += ["--config.distil.consistency_weight=0"]
    given += ["--config.log.samples_every=0", "--config.checkpoint.every=2"]

    def started(*arguments):
        # Its own process has this one's variables, which lead to the server.
        command = [sys.executable, "-m", "ladd_jax.main", *given, *arguments]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stderr

    data = ("encode", "pretrain", "synthesize")
    started(f"--config.stages={data}", f"--workdir={tmp_path / 'made'}")
    for folder in ("encoded", "pretrain", "synthesized"):
        client.put(f"{tmp_path / 'made' / folder}/", f"{name}/data/{folder}/", recursive=True)
    shutil.rmtree(tmp_path / "made")
    before = client.find(name, detail=True)
    stages, workdir = f"--config.stages={(*data, 'distil')}", f"--workdir={tmp_path / 'run'}"
    told = started(stages, workdir, f"--data=gs://{name}/data", "--config.distil.steps=4")
    assert f"gs://{name}/data/synthesized: copying" in told
    monkeypatch.setenv("LADD_JAX_CACHE", str(tmp_path / "other"))
    told = started(stages, workdir)
    assert f"gs://{name}/data/synthesized: copying" in told and "resuming at step 4" in told
    assert (tmp_path / "run" / "distil" / "checkpoints" / "6").is_dir()
    assert not (tmp_path / "run" / "encoded").exists()
    assert {key: info["generation"] for key, info in client.find(name, detail=True).items()} == {
        key: info["generation"] for key, info in before.items()
    }


@pytest.mark.slow
def test_the_whole_job_runs_on_a_mesh_and_a_second_run_does_nothing_again(tmp_path):
    tiny = [*TINY, "--config.data.buckets=('8x8', '8x16')", "--config.log.samples_every=0"]
    mesh = ["--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    result = run(*tiny, *mesh, f"--workdir={tmp_path}", devices=8)
    assert result.returncode == 0, result.stderr
    assert "report:" in result.stdout
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    buckets = {row["bucket"] for row in metrics["rows"]}
    assert buckets == {"all", "8x8", "8x16"}
    models = {row["model"] for row in metrics["rows"]}
    assert models == {"data", "generator", "teacher", "untrained", "student"}
    (real,) = [r for r in metrics["rows"] if (r["model"], r["bucket"]) == ("data", "all")]
    assert real["values"]["alignment"] >= 0.95
    trained = {
        path: path.stat().st_mtime_ns
        for stage in (
            "encoded",
            "synthesized",
            "pretrain/checkpoints",
            "finetune/checkpoints",
            "distil/checkpoints",
        )
        for path in (tmp_path / stage).rglob("*")
    }
    # All is done: nothing is written, the table is shown again.
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    idle = run(*tiny, *mesh, f"--workdir={tmp_path}", devices=8)
    assert idle.returncode == 0, idle.stderr
    assert idle.stdout == result.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
    # Without its config.json the workdir still knows what its results were made with.
    (tmp_path / "config.json").unlink()
    other = run(*tiny, "--config.pretrain.steps=7", f"--workdir={tmp_path}", devices=8)
    assert other.returncode == 2
    assert "is another set than this run's (pretrain.steps was 6 and is 7)" in other.stderr
    assert not (tmp_path / "config.json").exists()
    # On another mesh now: what was trained is restored, and gives the same numbers.
    (tmp_path / "metrics.json").unlink()
    again = run(*tiny, f"--workdir={tmp_path}", devices=8)
    assert again.returncode == 0, again.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in trained.items())
    for old, new in zip(
        metrics["rows"], json.loads((tmp_path / "metrics.json").read_text())["rows"], strict=True
    ):
        assert new["values"] == pytest.approx(old["values"], rel=1e-3, abs=1e-6)


def test_training_imports_no_other_framework_and_no_page_for_people():
    code = (
        "import sys, ladd_jax.main, ladd_jax.cli.preflight, ladd_jax.training.loop\n"
        "import ladd_jax.stages.flow_matching, ladd_jax.stages.synthesize, ladd_jax.stages.distil\n"
        "found = {'torch', 'tensorflow', 'transformers'} & set(sys.modules)\n"
        "found |= {name for name in sys.modules if 'arena' in name}\n"
        "assert not found, found"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_names_at_the_top_are_imported_when_they_are_asked_for():
    code = (
        "import sys, ladd_jax\n"
        "assert 'jax' not in sys.modules\n"
        "assert all(getattr(ladd_jax, name).__module__ for name in ladd_jax.__all__)\n"
        "assert not hasattr(ladd_jax, 'nothing')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
