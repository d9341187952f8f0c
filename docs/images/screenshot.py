"""Pictures of the terminal for these pages: what a command prints, at a width, as SVG.

python docs/images/screenshot.py WIDTH FILE.svg featcache compare --head mlp,svm,logreg
"""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # rich's comes from the network


def printed(command: list[str], width: int) -> str:
    """What a command prints on a terminal that is `width` columns wide, without its progress."""
    os.environ |= {"COLUMNS": str(width), "LINES": "50", "TERM": "xterm-256color"}
    output = bytearray()

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 1 << 16)
        output.extend(data)
        return data

    pty.spawn(command, read)
    lines = output.decode().replace("\r\n", "\n").split("\n")
    return "\n".join(line.rsplit("\r", 1)[-1] for line in lines).rstrip()


if __name__ == "__main__":
    width, target, command = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    text = Text.from_ansi(printed([shutil.which(command[0]) or command[0], *command[1:]], width))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(f"$ {shlex.join(command)}", style="bold", highlight=False)
    console.print(text)
    svg = console.export_svg(title="", theme=MONOKAI)
    target.write_text(FONT.sub("", svg))
