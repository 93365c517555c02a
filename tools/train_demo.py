"""Train the three models that densitometer bundles.

For: making `densitometer/models/demo/` again from the texts it was made from, and saying exactly how.
One byte-level BPE tokenizer with 4,096 entries is shared; the three models differ in seed and in the
way their blocks add up:

    demo             Qwen 3       attention, then MLP, each added to the residual stream (sequential)
    demo-parallel    GPT-NeoX     attention and MLP read the same stream and are added together (parallel)
    demo-branchnorm  OLMo 2       each branch's output is normalised before it is added (branch-normed)

Steps: read and clean the texts; train the tokenizer; sample windows of 512 tokens, each source with its own
weight; dropout and weight decay, since every text is seen several times; Muon for the matrices of the
blocks, AdamW for the rest; in each cycle of steps the learning rate is warmed up and then lowered linearly
to nothing; measure bits per byte on texts held out; write float16 safetensors and a card.

Not trained on: wikitext2-test.txt and the last 500 lines of each news-commentary file.

    python tools/train_demo.py DATA_FOLDER --model demo              every cycle
    python tools/train_demo.py DATA_FOLDER --model demo --cycle 2    the second, from the weights that are there
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

OUT = Path(__file__).parent.parent / "densitometer" / "models" / "demo"
VOCABULARY = 4096
CONTEXT = 512
END = "<|endoftext|>"
HELD_OUT_LINES = 500

# Steps of each cycle. The later two models start from the token embeddings of `demo` and need fewer; all else is
# their own. A later cycle starts from the float16 weights that the one before has written, with new optimisers.
STEPS = {
    "demo": (2600, 2400, 1400),
    "demo-parallel": (1600, 2800, 1200),
    "demo-branchnorm": (1100, 3200, 3200),
}
PEAKS = (1.0, 0.7, 0.4)  # of the learning rate in each cycle
DROPOUT = (0.1, 0.15, 0.15)
SEEDS = {"demo": 11, "demo-parallel": 23, "demo-branchnorm": 37}

# Share of the training windows drawn from each source: Wikipedia is the domain of the held-out figure
# and the smallest English one, so it is drawn more often than its size alone would give.
SOURCES = {
    "wikitext2-valid.txt": 0.34,
    "moby.txt": 0.14,
    "grimm.txt": 0.08,
    "frankenstein.txt": 0.06,
    "shakespeare.txt": 0.11,
    "nc-5k.en.txt": 0.14,
    "nc-5k.fr.txt": 0.12,
}


def undo_wikitext(text: str) -> str:
    """Undo WikiText's tokenisation: hyphens, numbers, punctuation, quotes and brackets. `<unk>` is left."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?%)\]}])", r"\1", text)
    text = re.sub(r"([(\[{$£]) ", r"\1", text)
    text = re.sub(r" (n't|'s|'re|'ve|'ll|'d|'m|'S)\b", r"\1", text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    text = re.sub(r"(\w) '( |$)", r"\1'\2", text)
    return "\n".join(line.strip() for line in text.split("\n"))


def gutenberg_body(text: str) -> str:
    """What stands between Project Gutenberg's header and footer, hard line breaks joined."""
    body = text.split("*** START OF", 1)[1].split("***", 1)[1].rsplit("*** END OF", 1)[0]
    paragraphs = re.split(r"\n\s*\n", body.replace("\r", ""))
    return "\n\n".join(" ".join(p.split()) for p in paragraphs if p.strip())


def read_source(folder: Path, name: str) -> str:
    text = (folder / name).read_text(encoding="utf-8-sig")
    if name.startswith("wikitext2"):
        return undo_wikitext(text)
    if name.startswith("nc-5k"):
        return "\n".join(text.splitlines()[:-HELD_OUT_LINES])
    if name == "shakespeare.txt":
        return text
    return gutenberg_body(text)


def without_unknown(text: str) -> str:
    return re.sub(r" ?<unk>", "", text)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build(name: str) -> torch.nn.Module:
    """The untrained model. Each has at most 3.0 million parameters: 6 MB in float16."""
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    if name == "demo":
        return Qwen3ForCausalLM(
            Qwen3Config(
                **shared,
                intermediate_size=408,
                num_attention_heads=8,
                num_key_value_heads=2,
                head_dim=32,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            )
        )
    if name == "demo-parallel":
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                **shared,
                intermediate_size=544,
                num_attention_heads=6,
                use_parallel_residual=True,
                hidden_dropout=0.0,
                attention_dropout=0.0,
            )
        )
    if name == "demo-branchnorm":
        return Olmo2ForCausalLM(
            Olmo2Config(
                **shared,
                intermediate_size=448,
                num_attention_heads=6,
                num_key_value_heads=2,
            )
        )
    raise SystemExit(f"unknown model {name!r}: expected demo, demo-parallel or demo-branchnorm")


