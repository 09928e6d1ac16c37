"""The README's examples, run as they stand there against the served application; only the address is another."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.served.application import Application
from tests.test_docs import ROOT, section

ADDRESS = "http://127.0.0.1:8000"
FIRST_ANSWER = "A first answer in five minutes"


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader is. The commands come from there, as they do in the clone."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / ".venv" / "bin").mkdir(parents=True)
    command = folder / ".venv" / "bin" / "rayconteur"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m serve_app.cli "$@"\n')
    command.chmod(0o755)
    (folder / "serve_config.yaml").write_text((ROOT / "serve_config.yaml").read_text())
    return folder


def run(command: list[str], application: Application, folder: Path) -> str:
    """What the command prints. It must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAYCONTEUR_URL": application.url}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def run_shell(script: str, application: Application, folder: Path) -> str:
    # What a command says about its results is part of what a reader sees.
    script = f"exec 2>&1\n{script.replace(ADDRESS, application.url)}"
    return run(["sh", "-ec", script], application, folder)


@pytest.fixture(scope="module")
def first_answers(application: Application, folder: Path) -> list[str]:
    """What each block of the first answer prints; the later examples use the files and the store that it makes."""
    scripts = blocks(FIRST_ANSWER, "sh")
    assert scripts[0] == "make serve\n", "the application is served already"
    application.wait_until_ready()
    return [run_shell(script, application, folder) for script in scripts[1:]]


def test_the_first_answer_comes_with_its_sources(first_answers: list[str]) -> None:
    ingested, asked, completion = first_answers
    assert "2 added" in ingested
    answer, sources = asked.split("Sources (* cited)")
    assert answer.strip()
    assert "lighthouse.txt" in sources
    assert re.search(r'"content": ?"[^"]', completion)


def test_the_python_examples_run_in_their_order(
    application: Application, folder: Path, first_answers: list[str]
) -> None:
    scripts = [*blocks("The openai client", "python"), *blocks("LangChain", "python")]
    assert len(scripts) == 6
    # Each example says where its output begins, so that none can hide behind another's.
    marked = "\n".join(f"print('--- example {number}')\n{script}" for number, script in enumerate(scripts))
    (folder / "examples.py").write_text(marked.replace(ADDRESS, application.url))

    printed = run([sys.executable, "examples.py"], application, folder)

    outputs = [output.strip() for output in re.split(r"--- example \d+\n", printed)[1:]]
    assert len(outputs) == len(scripts)
    assert all(outputs), outputs
    searched, answered, _, conversation, _, langchain = outputs
    assert "lighthouse.txt" in searched
    assert "ferry.txt" not in searched  # the filter
    assert "found: ['lighthouse.txt'" in answered
    assert "cited: ['lighthouse.txt'" in answered
    assert "user | My name is Ada." in conversation
    assert conversation.count("assistant | ") == 2
    assert langchain.endswith("384 dimensions")


def test_the_commands_run(application: Application, folder: Path, first_answers: list[str]) -> None:
    (script,) = blocks("The command line", "sh")

    printed = run_shell(script, application, folder)

    assert "2 there already" in printed
    assert "handbook" in printed
    assert "serve_config.yaml is valid." in printed
