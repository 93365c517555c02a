"""Try every causal language model that transformers registers, and write down what densitometer makes of each.

    python tools/architecture_table.py            try them all; write docs/coverage.json, docs/coverage.md and the README's counts
    python tools/architecture_table.py KIND ...   try these and print, write nothing
    python tools/architecture_table.py --write    write the two pages again from docs/coverage.json

`tests/architectures.py` builds the models and says what exact means; the tests hold the tables to the file, and the file
to what runs.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "coverage.json"
TABLE = ROOT / "docs" / "coverage.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- coverage: made by tools/architecture_table.py -->", "<!-- end of coverage -->"
OUTCOMES = ("exact", "refused", "not buildable here")
# What docs/coverage.md says before and after its counts.
WHICH = """\
Any Hugging Face causal decoder can be measured whose blocks are attention and an MLP that add up in a declared way. They may
run one after the other or side by side. Norms may stand before a branch, after it, or on the sum. Residual multipliers,
learned scales, mixtures of experts with or without shared ones, grouped or latent attention, sliding windows, chunks, ALiBi,
sinks and soft caps are all known.

densitometer sees attention through transformers' `AttentionInterface`, or, where a model computes it itself, in its calls of
torch. Nothing is guessed: densitometer finds a block's layout by running the candidates on real activations. It refuses by
name what does not give the model back, such as state-space and recurrent mixers. [Declare a layout](howto/layout.md) says how
to add one. [Measure my own model](howto/own-model.md#where-it-runs) has dtypes, devices and adapters."""
BUNDLED = """\
## Bundled models

Each is under 6 MB, was trained by `tools/train_demo.py` on English and French, and has a card in `densitometer/models/demo/`.

| model | blocks | bits per byte on `wikitext2-test.txt`, `<unk>` dropped / kept |
|---|---|---|
| `demo` | Qwen 3: attention, then MLP | 1.847 / 1.745 |
| `demo-parallel` | GPT-NeoX: attention and MLP side by side | 1.837 / 1.736 |
| `demo-branchnorm` | OLMo 2: each branch's output normalised | 1.819 / 1.717 |"""
sys.path.insert(0, str(ROOT / "tests"))


def full_table(rows: list[dict[str, str]], transformers: str) -> str:
    """docs/coverage.md."""
    lines = [
        "# Models", "", WHICH, "", BUNDLED, "",
        "## Every causal language model of transformers", "",
        f"What densitometer makes of each of the {len(rows)} model types that transformers {transformers} registers as causal "
        "language models, tried on its default config, shrunk, in float32, with noise on every weight "
        "(`tests/architectures.py`; this page is made by `tools/architecture_table.py`).", "",
        "**Exact**: every identity of `densitometer doctor` holds, the full trace is within 1e-4 of each of the model's "
        "logits, half of the edges gone changes them, and an edge that is taken away takes its own vector off its node. "
        "**Refused**: a `DensitometerError` says what was found. **Not buildable here**: no model could be made from the "
        "config.", "",
        " · ".join(f"{name}: {n}" for name, n in _counts(rows).items()), "",
        f"The exact ones by the order of their blocks: {_families(rows)}.", "",
    ]  # fmt: skip
    for outcome in OUTCOMES:
        lines += [
            f"### {outcome.capitalize()}",
            "",
            f"| model type | class | {'layout' if outcome == 'exact' else 'why'} |",
        ]
        lines += ["|---|---|---|"]
        lines += [
            f"| `{row['kind']}` | {row['architecture']} | {_cell(row['detail'])} |"
            for row in rows
            if row["outcome"] == outcome
        ]
        lines.append("")
    return "\n".join(lines)


def counts_line(rows: list[dict[str, str]], transformers: str) -> str:
    """The README's: how many are exact, and how many are not."""
    counts = _counts(rows)
    return (
        f"Of the {len(rows)} causal language model types of transformers {transformers}, **{counts['exact']} are measured "
        f"exactly**, {counts['refused']} are refused with a reason and {counts['not buildable here']} could not be built to "
        "try ([the full table](docs/coverage.md))."
    )


def _families(rows: list[dict[str, str]]) -> str:
    """How many models are exact with each order of attention, MLP and norms."""
    counted = Counter(_family(row["detail"]) for row in rows if row["outcome"] == "exact")
    return ", ".join(f"{family} {n}" for family, n in counted.most_common())


def _family(layouts: str) -> str:
    """The layouts' common name, without the models that they are named after."""
    first = layouts.split(";")[0].split("(")[0].split(",")[0].strip()
    return first.split(" with ")[0]


def _counts(rows: list[dict[str, str]]) -> dict[str, int]:
    counted = Counter(row["outcome"] for row in rows)
    return {name: counted[name] for name in (*OUTCOMES, *sorted(set(counted) - set(OUTCOMES)))}


def _cell(text: str) -> str:
    text = text.replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 300 else text[:297] + "..."


def write_tables() -> None:
    stored = json.loads(FILE.read_text())
    TABLE.write_text(full_table(stored["models"], stored["transformers"]))
    readme = README.read_text()
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    line = counts_line(stored["models"], stored["transformers"])
    README.write_text(f"{before}{BEGIN}\n{line}\n{END}{after}")


def main(kinds: list[str]) -> None:
    warnings.simplefilter("ignore")
    if kinds == ["--write"]:
        write_tables()
        return
    import transformers
    from architectures import KINDS, coverage_of

    transformers.logging.set_verbosity_error()
    rows = []
    for kind in kinds or KINDS:
        rows.append(asdict(coverage_of(kind)))
        print(f"{kind}: {rows[-1]['outcome']}: {rows[-1]['detail']}", flush=True)
    print(", ".join(f"{name} {n}" for name, n in _counts(rows).items()))
    if not kinds:
        stored = {"transformers": transformers.__version__, "models": rows}
        FILE.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
        write_tables()


if __name__ == "__main__":
    main(sys.argv[1:])