def bits_per_byte(model: torch.nn.Module, ids: list[int], n_bytes: int) -> float:
    """Total surprisal over total UTF-8 bytes; windows of CONTEXT tokens, each starting from nothing.

    The first token of a window has no context and is charged log2(VOCABULARY) bits.
    """
    total_nats = 0.0
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(ids), CONTEXT):
            window = torch.tensor([ids[start : start + CONTEXT]])
            total_nats += math.log(VOCABULARY)
            if window.shape[1] > 1:
                logits = model(window).logits[0, :-1].float()
                total_nats += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    model.train()
    return total_nats / math.log(2) / n_bytes


def train(
    model: torch.nn.Module,
    streams: dict[str, list[numpy.ndarray]],
    cycle: int,
    steps: int,
    tokens: int,
    seed: int,
) -> dict:
    """One cycle: the learning rate goes up and down once. Gives its record for the card."""
    torch.manual_seed(seed + cycle)
    generator = numpy.random.default_rng([seed, cycle])
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and ".layers." in name
        (matrices if inside else rest).append(parameter)
    optimisers = [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.1, nesterov=True),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    peaks = [group["lr"] * PEAKS[cycle - 1] for group in groups]
    dropout = DROPOUT[cycle - 1]
    names, weights = list(SOURCES), numpy.array(list(SOURCES.values()))
    weights /= weights.sum()

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch, use_cache=False).logits  # (B, T, V)
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())

    def drop(module: torch.nn.Module, args: tuple, output: object) -> object:
        if isinstance(output, tuple):
            return (torch.nn.functional.dropout(output[0], dropout), *output[1:])
        return torch.nn.functional.dropout(output, dropout)

    branches = [
        part
        for name, part in model.named_modules()
        if name.endswith((".self_attn", ".attention", ".mlp")) or part is model.get_input_embeddings()
    ]
    handles = [part.register_forward_hook(drop) for part in branches]
    compiled = torch.compile(loss_of, dynamic=False)
    started = time.monotonic()
    smooth, losses = None, []
    for step in range(steps):
        factor = min(1.0, (step + 1) / 20) * min(1.0, (1.0 - step / steps) / 0.6)
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * factor
        rows = []
        for source in generator.choice(len(names), size=tokens // CONTEXT, p=weights):
            copies = streams[names[source]]
            stream = copies[generator.integers(len(copies))]
            start = generator.integers(stream.size - CONTEXT)
            rows.append(stream[start : start + CONTEXT])
        loss = compiled(torch.from_numpy(numpy.stack(rows)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        if (step + 1) % max(1, steps // 12) == 0 or step + 1 == steps:
            losses.append([step + 1, round(smooth, 3)])
            print(f"step {step + 1:5d}  loss {smooth:.4f}  {time.monotonic() - started:.0f} s", flush=True)
    for handle in handles:
        handle.remove()
    return {
        "steps": steps,
        "tokens_per_step": tokens,
        "dropout": dropout,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "losses": losses,
    }


def read_streams(
    folder: Path, tokenizer: PreTrainedTokenizerFast, texts: dict[str, str]
) -> tuple[dict[str, list[numpy.ndarray]], dict[str, tuple[list[int], int]]]:
    """Token ids to train on, by source, and those held out, with their UTF-8 bytes.

    WikiText's <unk> cannot be undone: it is dropped in two thirds of the copies and kept in one, so that
    neither way of writing the held-out text is new to the model.
    """
    streams = {}
    for name, text in texts.items():
        copies = [without_unknown(text)] * 2 + [text] if "<unk>" in text else [text]
        streams[name] = [numpy.array(tokenizer(c, verbose=False)["input_ids"]) for c in copies]
    wikitext = undo_wikitext((folder / "wikitext2-test.txt").read_text(encoding="utf-8"))
    held_out = {
        "wikitext2-test.txt, <unk> dropped": without_unknown(wikitext),
        "wikitext2-test.txt, <unk> kept": wikitext,
    }
    for name in ("nc-5k.en.txt", "nc-5k.fr.txt"):
        lines = (folder / name).read_text(encoding="utf-8").splitlines()[-HELD_OUT_LINES:]
        held_out[f"{name}, last {HELD_OUT_LINES} lines"] = "\n".join(lines)
    return streams, {
        k: (tokenizer(v, verbose=False)["input_ids"], len(v.encode())) for k, v in held_out.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, choices=STEPS)
    parser.add_argument("--cycle", type=int, default=None, help="this cycle only; all by default")
    parser.add_argument("--steps", type=int, default=None, help="of each cycle")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens per step")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    seed = SEEDS[arguments.model]
    torch.manual_seed(seed)

    texts = {name: read_source(arguments.data, name) for name in SOURCES}
    out = arguments.out / arguments.model
    out.mkdir(parents=True, exist_ok=True)
    if arguments.model == "demo" and (arguments.cycle or 1) == 1:
        tokenizer = train_tokenizer([without_unknown(text) for text in texts.values()])
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.out / "demo")
    tokenizer.save_pretrained(out)
    streams, held_out = read_streams(arguments.data, tokenizer, texts)

    model = build(arguments.model)
    record = {"cycles": []}
    if (arguments.cycle or 1) > 1:
        record = json.loads((out / "training.json").read_text())
        record["cycles"] = record["cycles"][: arguments.cycle - 1]
        model.load_state_dict(load_file(out / "model.safetensors"), strict=False)
        model.tie_weights()
    elif arguments.model != "demo":
        trained = load_file(arguments.out / "demo" / "model.safetensors")["model.embed_tokens.weight"]
        with torch.no_grad():
            embedding = model.get_input_embeddings().weight
            embedding.copy_(trained.float() * (embedding.std() / trained.float().std()))
    record["parameters"] = sum(p.numel() for p in model.parameters())
    record["tokens_of_text"] = sum(s[0].size for s in streams.values())
    record["threads"] = torch.get_num_threads()
    print(
        f"{arguments.model}: {record['parameters']:,} parameters, {record['tokens_of_text']:,} tokens",
        flush=True,
    )
    every = range(1, len(STEPS[arguments.model]) + 1)
    for cycle in [arguments.cycle] if arguments.cycle else every:
        steps = arguments.steps or STEPS[arguments.model][cycle - 1]
        done = train(model, streams, cycle, steps, arguments.tokens, seed)
        model = model.half()  # what is shipped is what is measured
        model.save_pretrained(out)
        model = model.float()
        done["bits_per_byte"] = {k: round(bits_per_byte(model, *v), 4) for k, v in held_out.items()}
        record["cycles"].append(done)
        print(json.dumps(done["bits_per_byte"], indent=1), flush=True)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "README.md").write_text(
        card(out.name, record, (out / "model.safetensors").stat().st_size), encoding="utf-8"
    )


def card(name: str, record: dict, size: int) -> str:
    """The model card, from the record of its training."""
    cycles = record["cycles"]
    sources = "\n".join(f"- `{source}`, {100 * w:.0f} % of the windows" for source, w in SOURCES.items())
    held_out = "\n".join(
        f"| {text.replace('<unk>', '`<unk>`')} | "
        + " | ".join(f"{c['bits_per_byte'][text]:.3f}" for c in cycles)
        + " |"
        for text in cycles[-1]["bits_per_byte"]
    )
    losses = "\n".join(
        f"| {number} | {step} | {loss:.3f} |"
        for number, c in enumerate(cycles, 1)
        for step, loss in c["losses"]
    )
    heads = " | ".join(f"after cycle {number}" for number in range(1, len(cycles) + 1))

    def of_cycles(text: str) -> str:
        return ", then ".join(text.format(**c) for c in cycles)

    return f"""# {name}

A small language model that comes with densitometer, so that everything in it can be tried without a network.
Made by `tools/train_demo.py`; a demonstration and test model, not for any other use.

| | |
|---|---|
| architecture | {type(build(name)).__name__} |
| parameters | {record["parameters"]:,} |
| weights | {size:,} bytes, float16 safetensors |
| tokenizer | byte-level BPE, {VOCABULARY:,} entries, shared by the three models |
| context | {CONTEXT} tokens |
| seed | {SEEDS[name]} |
| start | {"random" if name == "demo" else "random, but for the token embeddings, which are those of `demo`"} |
| steps | {of_cycles("{steps:,} of {tokens_per_step:,} tokens")}, windows of {CONTEXT} |
| time | {of_cycles("{minutes:.1f} minutes")} on {record["threads"]} shared CPU threads |
| optimiser | Muon (matrices of the blocks), AdamW (the rest), bfloat16 autocast |
| dropout | {of_cycles("{dropout:g}")} |
| training loss at the end | {cycles[-1]["losses"][-1][1]:.3f} nats per token, dropout on |

## Held-out texts, bits per byte

Of the float16 weights; windows of {CONTEXT} tokens, each starting without context. Shipped is the last.

| text | {heads} |
|---|{"---|" * len(cycles)}
{held_out}

## Trained on

{record["tokens_of_text"]:,} tokens of English and French:
{sources}

WikiText-2 (Merity et al., 2016; CC BY-SA 3.0), Project Gutenberg books (public domain; the file named
frankenstein.txt holds *Japanese Fairy Tales*), plays of Shakespeare (public domain), WMT News Commentary
(free for research). `wikitext2-test.txt` and the last {HELD_OUT_LINES} lines of each news file were held out.

## Loss over training, nats per token

| cycle | step | loss |
|---|---|---|
{losses}
"""


if __name__ == "__main__":
    main()
