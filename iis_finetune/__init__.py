"""Validated recipes, sourced decisions and surviving runs around LLaMA-Factory."""

__version__ = "0.1.0"
