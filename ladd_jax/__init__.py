"""Latent Adversarial Diffusion Distillation (Sauer et al. 2024, arXiv 2403.12015) in JAX."""

__version__ = "0.1.0"
