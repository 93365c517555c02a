"""Where weights are and what they are made of does not change a number: offloaded, split, sharded, quantised, adapted.

And where memory runs out, the error says so and the model can be used on.
"""

from __future__ import annotations

import re
import resource
import sys
import weakref
from copy import deepcopy
from pathlib import Path

import accelerate
import numpy
import peft
import pytest
import torch
import transformers
from command import SERVER
from conftest import IDS, make_module
from second_device import second_device
from test_reconstruction import _state as state
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import densitometer as dm
from densitometer.errors import OutOfMemoryError
from densitometer.graph import masked_runs as ablation
from densitometer.models import placement
from densitometer.models.linear import head_weights
from densitometer.models.weights import n_parameters, operations_of

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("rows_skipped")]

SCORES = ("l1", "cosine", "proximity", "fisher", "bound")


def assert_same(model, reference, scores=SCORES, atol=2e-5):
    """Both models give the same edges the same importance, and the same traces the same logits and costs."""
    for name in scores:
        ours, theirs = (dm.build_graph(m, IDS, importance=name) for m in (model, reference))
        scale = theirs.importance.max()
        numpy.testing.assert_allclose(ours.importance / scale, theirs.importance / scale, atol=atol)
    traces = [graph.traces([0.1, 0.5, 1.0]) for graph in (ours, theirs)]
    logits = [dm.reconstruct(m, t[0].graph, t) for m, t in zip((model, reference), traces, strict=True)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    costs = [[(t.flops_share, t.parameter_share) for t in family] for family in traces]
    assert costs[0] == costs[1]


def run(target):
    """Run a function in a process of its own; it must end well."""
    process = SERVER.Process(target=target)
    process.start()
    process.join(500)
    assert process.exitcode == 0


# ------------------------------------------------------------------------------------------ offloaded and split


def cpu_offloaded(module, folder):
    return accelerate.cpu_offload(module, torch.device("cpu"))


def disk_offloaded(module, folder):
    return accelerate.disk_offload(module, folder / "weights", torch.device("cpu"))


def device_mapped(module, folder):
    """Saved in many shards, loaded by from_pretrained over CPU and disk."""
    module.save_pretrained(folder / "saved", max_shard_size="12KB")
    assert len(list((folder / "saved").glob("*.safetensors"))) > 4
    parts = [name for name, part in module.named_modules() if not any(True for _ in part.children())]
    parts = [re.sub(r"((layers|h)[.][0-9]+)[.].*", r"\1", name) for name in parts]  # whole blocks
    on_cpu = (".embed_tokens", ".rotary_emb", ".layers.1", ".wte", ".wpe", ".h.1", "lm_head")
    device_map = {name: "cpu" if name.endswith(on_cpu) else "disk" for name in parts}
    kind = type(module)
    return kind.from_pretrained(folder / "saved", device_map=device_map, offload_folder=folder / "offloaded")


@pytest.mark.parametrize("offload", [cpu_offloaded, disk_offloaded, device_mapped])
@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2"])
def test_offloaded_weights_change_no_number(make_model, tmp_path, name, offload):
    module = offload(make_module(name).eval(), tmp_path)
    assert any(p.is_meta for p in module.parameters())
    model = dm.load_model(module)
    assert model.adapter.device == torch.device("cpu")
    assert model.adapter.packs
    model.adapter.logits(IDS)
    before = state(module)
    assert_same(model, make_model(name))
    assert state(module) == before
    assert dm.check_model(model, IDS).passed


def on_two_devices(name):
    """Blocks on two devices; the second refuses whatever a GPU would: tensors of two devices in one operation."""
    elsewhere, module = second_device(), make_module(name).eval()
    first, second = torch.ones(3, device=elsewhere), torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        first + second
    body, *heads = [n for n, _ in module.named_children()]
    parts = [f"{body}.{n}" for n, _ in getattr(module, body).named_children() if n != "layers"]
    device_map = dict.fromkeys([*parts, *heads], "cpu")
    device_map |= {f"{body}.layers.{i}": "cpu" if i == 1 else str(elsewhere) for i in range(3)}
    accelerate.dispatch_model(module, device_map, main_device="cpu", force_hooks=True)
    assert any(p.device == elsewhere for p in module.parameters())
    model, plain = dm.load_model(module), dm.load_model(make_module(name))
    assert_same(model, plain, scores=("l1", "cosine", "fisher", "bound"))
    means = [dm.reference_means(m, [IDS, IDS[:4]]) for m in (model, plain)]
    for ours, theirs in zip(*(m.blocks for m in means), strict=True):
        torch.testing.assert_close(ours.attention, theirs.attention, atol=1e-5, rtol=1e-4)
    assert dm.check_model(model, IDS).passed


def on_the_second_device():
    """A whole model there."""
    model = dm.load_model(make_module("qwen3").to(second_device()))
    assert model.adapter.device == second_device()
    assert_same(model, dm.load_model(make_module("qwen3")))


def held_to_the_cpu():
    """A kind of device whose kernels are known to differ: compared with the CPU, and refused where it does."""
    placement.CROSS_CHECKED = {"elsewhere"}
    device = second_device()
    assert dm.load_model("demo", device=device).adapter.device == device

    class Wrong(transformers.LlamaForCausalLM):
        def to(self, *args):
            with torch.no_grad():
                self.lm_head.weight[3] += 1.0
            return super().to(*args)

    with pytest.raises(dm.DensitometerError, match=r"on .*elsewhere.* something else than on the CPU"):
        placement.moved(Wrong(make_module("llama").config), device, "a model")


def elsewhere():
    """Everything on a second device."""
    second_device()
    for name in ("llama", "neox", "gemma2"):
        on_two_devices(name)
    on_the_second_device()
    held_to_the_cpu()


def test_another_device_changes_no_number():
    """In a process of its own: torch counts the devices when it first computes a gradient."""
    run(elsewhere)


def test_tied_weights_in_many_shards_are_tied_again(tmp_path, make_model):
    module = transformers.AutoModelForCausalLM.from_config(make_module("gpt2").config)
    module.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded = dm.load_model(transformers.GPT2LMHeadModel.from_pretrained(tmp_path))
    assert loaded.module.lm_head.weight is loaded.module.transformer.wte.weight
    assert_same(loaded, dm.load_model(module), scores=("l1",))


def test_a_model_without_numbers_is_refused():
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(make_module("llama").config)
    with pytest.raises(dm.DensitometerError, match="'meta' device"):
        dm.load_model(module)


# ------------------------------------------------------------------------------------------ quantised


class Int8Linear(nn.Module):
    """Eight-bit weights with a scale per output, packed in buffers: a linear layer without parameters."""

    def __init__(self, linear: nn.Linear, backward: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.backward_pass = (
            linear.in_features,
            linear.out_features,
            backward,
        )
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x):
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.backward_pass):
            return nn.functional.linear(x, self.packed.to(x.dtype) * self.scale, self.bias)


