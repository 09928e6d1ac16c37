"""`python -m serve_app.cli`, where the `rayconteur` command is not installed."""

from serve_app.cli import app

app()
