"""Slow, obviously right versions of what densitometer computes fast. Plain loops, one edge at a time."""

from __future__ import annotations

import heapq
import math

import numpy
import torch


@torch.no_grad()
def sums_of_l1(model, ids) -> dict[tuple, float]:
    """l1 importance of every edge, each edge's vector built and measured by itself.

    Streams, weights and values are taken from hooks on the module itself, not from densitometer's capture.
    Keys: (level, kind, head, source, target). Sequential Llama-like and parallel NeoX-like blocks only.
    """
    config = model.module.config
    parallel = hasattr(model.module, "gpt_neox")
    layers = model.module.gpt_neox.layers if parallel else model.module.model.layers
    streams, mids, mlps, values, outs = {}, {}, {}, {}, {}
    handles = []
    for i, layer in enumerate(layers):
        attention = layer.attention if parallel else layer.self_attn
        handles.append(layer.register_forward_pre_hook(keep(streams, i, takes_input=True)))
        handles.append(layer.register_forward_hook(keep(outs, i)))
        handles.append(layer.mlp.register_forward_hook(keep(mlps, i)))
        if parallel:
            handles.append(attention.query_key_value.register_forward_hook(keep(values, i)))
        else:
            handles.append(attention.v_proj.register_forward_hook(keep(values, i)))
            handles.append(
                layer.post_attention_layernorm.register_forward_pre_hook(keep(mids, i, takes_input=True))
            )
    before = config._attn_implementation
    model.module.set_attn_implementation("eager")
    weights = model.module(torch.tensor([ids]), output_attentions=True).attentions
    model.module.set_attn_implementation(before)
    for handle in handles:
        handle.remove()

    n_tokens, n_heads = len(ids), config.num_attention_heads
    found = {}
    for i, layer in enumerate(layers):
        attention = layer.attention if parallel else layer.self_attn
        projection = (attention.dense if parallel else attention.o_proj).weight
        head_size = projection.shape[1] // n_heads
        into = {t: {("residual", t, None): streams[i][t]} for t in range(n_tokens)}
        for t in range(n_tokens):
            for s in range(t + 1):
                for h in range(n_heads):
                    if parallel:
                        v = values[i][s].view(n_heads, 3, head_size)[h, 2]
                    else:
                        group = n_heads // config.num_key_value_heads
                        v = values[i][s].view(-1, head_size)[h // group]
                    w = projection[:, h * head_size : (h + 1) * head_size]
                    into[t]["attention", s, h] = weights[i][0, h, t, s] * (w @ v)
            if parallel:
                into[t]["mlp", t, None] = mlps[i][t]
        if parallel:
            found |= _normalised(i, into, "residual")
        else:
            found |= _normalised(2 * i, into, "residual_attention")
            out = {
                t: {("residual", t, None): mids[i][t], ("mlp", t, None): mlps[i][t]} for t in range(n_tokens)
            }
            found |= _normalised(2 * i + 1, out, "residual_mlp")
    return found


def keep(into: dict, key, takes_input: bool = False):
    """A hook that keeps the first row of a batch, of a module's output or (pre-hook) of its input."""

    def of_output(module, args, output):
        value = output[0] if isinstance(output, tuple) else output
        into[key] = value[0].detach()

    def of_input(module, args):
        into[key] = args[0][0].detach()

    return of_input if takes_input else of_output


def _normalised(level: int, into: dict, residual_kind: str) -> dict[tuple, float]:
    found = {}
    for t, edges in into.items():
        total = sum(float(v.abs().sum()) for v in edges.values())
        for (kind, s, h), v in edges.items():
            name = residual_kind if kind == "residual" else kind
            found[level, name, h, s, t] = float(v.abs().sum()) / total
    return found


def rows_of(graph) -> list[tuple]:
    """(level, kind, head, source, target) of every row of graph.edges(), from its own columns; an MLP edge's unit stands
    where an attention edge's head does."""
    rows = []
    table = graph.edges()
    single = "residual" in set(table["kind"])
    units = table["unit"] if "unit" in table.columns else [None] * table.height
    columns = table.select("layer", "kind", "head", "source", "target").iter_rows()
    for (layer, kind, head, source, target), unit in zip(columns, units, strict=True):
        level = layer if single else 2 * layer + (kind in ("residual_mlp", "mlp"))
        rows.append((level, kind, unit if kind == "mlp" else head, source, target))
    return rows


def reachable_edges(rows_that_exist: set[tuple], n_levels: int, position: int) -> set[tuple]:
    """Edges from which the output can be reached, by walking back from it."""
    into: dict[tuple, list[tuple]] = {}
    for edge in rows_that_exist:
        into.setdefault((edge[0], edge[4]), []).append(edge)
    seen, open_ = {(n_levels - 1, position)}, [(n_levels - 1, position)]
    found = set()
    while open_:
        node = open_.pop()
        for edge in into.get(node, []):
            found.add(edge)
            source = (edge[0] - 1, edge[3])
            if source not in seen:
                seen.add(source)
                open_.append(source)
    return found


def best_first(rows: list[tuple], importance, position: int) -> list[int]:
    """The order in which a heap of edges grows the trace: indices into rows. Ties: lower index first."""
    into: dict[tuple, list[int]] = {}
    for index, row in enumerate(rows):
        into.setdefault((row[0], row[4]), []).append(index)
    root = (max(row[0] for row in rows), position)
    heap, seen, order = [], {root}, []

    def push(node):
        for index in into.get(node, []):
            heapq.heappush(heap, (-float(importance[index]), index))

    push(root)
    while heap:
        _, index = heapq.heappop(heap)
        order.append(index)
        source = (rows[index][0] - 1, rows[index][3])
        if source not in seen:
            seen.add(source)
            push(source)
    return order


def connected(rows: list[tuple], mask, position: int) -> bool:
    """Whether every edge of the mask has a path of kept edges to the output."""
    kept = {row for row, on in zip(rows, mask, strict=True) if on}
    n_levels = max(row[0] for row in rows) + 1
    return reachable_edges(kept, n_levels, position) == kept


def threshold_trace(rows: list[tuple], importance, threshold: float, position: int) -> set[tuple]:
    """Edges above a threshold from which the output is reached through such edges."""
    kept = {row for row, value in zip(rows, importance, strict=True) if value > threshold}
    return reachable_edges(kept, max(row[0] for row in rows) + 1, position)


def nucleus_trace(rows: list[tuple], importance, share: float, position: int) -> set[tuple]:
    """Per reached node the fewest edges, most important first, whose shares of the node sum to at least `share`."""
    into: dict[tuple, list[int]] = {}
    for index, row in enumerate(rows):
        into.setdefault((row[0], row[4]), []).append(index)
    root = (max(row[0] for row in rows), position)
    seen, open_, found = {root}, [root], set()
    while open_:
        node = open_.pop()
        indices = sorted(into.get(node, []), key=lambda i: (-float(importance[i]), i))
        total = math.fsum(float(importance[i]) for i in indices)
        reached = 0.0
        for i in indices:
            if reached >= share * total:
                break
            reached += float(importance[i])
            found.add(rows[i])
            source = (rows[i][0] - 1, rows[i][3])
            if source not in seen:
                seen.add(source)
                open_.append(source)
    return found


# ------------------------------------------------------------- forward passes written by hand, one edge at a time


def _rms(x, weight, eps):
    return weight * x / torch.sqrt((x * x).mean() + eps)


def _layer_norm(x, norm):
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + norm.eps) * norm.weight + norm.bias


