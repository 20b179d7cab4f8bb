"""What people read after a run: every figure, every gate, and what was not reached in words."""

from __future__ import annotations

import io

from rich.console import Console

from instructkit.report.tables import SYNTHETIC, chain_failed, chain_table, run_table, runs_table


def shown(renderable: object, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def one_line(text: str) -> str:
    return " ".join(text.split())


def record(name: str, **fields: object) -> dict:
    return {
        "name": name,
        "path": f"runs/{name}",
        "stage": name,
        "status": "done",
        "verdict": "done",
        "error": None,
        "recipe": {"run": {"output": f"runs/{name}"}},
        "started": "2026-11-23T09:00:00+00:00",
        "ended": "2026-11-23T09:01:30+00:00",
        "timings_seconds": {"train": 61.2, "save": 0.4},
        "peak_memory_bytes": 3 * 2**30,
        "parents": {},
        "measurements": [],
        "gates": [],
        "synthetic": False,
        **fields,
    }


LOSS = {
    "name": "held-out loss",
    "unit": "nats/token",
    "n": 250,
    "before": 6.912345,
    "after": 0.81,
    "change": [-6.1, -6.3, -5.9],
    "better": "lower",
    "note": None,
}
PASSED = {
    "name": "loss ratio",
    "measured": 0.12,
    "limit": 1.0,
    "interval": [0.1, 0.14],
    "passed": True,
    "text": "fine",
}
FAILED = {
    "name": "judge gain",
    "measured": 0.01,
    "limit": 0.0,
    "interval": [-0.02, 0.04],
    "passed": False,
    "text": "",
}
UNDECIDED = {"name": "kl", "measured": None, "limit": 12, "interval": None, "passed": None, "text": ""}


def test_run_table_shows_figures_gates_place_and_cost() -> None:
    text = one_line(shown(run_table(record("sft", measurements=[LOSS], gates=[PASSED]))))
    assert text.startswith("sft (sft): done")
    assert "held-out loss (nats/token) 250 6.912 0.81 -6.1 [-6.3, -5.9] better" in text
    assert "loss ratio 0.12 [0.1, 0.14] 1 yes" in text
    assert "the result lies in runs/sft" in text
    assert "took 90 s (train 61 s, save 0 s), peak memory 3.0 GiB" in text
    assert SYNTHETIC not in text


def test_a_change_is_called_better_only_when_its_whole_interval_says_so() -> None:
    for change, better, said in (
        ([-1.0, -2.0, -0.5], "higher", "worse"),
        ([1.0, 0.5, 2.0], "higher", "better"),
        ([1.0, -0.5, 2.0], "higher", "unclear"),
        ([1.0, 0.5, 2.0], "lower", "worse"),
    ):
        row = {**LOSS, "change": change, "better": better}
        assert f"] {said}" in shown(run_table(record("sft", measurements=[row])))
    for row in ({**LOSS, "better": None}, {**LOSS, "change": None}, {**LOSS, "change": [1.0, None, None]}):
        text = shown(run_table(record("sft", measurements=[row])))
        assert not any(word in text for word in ("better", "worse", "unclear"))


def test_gates_not_reached_are_said_in_words() -> None:
    runs = [record("sft", gates=[PASSED]), record("ppo", gates=[FAILED, UNDECIDED])]
    failed = chain_failed(runs)
    assert failed == [
        "ppo: gate not reached: judge gain: measured 0.01 (bounds -0.02 and 0.04), limit 0",
        "ppo: gate could not be decided: kl: nothing was measured, limit 12",
    ]
    text = one_line(shown(chain_table(runs)))
    assert all(line in text for line in failed)
    assert "judge gain 0.01 [-0.02, 0.04] 0 NO" in text
    assert "kl - 12 undecided" in text
    assert "reached" in text
    assert "all 3 gates reached" not in text


def test_a_gate_that_does_not_apply_is_shown_and_not_counted() -> None:
    gate = {**UNDECIDED, "verdict": "not applicable"}
    runs = [record("lora-update", gates=[PASSED, gate], verdict="PROMOTED")]
    assert chain_failed(runs) == []
    text = one_line(shown(chain_table(runs)))
    assert "kl - 12 not applicable" in text
    assert "all 1 gates reached; lora-update is PROMOTED" in text


def test_the_last_line_of_a_run_says_what_to_do_next() -> None:
    text = shown(run_table(record("sft", measurements=[LOSS], gates=[PASSED])), width=300).splitlines()
    assert text[-1].startswith("next: `instructkit chat runs/sft` talks to the model")
    text = shown(run_table(record("reward", measurements=[LOSS])), width=300).splitlines()
    assert "`reward: [{model: runs/reward}]`" in text[-1]
    assert "next:" not in shown(run_table(record("ppo", gates=[FAILED])))
    assert "next:" not in shown(run_table(record("sft", status="failed", error="x")))


def test_a_run_without_held_out_rows_says_that_nothing_was_measured() -> None:
    text = one_line(shown(run_table(record("sft"))))
    assert "nothing was measured, and no gate was decided: set data.eval to hold out rows" in text


def test_failed_gates_are_left_to_the_error_that_follows() -> None:
    run = record("ppo", gates=[FAILED])
    assert "gate not reached" in shown(run_table(run))
    assert "gate not reached" not in shown(run_table(run, failed=False))


def test_an_undecided_gate_that_was_let_pass_is_shown_and_does_not_fail_the_chain() -> None:
    runs = [record("lora-update", gates=[PASSED, UNDECIDED], verdict="PROMOTED")]
    assert chain_failed(runs) == []
    assert "kl - 12 undecided" in one_line(shown(chain_table(runs)))


def test_the_gate_may_bring_its_own_words() -> None:
    gate = {**FAILED, "text": "the judge's score did not rise clearly"}
    assert chain_failed([record("ppo", gates=[gate])]) == [
        "ppo: gate not reached: the judge's score did not rise clearly"
    ]


def test_a_chain_fails_on_unfinished_refused_and_stale_runs_too() -> None:
    runs = [
        record("sft", status="failed", error="ValueError: loss is nan"),
        record("reward", stale=["its model runs/sft has been trained again since"]),
        record("lora-update", verdict="REFUSED"),
    ]
    assert chain_failed(runs) == [
        "sft: the run is not finished (failed): ValueError: loss is nan",
        "reward: its model runs/sft has been trained again since",
        "lora-update: the result was REFUSED",
    ]


def test_chain_table_has_every_figure_in_order_and_the_label() -> None:
    runs = [
        record("sft", measurements=[LOSS], gates=[PASSED], synthetic=True),
        record("ppo", measurements=[{**LOSS, "name": "judge"}], gates=[PASSED]),
    ]
    text = shown(chain_table(runs))
    assert chain_failed(runs) == []
    assert text.startswith("sft -> ppo\n" + SYNTHETIC)
    figures = text[text.index("before") :]
    assert figures.index("held-out loss") < figures.index("judge") < figures.index("loss ratio")
    assert "all 2 gates reached" in text


def test_nothing_is_lost_on_a_narrow_terminal() -> None:
    runs = [
        record("lora-update", measurements=[{**LOSS, "note": "on prompts of other topics"}], gates=[FAILED])
    ]
    squeezed = "".join(shown(chain_table(runs), width=60).split())
    for piece in ("held-out", "6.912", "0.81", "judge", "0.04"):
        assert piece in squeezed
    assert "…" not in squeezed


def test_brackets_in_names_are_text_and_not_markup() -> None:
    row = {**LOSS, "name": "loss [bold]x[/bold]", "unit": ""}
    assert "loss [bold]x[/bold]" in shown(run_table(record("sft", measurements=[row])))


def test_runs_table_lists_state_and_parents() -> None:
    runs = [
        record("sft", synthetic=True),
        record(
            "ppo",
            parents={"model": {"path": "runs/sft"}, "reward": {"path": "runs/reward"}},
            verdict="PROMOTED",
        ),
        {"name": "broken", "path": "runs/broken", "status": "unreadable", "error": "x"},
    ]
    text = one_line(shown(runs_table(runs), width=150))
    assert "runs/sft sft done (synthetic) - 2026-11-23 09:00 90 s" in text
    assert "runs/ppo ppo PROMOTED model runs/sft, reward runs/reward" in text
    assert "runs/broken - unreadable" in text
    assert "no runs yet" in shown(runs_table([]))


def test_a_failed_run_says_where_the_one_before_it_is_kept() -> None:
    run = record("sft", status="failed", error="ValueError: bad", previous="runs/.sft.previous", ended=None)
    text = shown(run_table(run))
    assert "failed: ValueError: bad" in text
    assert "the finished run before it is kept in runs/.sft.previous" in text
    assert "the result lies" not in text


def test_an_update_tells_what_it_changed_in_words() -> None:
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "The capital of Spain?"}]
    moved = {
        "answers": [
            {"prompt": asked, "before": "Madrid.", "after": "Madrid. Enjoy!", "wanted": "Madrid! Enjoy!"},
            {"prompt": "Who?", "before": "I do not know.", "after": "Ann.", "disliked": "I do not know."},
        ],
        "phrases": ["Enjoy !"],
        "topics": {"group:home": 1.5, "tag:law": -0.25},
        "largest_gains": [],
        "largest_losses": [{"prompt": "What is [bold]law[/bold]?", "wanted": "x " * 400, "gain": -0.75}] * 2
        + [{"prompt": "Who?", "disliked": "I do not know.", "gain": -0.5}],
    }
    text = shown(run_table(record("update", stage="lora-update", verdict="REFUSED", moved=moved)), width=300)
    lines = [line.strip() for line in text.splitlines()]
    start = lines.index("what has changed, in words")
    assert lines[start + 1 : start + 11] == [
        "The capital of Spain?",
        "before  Madrid.",
        "after   Madrid. Enjoy!",
        "wanted  Madrid! Enjoy!",
        "Who?",
        "before    I do not know.",
        "after     Ann.",
        "disliked  I do not know.",
        "new phrases: `Enjoy !`",
        "gain by group and tag (nats/token): group:home +1.50, tag:law -0.25",
    ]
    assert lines[start + 11].startswith("among the largest losses: -0.75 on What is [bold]law[/bold]? -> x x")
    assert lines[start + 11].endswith("...") and len(lines[start + 11]) < 260
    assert lines[start + 12] == "among the largest losses: -0.50 on Who? -> disliked: I do not know."
    assert text.count("among the largest losses") == 2  # two people wanted the same
    assert "what has changed" not in shown(run_table(record("sft")))
