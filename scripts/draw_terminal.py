"""Draws docs/images/terminal.svg: what the commands of the demo really print in a terminal, as a picture.

    python scripts/draw_terminal.py [COMMAND ...]     the words behind `recipe`, one argument a command

Needs a Unix terminal device. Run the demo before, so that the picture shows a machine on which everything is installed.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "terminal.svg"
WIDTH = 110
RECIPE = "smollm2-135m-instruct"
COMMANDS = (
    "ls",
    f"run {RECIPE}",
    f"bench {RECIPE}",
    f"try {RECIPE} 'What is the capital of France, and what is it known for?'",
)

# What moves the cursor or erases; colours stay in the text.
_CONTROL = re.compile(r"\x1b\[(\d*)([A-HJKSTfsu])|\x1b\[\?\d+[hl]|(\r\n|\n|\r)")


def main() -> None:
    """Runs the commands and writes the picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for command in sys.argv[1:] or COMMANDS:
        console.print(Text.from_markup(f"[bold green]$[/] [bold]recipe {command}[/]"))
        console.print(Text.from_ansi(_without_places(screen(terminal_output(["recipe", *shlex.split(command)])))))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(PICTURE), title="onnx-recipes", unique_id="terminal")
    print(f"wrote {PICTURE.relative_to(ROOT)}")


def _without_places(text: str) -> str:
    """Leaves out where the clone lies, and whose home that is."""
    return text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".").replace(str(Path.home()), "~")


def terminal_output(command: list[str]) -> str:
    """Returns everything that a command writes to a terminal of its own.

    Raises:
        SystemExit: the command failed; what it said is part of the message.
    """
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(WIDTH), "LINES": "40", "COLORTERM": "truecolor"}
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environment["PATH"]))
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower)
    os.close(follower)
    written = b""
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:  # the last writer has closed its end
            break
        if not part:
            break
        written += part
    os.close(leader)
    text = written.decode("utf-8", errors="replace")
    if process.wait():
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{screen(text)}")
    return text


def screen(written: str) -> str:
    """Returns the lines that stay on the screen: progress that was drawn over is gone."""
    lines, row, at = [""], 0, 0
    for found in _CONTROL.finditer(written):
        lines[row] += written[at : found.start()]
        at = found.end()
        count, action, newline = found.groups()
        if newline in ("\n", "\r\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif action == "A":
            row = max(0, row - int(count or 1))
        elif action == "K" or newline == "\r":
            lines[row] = "" if action == "K" or at < len(written) else lines[row]
    lines[row] += written[at:]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()