def _rotate(x, position, base, size):
    """Rotary embedding of the first `size` entries (half-split convention)."""
    out = x.clone()
    half = size // 2
    for i in range(half):
        angle = position * base ** (-2 * i / size)
        c, s = math.cos(angle), math.sin(angle)
        out[i] = x[i] * c - x[i + half] * s
        out[i + half] = x[i + half] * c + x[i] * s
    return out


def _attend(queries, keys, values, on, t, h, level):
    """Head h's output at target t: softmax over all sources, then removed edges to zero, no renormalising."""
    scores = torch.tensor([float(queries[t] @ keys[s]) for s in range(t + 1)]) / math.sqrt(len(queries[t]))
    weights = torch.softmax(scores, 0)
    return sum(weights[s] * values[s] * on(level, "attention", h, s, t) for s in range(t + 1))


def _gated(activations, on, level, t, neurons):
    """Activations (I,) of token t with those of removed neurons at zero; at the grain of blocks all of them stay."""
    if not neurons:
        return activations
    return torch.stack([a * on(level, "mlp", i, t, t) for i, a in enumerate(activations)])


def _whole(on, level, t, neurons):
    """Whether the whole MLP is on: at the grain of neurons it always is, whatever its neurons are."""
    return 1.0 if neurons else on(level, "mlp", None, t, t)


