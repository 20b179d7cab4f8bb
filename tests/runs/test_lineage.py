"""Hashes, the chain of parents, and when a run must be made again."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

from instructkit.errors import InputError
from instructkit.runs import lineage
from instructkit.runs.record import RunFolder, read_run

RECIPE = {
    "stage": "sft",
    "model": {"name": "tiny"},
    "trainer": {"learning_rate": 1e-3, "max_steps": 5},
    "run": {"output": "runs/sft", "seed": 7},
}
DATA = {"train": "aaa", "eval": "bbb"}


def make(
    path: Path, parents: dict[str, Path] | None = None, weights: str = "w", recipe: dict = RECIPE
) -> Path:
    folder = RunFolder(path)
    folder.start(recipe, stage="sft", command=[], overwrite=True)
    with folder:
        standing = {
            role: {"path": str(p), "hash": lineage.run_hash(p)} for role, p in (parents or {}).items()
        }
        folder.update(
            data={role: {"source": "s", "fingerprint": text, "rows": 2} for role, text in DATA.items()},
            parents=standing or {"model": {"path": "tiny", "hash": "model:tiny"}},
        )
        (path / "model.safetensors").write_text(weights, encoding="utf-8")
        (path / "config.json").write_text("{}", encoding="utf-8")
        folder.complete()
    return path


def pipeline(root: Path) -> Path:
    sft = make(root / "sft")
    reward = make(root / "reward", {"model": sft})
    ppo = make(root / "ppo", {"model": sft, "reward": reward})
    return make(root / "update", {"model": ppo})


def test_recipe_hash_ignores_where_the_result_goes_and_the_order_of_keys() -> None:
    elsewhere = {**RECIPE, "run": {"seed": 7, "output": "runs/other"}}
    backwards = dict(reversed(elsewhere.items()))
    assert lineage.recipe_hash(RECIPE) == lineage.recipe_hash(backwards)
    other_seed = {**RECIPE, "run": {"output": "runs/sft", "seed": 8}}
    assert lineage.recipe_hash(RECIPE) != lineage.recipe_hash(other_seed)


def test_recipe_changes_names_the_keys() -> None:
    new = copy.deepcopy(RECIPE)
    new["trainer"] = {"learning_rate": 2e-3, "beta": 0.1, "max_steps": 5}
    new["run"]["output"] = "elsewhere"
    assert lineage.recipe_changes(RECIPE, new) == ["trainer.beta", "trainer.learning_rate"]
    assert lineage.recipe_changes({"a": {}}, {"a": {"b": 1}}) == ["a", "a.b"]


def test_run_hash_covers_the_model_and_nothing_that_is_logged(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    before = lineage.run_hash(run)
    assert before == read_run(run)["hash"]
    for name in (
        *("metrics.jsonl", "samples.jsonl", "training_args.bin", "trainer_state.json", ".hidden.json"),
        *("preprocess.json", "entry.json"),
    ):
        (run / name).write_text("x", encoding="utf-8")
    (run / "checkpoint-3").mkdir()
    (run / "checkpoint-3" / "model.safetensors").write_text("x", encoding="utf-8")
    assert lineage.run_hash(run) == before
    (run / "critic").mkdir()
    (run / "critic" / "model.safetensors").write_text("x", encoding="utf-8")
    assert lineage.run_hash(run) != before


def test_run_hash_changes_with_weights_names_recipe_and_data(tmp_path: Path) -> None:
    hashes = {lineage.run_hash(make(tmp_path / "a"))}
    hashes.add(lineage.run_hash(make(tmp_path / "b", weights="v")))
    hashes.add(lineage.run_hash(make(tmp_path / "c", recipe={**RECIPE, "model": {"name": "x"}})))
    renamed = make(tmp_path / "d")
    (renamed / "config.json").rename(renamed / "other.json")
    hashes.add(lineage.run_hash(renamed))
    assert len(hashes) == 4
    assert lineage.run_hash(make(tmp_path / "e")) in hashes, "the same run made again has the same hash"


def test_chain_gives_parents_before_children_each_once(tmp_path: Path) -> None:
    runs = lineage.chain(pipeline(tmp_path))
    assert [run["name"] for run in runs] == ["sft", "reward", "ppo", "update"]
    assert [run["stale"] for run in runs] == [[], [], [], []]


def test_chain_says_when_a_parent_was_trained_again_or_is_gone(tmp_path: Path) -> None:
    last = pipeline(tmp_path)
    make(tmp_path / "reward", {"model": tmp_path / "sft"}, weights="new")
    assert [run["stale"] for run in lineage.chain(last)][2] == [
        f"its reward {tmp_path / 'reward'} has been trained again since"
    ]
    (tmp_path / "reward" / "run.json").unlink()
    runs = lineage.chain(last)
    assert [run["name"] for run in runs] == ["sft", "ppo", "update"]
    assert runs[1]["stale"] == [f"its reward {tmp_path / 'reward'} is not there any more"]


def test_chain_follows_a_folder_of_runs_that_was_moved(tmp_path: Path) -> None:
    pipeline(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    assert [run["name"] for run in lineage.chain(tmp_path / "after" / "update")] == [
        "sft",
        "reward",
        "ppo",
        "update",
    ]


def test_parents_are_found_by_hash_after_a_copy(tmp_path: Path) -> None:
    """The copies belong together, also while another run lies at the recorded place or a folder was renamed."""
    pipeline(tmp_path / "runs")
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    make(tmp_path / "runs" / "sft", weights="trained again")
    copied = lineage.chain(tmp_path / "copy" / "update")
    assert [run["stale"] for run in copied] == [[], [], [], []]
    assert copied[0]["path"] == str(tmp_path / "copy" / "sft")
    (tmp_path / "copy" / "sft").rename(tmp_path / "copy" / "renamed")
    assert lineage.chain(tmp_path / "copy" / "update")[0]["path"] == str(tmp_path / "copy" / "renamed")


def test_a_parent_elsewhere_is_found_by_its_place_relative_to_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sft = make(Path("all/bases/sft"))
    run = make(Path("all/runs/ppo"), {"model": sft})
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["parents"]["model"] |= lineage.place_of("all/bases/sft", run)
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    Path("all").rename("moved")
    assert [each["name"] for each in lineage.chain("moved/runs/ppo")] == ["sft", "ppo"]


def test_the_base_of_a_moved_adapter_is_found_by_its_parents(tmp_path: Path, monkeypatch) -> None:
    from instructkit.models.source import locate

    monkeypatch.chdir(tmp_path)
    sft = make(Path("runs/sft"))
    run = make(Path("runs/ppo"), {"model": sft})
    above = {"base_model_name_or_path": str(sft.resolve())}
    (run / "config.json").unlink()
    (run / "adapter_config.json").write_text(json.dumps(above), encoding="utf-8")
    Path("runs").rename("moved")
    assert locate("moved/ppo").base == str(Path("moved/sft").resolve())


def test_what_else_is_read_is_part_of_what_a_run_is(run: Path) -> None:
    parents = {"model": lineage.run_hash(run.parent / "sft")}

    def changes(**sources: str) -> str | None:
        return lineage.unchanged(run, lineage.RunIdentity(RECIPE, DATA, parents, sources))

    assert changes(judge="a") is None, "a record of an earlier version holds no sources"
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**record, "sources": {"judge": "a"}}), encoding="utf-8")
    assert changes(judge="a") is None
    assert changes(judge="b") == "the source has changed: judge"
    several = lineage.RunIdentity({**RECIPE, "stage": "x"}, {**DATA, "eval": "c"}, parents, {"judge": "b"})
    assert lineage.unchanged(run, several) == (
        "the data has changed: eval; the source has changed: judge; the recipe has changed: stage"
    )


def test_a_time_limit_does_not_shape_the_result() -> None:
    limited = {**RECIPE, "run": {**RECIPE["run"], "max_minutes": 5}}
    assert lineage.recipe_hash(RECIPE) == lineage.recipe_hash(limited)
    assert lineage.recipe_changes(RECIPE, limited) == []


def test_chain_ends_on_a_record_that_names_itself(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["parents"] = {"model": {"path": str(run), "hash": "x"}}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert len(lineage.chain(run)) == 1


def test_list_runs_looks_below_and_survives_a_damaged_record(tmp_path: Path) -> None:
    make(tmp_path / "sft")
    make(tmp_path / "smollm2" / "sft")
    make(tmp_path / ".sft.previous")
    broken = make(tmp_path / "broken")
    (broken / "run.json").write_text("{", encoding="utf-8")
    assert {run["path"]: run["status"] for run in lineage.list_runs(tmp_path)} == {
        str(tmp_path / "sft"): "done",
        str(tmp_path / "smollm2" / "sft"): "done",
        str(broken): "unreadable",
    }
    assert lineage.list_runs(tmp_path / "nothing") == []


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    return make(tmp_path / "ppo", {"model": make(tmp_path / "sft")})


def ask(run: Path, recipe: dict = RECIPE, data: dict = DATA, parents: dict | None = None) -> str | None:
    standing = {"model": lineage.run_hash(run.parent / "sft")} if parents is None else parents
    return lineage.unchanged(run, lineage.RunIdentity(recipe, data, standing))


def test_unchanged_is_none_when_nothing_changed(run: Path) -> None:
    assert ask(run) is None
    assert ask(run, {**RECIPE, "run": {"output": "runs/copy", "seed": 7}}) is None


def test_unchanged_names_the_recipe_keys(run: Path) -> None:
    assert ask(run, {**RECIPE, "model": {"name": "x"}}) == "the recipe has changed: model.name"
    many = {**RECIPE, "trainer": {f"k{i}": i for i in range(9)}}
    assert ask(run, many).endswith("trainer.k2, trainer.k3, trainer.k4 and 6 more")


def test_unchanged_names_the_data(run: Path) -> None:
    assert ask(run, data={**DATA, "eval": "ccc"}) == "the data has changed: eval"
    assert ask(run, data={"train": "aaa"}) == "the data has changed: eval"
    assert ask(run, data={**DATA, "more": "d"}) == "the data has changed: more"


def test_unchanged_names_the_parent(run: Path) -> None:
    make(run.parent / "sft", weights="new")
    assert ask(run) == "the parent has changed: model"
    assert ask(run, parents={}) == "the parent has changed: model"


def test_unchanged_sees_a_parent_that_is_no_run(tmp_path: Path) -> None:
    run = make(tmp_path / "sft")
    assert ask(run, parents={"model": "model:tiny"}) is None
    assert ask(run, parents={"model": "model:other"}) == "the parent has changed: model"


def test_unchanged_wants_a_finished_run(tmp_path: Path, run: Path) -> None:
    assert ask(tmp_path / "nothing", parents={}) == "no run there yet"
    with pytest.raises(ValueError, match="bad"), RunFolder(run) as folder:
        folder.start(RECIPE, stage="sft", command=[], overwrite=True)
        raise ValueError("bad")
    assert ask(run) == "the last run is not finished (failed)"
    (run / "run.json").write_text("{", encoding="utf-8")
    assert "is damaged" in ask(run)


def test_unchanged_wants_the_model_files_as_they_were_written(run: Path) -> None:
    weights = run / "model.safetensors"
    weights.write_text("other", encoding="utf-8")
    assert ask(run) == "its model files are not those that the run wrote"
    weights.unlink()
    assert ask(run) == "its model files are gone"


def test_hash_of_no_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        lineage.run_hash(tmp_path)
    with pytest.raises(InputError, match="is not a run folder"):
        lineage.chain(tmp_path)
