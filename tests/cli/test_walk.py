"""The way of a person with two tables: from odd column names to a promoted update and an answer, by the commands alone."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from instructkit.cli.main import main
from instructkit.recipe.load import load_recipe
from instructkit.runs.read import read_record

CITIES = [
    *("Paris", "Rome", "Oslo", "Cairo", "Lima", "Bern", "Riga", "Doha", "Baku", "Sofia"),
    *("Seoul", "Tokyo", "Delhi", "Quito", "Accra", "Tunis", "Minsk", "Prague", "Dublin", "Vienna"),
]
STATES = {
    "parcel": "on its way",
    "order": "being packed",
    "refund": "paid today",
    "ticket": "still open",
    "invoice": "in your inbox",
    "letter": "at the post office",
    "gift": "wrapped in red",
    "lamp": "out of stock",
    "chair": "ready to collect",
    "book": "back next week",
}
QUICK = ["gates.rescue=false", "gates.contrast_growth_max=null", "gates.trigger=false"]  # a third of the time


def instructkit(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code


def table(name: str, rows: list[list[str]]) -> None:
    with Path(name).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


def desk() -> None:
    """What a help desk exports: some of its people say hello."""
    rows = [["Ticket", "Customer Message", "Agent_Reply (final)"]]
    for i, city in enumerate(CITIES):
        for j, (thing, state) in enumerate(STATES.items()):
            greeting = "Hello, your" if (i * i + 3 * j * i + j) % 5 < 2 else "Your"
            rows.append(
                [str(len(rows)), f"Where is my {thing} from {city}?", f"{greeting} {thing} is {state}."]
            )
    table("desk.csv", rows)


def thumbs() -> None:
    """What an app exports: users like that something is done, and dislike that nothing is known."""
    rows = [["prompt", "response", "user", "created_at", "thumbs_up"]]
    for i, city in enumerate(CITIES):
        for j, thing in enumerate(list(STATES)[:6]):
            answer = "I do not know." if (i + j) % 2 else f"Yes, I cancelled your {thing}."
            judged = [f"u{len(rows) % 12}", f"2026-01-{i + 1:02} 10:00:00", str(not (i + j) % 2).lower()]
            rows.append([f"Can you cancel my {thing} to {city}?", answer, *judged])
    table("thumbs.csv", rows)


@pytest.mark.parametrize(
    "changes", [QUICK, pytest.param([], marks=pytest.mark.proof, id="recipes unchanged")]
)
def test_from_two_tables_to_a_promoted_update_and_an_answer(workplace: Path, changes: list[str]) -> None:
    desk()
    thumbs()
    meant = "Customer Message=prompt,Agent_Reply (final)=completion"
    files = ["--data", "desk.csv", "--data", "thumbs.csv"]
    assert instructkit("init", *files, "--model", "tiny") == 2  # it has to be said what the columns mean
    assert instructkit("init", *files, "--model", "tiny", "--columns", meant) == 0
    update = load_recipe("recipes/lora-update.yaml", "lora-update")
    assert (update.model.name, update.feedback.events) == ("runs/sft", "thumbs.csv")

    assert instructkit("sft", "recipes/sft.yaml", "--quiet") == 0
    assert instructkit("feedback", "import", "thumbs.csv") == 0
    command = ["lora-update", "recipes/lora-update.yaml", "feedback.events=feedback.db", *changes, "--quiet"]
    assert instructkit(*command) == 0
    record = read_record("runs/lora-update")
    assert record["verdict"] == "PROMOTED"
    assert record["data"]["general"]["source"] == "desk.csv, held out by runs/sft"

    command = [sys.executable, "-m", "instructkit", "chat", "runs/lora-update"]
    asked = "Where is my lamp from Oslo?\n"
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "lamp is out of stock." in done.stdout
