"""What the commands print with. Results go to stdout; everything about them to stderr, so that a pipe stays clean."""

from typing import NoReturn

import typer
from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)


def fail(message: str) -> NoReturn:
    """End the command with one line that says what is wrong and what to do."""
    err.print(f"Error: {message}", style="red", markup=False)
    raise typer.Exit(1)


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
