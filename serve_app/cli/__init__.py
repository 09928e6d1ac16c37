"""`rayconteur`: serve the application, and use it from a terminal.

Every command but `serve` and `config check` is a client of the HTTP API and needs nothing else, so it works from any
machine that reaches the server.
"""

import typer

from serve_app.cli.ask import ask, chat
from serve_app.cli.backup import backup, backups, restore
from serve_app.cli.check import check
from serve_app.cli.conversations import conversations, export, import_
from serve_app.cli.ingest import ingest
from serve_app.cli.insights import insights
from serve_app.cli.reembed import reembed
from serve_app.cli.serve import serve
from serve_app.cli.stats import stats
from serve_app.cli.stores import stores
from serve_app.cli.versions import optimize, rollback, versions

app = typer.Typer(
    name="rayconteur",
    help="Ask questions over your own documents, on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(serve)
app.command()(ingest)
app.command()(ask)
app.command()(chat)
app.command()(conversations)
app.command()(export)
app.command("import")(import_)
app.command()(stores)
app.command()(stats)
app.command()(insights)
app.command()(versions)
app.command()(rollback)
app.command()(optimize)
app.command()(reembed)
app.command()(backup)
app.command()(backups)
app.command()(restore)

config = typer.Typer(help="Look at a serve_config.yaml.", no_args_is_help=True)
config.command()(check)
app.add_typer(config, name="config")