def _gated_linear(mlp, x, on, level, t, neurons):
    gate = torch.nn.functional.silu(mlp.gate_proj.weight @ x)
    activations = _gated(gate * (mlp.up_proj.weight @ x), on, level, t, neurons)
    return mlp.down_proj.weight @ activations * _whole(on, level, t, neurons)


def mixture(mlp, x, on, level, t, _):
    """Mixtral's experts: the two of the largest probability, which are renormalised to sum to one."""
    probabilities = torch.softmax(mlp.gate.weight @ x, 0)
    chosen = sorted(range(len(probabilities)), key=lambda e: -float(probabilities[e]))[:2]
    total = sum(probabilities[e] for e in chosen)
    written = torch.zeros_like(x)
    for e in chosen:
        gate, up = (mlp.experts.gate_up_proj[e] @ x).chunk(2)
        out = mlp.experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up)
        written = written + probabilities[e] / total * out * on(level, "mlp", e, t, t)
    return written


@torch.no_grad()
def masked_llama(module, ids, on, neurons=False, mlp_of=_gated_linear):
    """Llama, logits after the last token; on(level, kind, head or unit, source, target) is 0 or 1."""
    config, n = module.config, len(ids)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = module.model.layers[0].self_attn.head_dim
    base = config.rope_parameters["rope_theta"]
    stream = [module.model.embed_tokens.weight[i] for i in ids]
    for i, layer in enumerate(module.model.layers):
        attention = layer.self_attn
        normed = [_rms(x, layer.input_layernorm.weight, config.rms_norm_eps) for x in stream]
        q = [(attention.q_proj.weight @ x).view(heads, size) for x in normed]
        k = [(attention.k_proj.weight @ x).view(groups, size) for x in normed]
        v = [(attention.v_proj.weight @ x).view(groups, size) for x in normed]
        mid = []
        for t in range(n):
            total = stream[t] * on(2 * i, "residual_attention", None, t, t)
            for h in range(heads):
                g = h // (heads // groups)
                queries = {t: _rotate(q[t][h], t, base, size)}
                keys = [_rotate(k[s][g], s, base, size) for s in range(n)]
                out = _attend(queries, keys, [v[s][g] for s in range(n)], on, t, h, 2 * i)
                total = total + attention.o_proj.weight[:, h * size : (h + 1) * size] @ out
            mid.append(total)
        stream = []
        for t in range(n):
            x = _rms(mid[t], layer.post_attention_layernorm.weight, config.rms_norm_eps)
            mlp = mlp_of(layer.mlp, x, on, 2 * i + 1, t, neurons)
            stream.append(mid[t] * on(2 * i + 1, "residual_mlp", None, t, t) + mlp)
    return module.lm_head.weight @ _rms(stream[-1], module.model.norm.weight, config.rms_norm_eps)