def replaced(module, make):
    """The module with every linear layer of its blocks and its head replaced."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if type(child) is nn.Linear:
                setattr(part, name, make(child))
    return module


def rounded(linear):
    """The plain layer with the weights that the quantised one stands for."""
    packed, plain = Int8Linear(linear), deepcopy(linear)
    plain.weight.data = packed.packed.float() * packed.scale
    return plain


@pytest.mark.parametrize("name", ["llama", "neox", "olmo2", "opt"])
def test_quantised_layers_are_asked_what_they_do(name):
    """Same importances, logits, operations and parameters as the plain model with the same rounded weights."""
    model = dm.load_model(replaced(make_module(name), Int8Linear))
    assert_same(model, dm.load_model(replaced(make_module(name), rounded)))
    assert dm.check_model(model, IDS).passed


def test_a_quantised_layer_without_a_backward_pass_is_named_and_l1_needs_none():
    model = dm.load_model(replaced(make_module("llama"), lambda linear: Int8Linear(linear, backward=False)))
    assert_same(model, dm.load_model(replaced(make_module("llama"), rounded)), scores=("l1", "cosine"))
    for score in ("fisher", "bound", "best"):
        with pytest.raises(dm.DensitometerError, match=r"layers\.0\..*Int8Linear.*importance='l1'"):
            dm.build_graph(model, IDS, importance=score)


def test_one_layer_without_a_backward_pass_is_enough():
    """The gradient would go around it, and a score come out that looks right."""
    module = make_module("llama")
    module.model.layers[1].mlp.up_proj = Int8Linear(module.model.layers[1].mlp.up_proj, backward=False)
    with pytest.raises(dm.DensitometerError, match=r"layers\.1\.mlp\.up_proj"):
        dm.build_graph(dm.load_model(module), IDS, importance="fisher")


def test_torchao_int8_weights():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    module = make_module("llama")
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    plain = make_module("llama")
    for quantised, layer in zip(module.modules(), plain.modules(), strict=True):
        if isinstance(layer, nn.Linear):
            layer.weight.data = quantised.weight.dequantize()
    assert_same(dm.load_model(module), dm.load_model(plain))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize_per:UserWarning")
def test_kernels_that_torch_does_not_count_are_counted_by_their_size():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 20))
    quantised = torch.ao.quantization.quantize_dynamic(deepcopy(plain), {nn.Linear}, dtype=torch.qint8)
    x = torch.randn(1, 3, 24)
    counts = [operations_of(m, lambda m=m: m(x)) for m in (plain, quantised)]
    assert counts == [2 * 3 * (24 * 40 + 40 * 20)] * 2
    assert n_parameters(quantised, matrices_only=True) == n_parameters(plain, matrices_only=True) == 1760


def test_a_projection_that_is_not_linear_is_refused():
    module = make_module("llama")

    class Squashed(nn.Linear):
        def forward(self, x):
            return super().forward(x).tanh()

    squashed = Squashed(48, 36, bias=False)
    squashed.load_state_dict(module.model.layers[1].self_attn.o_proj.state_dict())
    module.model.layers[1].self_attn.o_proj = squashed
    with pytest.raises(dm.DensitometerError, match="Squashed is not linear"):
        dm.build_graph(dm.load_model(module), IDS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize_per:UserWarning")
def test_activations_quantised_over_all_tokens_are_refused_by_name():
    """One scale for all tokens of a call: what one token gets depends on the others, so no edge is its own."""
    module = torch.ao.quantization.quantize_dynamic(make_module("llama"), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(dm.DensitometerError, match="mixes tokens"):
        dm.load_model(module)


# ------------------------------------------------------------------------------------------ adapters


# PEFT asks a model of transformers for an attribute that is going away
of_peft = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def lora(module, *targets):
    torch.manual_seed(5)
    config = peft.LoraConfig(r=3, target_modules=list(targets), init_lora_weights=False)
    return peft.get_peft_model(module, config)


@of_peft
@pytest.mark.parametrize(
    ("name", "targets"),
    [("llama", ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]), ("gemma2", ["o_proj"]), ("opt", ["out_proj", "fc1"])],
)  # fmt: skip
def test_lora_unmerged_is_lora_merged(name, targets):
    wrapped = lora(make_module(name), *targets)
    model, plain = dm.load_model(wrapped), dm.load_model(make_module(name))
    merged = dm.load_model(deepcopy(wrapped).merge_and_unload())
    for score in ("l1", "fisher"):
        ours, theirs, without = (
            dm.build_graph(m, IDS, importance=score).importance for m in (model, merged, plain)
        )
        numpy.testing.assert_allclose(ours / theirs.max(), theirs / theirs.max(), atol=2e-5)
        assert numpy.abs(ours - without).max() > 1e-2
    assert dm.check_model(model, IDS).passed
    torch.testing.assert_close(
        model.adapter.logits(IDS), wrapped(input_ids=torch.tensor([IDS])).logits[0, -1].detach()
    )


@of_peft
def test_the_active_adapter_is_measured():
    wrapped = lora(make_module("llama"), "o_proj", "down_proj")
    wrapped.add_adapter("other", peft.LoraConfig(r=5, target_modules=["o_proj"], init_lora_weights=False))
    model = dm.load_model(wrapped)
    seen = {}
    for name in ("default", "other"):
        wrapped.set_adapter(name)
        seen[name] = dm.build_graph(model, IDS).importance
    with wrapped.disable_adapter():
        seen["none"] = dm.build_graph(model, IDS).importance
    plain = dm.build_graph(dm.load_model(make_module("llama")), IDS).importance
    numpy.testing.assert_allclose(seen["none"], plain, atol=2e-5)
    adapters = (3 + 5) * (48 + 36)  # of both, on a projection from 48 to 36
    assert n_parameters(model.adapter.blocks[0].projection) == 48 * 36 + adapters
    assert (
        min(numpy.abs(seen[n] - seen[m]).max() for n, m in (("default", "other"), ("other", "none"))) > 1e-2
    )


@of_peft
def test_an_adapter_outside_of_the_layers_is_refused():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(dm.DensitometerError, match=r"PeftModel.*prompt and prefix tuning"):
        dm.load_model(peft.get_peft_model(make_module("llama"), config))


@of_peft
def test_an_adapter_folder_that_names_no_base_model_says_so(tmp_path):
    lora(make_module("llama"), "o_proj").save_pretrained(tmp_path)
    with pytest.raises(dm.DensitometerError, match="gives None as base_model_name_or_path"):
        dm.load_model(tmp_path)


# ------------------------------------------------------------------------------------------ memory


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensor storages that were made while this lasts and are still alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
        out = function(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            address, size = storage.data_ptr(), storage.nbytes()
            if address and address not in given and address not in self._seen:
                self._seen.add(address)
                self.now += size
                weakref.finalize(storage, self._free, address, size)
        self.most = max(self.most, self.now)
        return out

    def _free(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size


def _tensors(tree):
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def test_the_counter_sees_a_copy():
    kept = torch.ones(1000)
    with LiveBytes() as counter:
        views = [kept[:10], kept.view(10, 100)]
        copy = kept.clone()
        (kept * 2).abs_()
    assert counter.now == 4000
    assert counter.most == 8000
    del copy, views
    assert counter.now == 0


def test_a_short_text_needs_three_per_cent_of_the_model():
    """Twelve layers in bfloat16: float32 copies of every output projection would be 16 %, of all weights 200 %."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=503, hidden_size=448, intermediate_size=1216, num_hidden_layers=12, num_attention_heads=7,
        num_key_value_heads=7,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model = dm.load_model(module)
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    _ = model.adapter.packs
    for score in ("l1", "fisher"):
        with LiveBytes() as counter:
            graph = dm.build_graph(model, IDS[:4], importance=score)
            dm.reconstruct(model, graph, [graph.trace(size=0.3)])
        assert counter.most < 0.03 * size, f"{score}: {counter.most / size:.3f} of the model"


