"""`rayconteur insights`: what a conversation was about, how it felt, and what stayed unanswered; or all of them."""

from typing import Annotated, Any
from urllib.parse import quote

import typer
from openai import OpenAI
from rich.markup import escape
from rich.table import Table

from serve_app.cli.client import DEFAULT_URL, ApiKey, Url, connected
from serve_app.cli.terminal import duration, out
from serve_app.types import Json

ConversationId = Annotated[str | None, typer.Argument(metavar="ID", help="The conversation; none: all of them.")]


def insights(conversation_id: ConversationId = None, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """Show the topics, the sentiment and the open questions of a conversation, or of all."""
    with connected(url, api_key) as client:
        if conversation_id is None:
            _show_overview(client.get("/insights", cast_to=dict[str, Any]))
        else:
            path = f"/conversations/{quote(conversation_id, safe='')}/insights"
            _show_conversation(client, client.get(path, cast_to=dict[str, Any]))


def _show_conversation(client: OpenAI, shown: Json) -> None:
    sentiment, engagement, flow = shown["sentiment"], shown["engagement"], shown["flow"]
    user, assistant, kept = engagement["user"], engagement["assistant"], flow["context_kept"]
    table = _table()
    newest = "the newest " if shown["truncated"] else ""
    table.add_row("messages", f"{newest}{shown['messages']:,} in {duration(engagement['duration_seconds'])}")
    for segment in shown["topics"]["segments"]:
        count = len(segment["item_ids"])
        table.add_row("topic", f"{escape(segment['label'])} ({count} message{'s' * (count != 1)})")
    table.add_row("sentiment", _sentiment(sentiment))
    table.add_row("words", f"user {_figure(user['mean_words'], 0)}, assistant {_figure(assistant['mean_words'], 0)}")
    answered = len(flow["question_answer_pairs"])
    table.add_row("questions", f"{user['questions']} by the user, {answered} with an answer")
    for question in engagement["open_questions"]:
        item = client.conversations.items.retrieve(question["question_id"], conversation_id=shown["conversation_id"])
        table.add_row("open", f"{escape(_text(item.to_dict()))} ({question['reason'].replace('_', ' ')})")
    table.add_row("answers", f"{_figure(kept['assistant'])} like what was said before")
    out.print(table)


def _show_overview(shown: Json) -> None:
    conversations, questions = shown["conversations"], shown["questions"]
    moods, times = shown["sentiment"]["messages"], shown["response_times_seconds"]
    table = _table()
    newest = f", the newest {conversations['looked_at']:,} looked at" if shown["truncated"] else ""
    without = f", {conversations['without_facts']:,} not looked into yet" if conversations["without_facts"] else ""
    table.add_row("conversations", f"{conversations['count']:,}{newest}{without}")
    table.add_row("messages", f"{shown['messages']['count']:,}")
    table.add_row("topics", escape(", ".join(f"{each['term']} ({each['conversations']})" for each in shown["topics"])))
    table.add_row("sentiment", ", ".join(f"{count:,} {mood}" for mood, count in moods.items()))
    table.add_row("questions", f"{questions['count']:,}, {questions['open']:,} of them open")
    if times["count"]:
        table.add_row("answers", f"after {times['median']:g} s (median), {times['longest']:,} s at most")
    out.print(table)


def _table() -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    return table


def _sentiment(sentiment: Json) -> str:
    if sentiment["mean"] is None:
        return "not known"
    turns = len(sentiment["turning_points"])
    trend = f", {sentiment['trend']}" if sentiment["trend"] else ""
    unknown = f", {sentiment['unknown']} messages not known" if sentiment["unknown"] else ""
    return f"{sentiment['mean']:+.2f}{trend}, {turns} turning point{'s' * (turns != 1)}{unknown}"


def _figure(value: float | None, digits: int = 2) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


# A conversation item of the client is one of many models: here only what is in all messages.
def _text(item: dict[str, Any]) -> str:
    text = " ".join(str(part.get("text", "")) for part in item["content"])
    return text if len(text) <= 60 else f"{text[:60]}…"
