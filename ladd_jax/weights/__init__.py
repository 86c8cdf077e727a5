"""Hugging Face safetensors in and out, one file per layout."""