def test_a_plain_projection_is_read_in_place():
    projection = nn.Linear(24, 20)
    weights = head_weights(projection, 4, torch.zeros(3, 24), torch.zeros(3, 20))
    assert weights.untyped_storage().data_ptr() == projection.weight.untyped_storage().data_ptr()


def no_room(*args, **kwargs):
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to ..."
    )


def test_running_out_of_memory_is_named_and_leaves_the_model_as_it_was(monkeypatch):
    module = make_module("llama")
    model = dm.load_model(module)
    own = model.adapter.logits(IDS)
    before = state(module)
    for error in (no_room, lambda *a: (_ for _ in ()).throw(MemoryError()), _cuda_error):
        for place in (module.model.layers[2].mlp, module.lm_head):
            with monkeypatch.context() as patch:
                patch.setattr(place, "forward", error)
                for work in (dm.measure, dm.build_graph, dm.check_model):
                    with pytest.raises(OutOfMemoryError, match=r"out of memory.*fewer tokens") as caught:
                        work(model, IDS)
                    assert caught.value.__suppress_context__
        assert state(module) == before
    assert issubclass(OutOfMemoryError, dm.DensitometerError)
    assert torch.equal(model.adapter.logits(IDS), own)


def test_the_error_keeps_no_tensor_of_the_failed_run(monkeypatch):
    model, made = dm.load_model(make_module("llama")), []

    def fails(x):
        large = x * 2
        made.append(weakref.ref(large))
        no_room()

    monkeypatch.setattr(model.module.lm_head, "forward", fails)
    with pytest.raises(OutOfMemoryError) as caught:
        dm.build_graph(model, IDS)
    assert "running the model on 1 x 7 tokens" in str(caught.value)
    assert made[0]() is None