@torch.no_grad()
def masked_olmo2(module, ids, on, neurons=False):
    """OLMo 2: no norm before a branch, one on its output; queries and keys normalised over all heads."""
    config, n = module.config, len(ids)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    base, eps = config.rope_parameters["rope_theta"], config.rms_norm_eps
    stream = [module.model.embed_tokens.weight[i] for i in ids]
    for i, layer in enumerate(module.model.layers):
        attention = layer.self_attn
        q = [
            _rms(attention.q_proj.weight @ x, attention.q_norm.weight, eps).view(heads, size) for x in stream
        ]
        k = [
            _rms(attention.k_proj.weight @ x, attention.k_norm.weight, eps).view(groups, size) for x in stream
        ]
        v = [(attention.v_proj.weight @ x).view(groups, size) for x in stream]
        mid = []
        for t in range(n):
            written = torch.zeros(config.hidden_size)
            for h in range(heads):
                g = h // (heads // groups)
                queries = {t: _rotate(q[t][h], t, base, size)}
                keys = [_rotate(k[s][g], s, base, size) for s in range(n)]
                out = _attend(queries, keys, [v[s][g] for s in range(n)], on, t, h, 2 * i)
                written = written + attention.o_proj.weight[:, h * size : (h + 1) * size] @ out
            normed = _rms(written, layer.post_attention_layernorm.weight, eps)
            mid.append(stream[t] * on(2 * i, "residual_attention", None, t, t) + normed)
        stream = []
        for t in range(n):
            gate = torch.nn.functional.silu(layer.mlp.gate_proj.weight @ mid[t])
            activations = gate * (layer.mlp.up_proj.weight @ mid[t])
            mlp = layer.mlp.down_proj.weight @ _gated(activations, on, 2 * i + 1, t, neurons)
            mlp = _rms(mlp, layer.post_feedforward_layernorm.weight, eps)
            mlp = mlp * _whole(on, 2 * i + 1, t, neurons)
            stream.append(mid[t] * on(2 * i + 1, "residual_mlp", None, t, t) + mlp)
    return module.lm_head.weight @ _rms(stream[-1], module.model.norm.weight, eps)


@torch.no_grad()
def masked_neox(module, ids, on, neurons=False):
    """GPT-NeoX: attention and MLP read the same stream; biases everywhere; rotary on part of each head."""
    config, n = module.config, len(ids)
    heads = config.num_attention_heads
    size = config.hidden_size // heads
    base = config.rope_parameters["rope_theta"]
    rotary = int(size * config.rope_parameters.get("partial_rotary_factor", 1.0))
    stream = [module.gpt_neox.embed_in.weight[i] for i in ids]
    for i, layer in enumerate(module.gpt_neox.layers):
        attention = layer.attention
        qkv = []
        for x in stream:
            normed = _layer_norm(x, layer.input_layernorm)
            joined = attention.query_key_value.weight @ normed + attention.query_key_value.bias
            qkv.append(joined.view(heads, 3, size))
        new = []
        for t in range(n):
            total = stream[t] * on(i, "residual", None, t, t) + attention.dense.bias
            for h in range(heads):
                queries = {t: _rotate(qkv[t][h, 0], t, base, rotary)}
                keys = [_rotate(qkv[s][h, 1], s, base, rotary) for s in range(n)]
                out = _attend(queries, keys, [qkv[s][h, 2] for s in range(n)], on, t, h, i)
                total = total + attention.dense.weight[:, h * size : (h + 1) * size] @ out
            x = _layer_norm(stream[t], layer.post_attention_layernorm)
            inner = layer.mlp.dense_h_to_4h.weight @ x + layer.mlp.dense_h_to_4h.bias
            activations = _gated(torch.nn.functional.gelu(inner), on, i, t, neurons)
            mlp = layer.mlp.dense_4h_to_h.weight @ activations + layer.mlp.dense_4h_to_h.bias
            new.append(total + mlp * _whole(on, i, t, neurons))
        stream = new
    return module.get_output_embeddings().weight @ _layer_norm(stream[-1], module.gpt_neox.final_layer_norm)


def mask_of(graph, rows) -> numpy.ndarray:
    """(F,) bool over the graph's flat edge axis: on for these rows of `graph.edges()`, all of which there must be."""
    table = graph.edges().select("layer", "kind", "head", "source", "target").rows()
    assert set(rows) <= set(table)
    mask = numpy.zeros(graph.space.size, dtype=bool)
    mask[graph.index[[row in rows for row in table]]] = True
    return mask
