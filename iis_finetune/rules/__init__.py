"""Arguments that do not go together, as data: what LLaMA-Factory would really do, and what to write instead."""

from .explain import explain

__all__ = ["explain"]