def _cuda_error(*args):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_other_errors_keep_their_names(monkeypatch):
    model = dm.load_model(make_module("llama"))
    monkeypatch.setattr(model.module.lm_head, "forward", lambda x: x[:, :, :3] @ x)
    with pytest.raises(RuntimeError, match=r"size|shape"):
        dm.build_graph(model, IDS)


def test_a_batch_that_runs_out_of_memory_is_halved(make_model, monkeypatch):
    model = make_model("llama")
    graph = dm.build_graph(model, IDS)
    masks = [trace.flat for trace in graph.traces([0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0])]
    whole = ablation.masked_logits(graph.forward, masks)
    real, sizes, done = ablation._run, [], []

    def small_memory(forward, batch, *args):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise OutOfMemoryError("full")
        return real(forward, batch, *args)

    monkeypatch.setattr(ablation, "_run", small_memory)
    got = ablation.masked_logits(graph.forward, masks, advance=done.append)
    torch.testing.assert_close(got, whole, atol=2e-5, rtol=1e-4)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert sum(done) == 7
    monkeypatch.setattr(ablation, "_run", lambda *a: (_ for _ in ()).throw(OutOfMemoryError("full")))
    with pytest.raises(OutOfMemoryError):
        ablation.masked_logits(graph.forward, masks)


def in_little_memory():
    """A text too long for the memory of this process, between two that are not."""
    model = dm.load_model("demo")
    short = dm.measure(model, [5, 9, 12, 40], sizes=[0.5, 1.0])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20,) * 2)
    with pytest.raises(OutOfMemoryError, match="out of memory while"):
        dm.measure(model, [(7919 * i) % 4096 for i in range(500)], sizes=[0.5, 1.0])
    again = dm.measure(model, [5, 9, 12, 40], sizes=[0.5, 1.0])
    assert again.curve.equals(short.curve)


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
def test_a_process_that_really_runs_out_of_memory_goes_on():
    run(in_little_memory)
