"""LLaMA-Factory's own chat in this terminal; Ctrl-D and Ctrl-C end it like the word `exit`.

Usage: python -m iis_finetune.probe.chat arguments.yaml

With IIS_ADAPTERS, see probe.several, each question goes to all of them, by itself, and is answered greedily.
"""

import builtins
import contextlib
import os
import sys
from collections.abc import Mapping

from .several import ADAPTERS

COLUMN = 36  # where a model would get less of the screen, the answers stand one below the other


def ask(prompt: str) -> str:
    """A line of the user's; LLaMA-Factory's loop ends at `exit` alone, and at the end of input with a trace."""
    try:
        return read_line(prompt)
    except EOFError:
        return "exit"


def compare() -> None:
    from .several import ASKED, load

    models = load()
    sys.stdout.write("Each question is asked by itself, the answers are greedy; `exit` ends it.\n")
    while (question := ask("\nUser: ").strip()) != "exit":
        if not question:
            continue
        if not sys.stdin.isatty():
            sys.stdout.write(f"{question}\n")
        answers = {}
        for name in ADAPTERS:
            ASKED.set(name)
            said = models.chat([{"role": "user", "content": question}], do_sample=False)[0].response_text
            answers[name] = "".join(each if each.isprintable() or each == "\n" else " " for each in said)
        tell(answers)


def tell(answers: Mapping[str, str]) -> None:
    from rich.columns import Columns
    from rich.console import Console
    from rich.text import Text

    screen = Console(highlight=False)
    told = [Text.assemble((f"{name}: ", "bold"), answer) for name, answer in answers.items()]
    if screen.is_terminal and screen.width >= COLUMN * len(told):
        screen.print(Columns(told, width=screen.width // len(told) - 1))
    else:
        screen.print(*told, sep="\n", soft_wrap=True)


if __name__ == "__main__":
    read_line = builtins.input
    builtins.input = ask  # type: ignore[assignment]
    with contextlib.suppress(KeyboardInterrupt):
        if ADAPTERS:
            try:
                compare()
            except UnicodeDecodeError:
                sys.exit("error: the questions are not UTF-8\n  fix:   iconv -f gb18030 -t utf-8 FILE")
        else:
            from llamafactory.chat.chat_model import run_chat

            run_chat()
    os._exit(0)  # an answer under way is a thread that would go on to its end
