"""LLaMA-Factory's own chat in this terminal; Ctrl-D and Ctrl-C end it like the word `exit`.

Usage: python -m iis_finetune.probe.chat arguments.yaml
"""

import builtins
import contextlib
import os


def ask(prompt: str) -> str:
    """A line of the user's; LLaMA-Factory's loop ends at `exit` alone, and at the end of input with a trace."""
    try:
        return read_line(prompt)
    except EOFError:
        return "exit"


if __name__ == "__main__":
    read_line = builtins.input
    builtins.input = ask  # type: ignore[assignment]
    from llamafactory.chat.chat_model import run_chat

    with contextlib.suppress(KeyboardInterrupt):
        run_chat()
    os._exit(0)  # an answer under way is a thread that would go on to its end
