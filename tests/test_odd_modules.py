"""Modules and surroundings that are not as `load_model` would have made them: what is measured is the plain module's, or a
refusal names what is odd."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import accelerate
import pytest
import torch
from conftest import IDS, make_module
from torch import nn
from transformers import AutoModelForCausalLM

import densitometer as dm
from densitometer.errors import IdentityError, ModelError
from densitometer.models import conditions
from densitometer.models.source import DEMO_FOLDER

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("rows_skipped")]

SIZES = [0.2, 0.6, 1.0]


def figures(model: dm.Model, text: Any = None) -> list[float]:
    """The curve of both scores, and what the full trace is off by."""
    measured = dm.measure(
        model, IDS if text is None else text, importance=["l1", "fisher"], sizes=SIZES, baselines=["inverse"]
    )
    assert list(measured.density) == ["l1", "fisher"]
    return [*measured.curve["tv"], *measured.curve["kl"]]


@pytest.fixture(scope="module")
def plain() -> list[float]:
    return figures(dm.load_model(make_module("llama")))


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
}


def state_of_torch() -> tuple[Any, ...]:
    cast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_default_dtype(), *cast


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_is_set_around_a_measurement_changes_nothing(name, plain):
    module = make_module("llama")
    with SURROUNDINGS[name]():
        before = state_of_torch()
        model = dm.load_model(module)
        assert figures(model) == plain
        assert dm.check_model(model, IDS).passed
        assert state_of_torch() == before
    assert figures(model) == plain


@pytest.mark.parametrize("name", ["inference mode", "autocast", "float16"])
def test_a_model_may_be_loaded_by_name_anywhere(name, demo):
    text = "The captain looked"
    with SURROUNDINGS[name]():
        found = figures(dm.load_model("demo"), text)
    assert found == figures(demo, text)


def test_a_measurement_from_inference_mode_can_be_used_outside():
    model = dm.load_model(make_module("llama"))
    with torch.inference_mode():
        measured = dm.measure(model, IDS, sizes=SIZES)
    assert measured.minimal_trace(tv=0.3) is not None


def test_weights_that_were_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        module = make_module("llama")
    with pytest.raises(ModelError, match=r"made under torch.inference_mode\(\).*outside"):
        dm.load_model(module)


def test_dropout_is_off_also_in_a_module_that_is_trained_after_loading():
    model = dm.load_model(make_module("gpt2").train())
    assert not model.module.training
    expected = figures(model)
    model.module.train()
    model.module.transformer.h[1].eval()  # a part that its user froze
    assert figures(model) == expected
    assert dm.check_model(model, IDS).passed
    assert model.module.training
    assert model.module.transformer.h[0].attn.resid_dropout.training
    assert not model.module.transformer.h[1].training


# ----------------------------------------------------------------------------------------------------


def never_called(graph: Any, inputs: Any) -> Any:
    raise AssertionError("compiled")


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend=never_called)
    return module


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": lambda module: torch.compile(module, backend=never_called),
    "Module.compile": compiled_in_place,
    "DataParallel": nn.DataParallel,
    "both": lambda module: torch.compile(nn.DataParallel(module), backend=never_called),
    "accelerate": lambda module: accelerate.Accelerator(cpu=True).prepare(module),
    "hooks of accelerate": lambda module: accelerate.dispatch_model(module, {"": "cpu"}, force_hooks=True),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_module_is_measured_as_the_one_inside(name, plain):
    model = dm.load_model(WRAPPERS[name](make_module("llama")))
    assert (model.name, model.architecture) == ("LlamaForCausalLM", "LlamaForCausalLM")
    assert figures(model) == plain
    assert dm.check_model(model, IDS).passed


def test_hooks_on_a_wrapper_are_refused():
    wrapper = nn.DataParallel(make_module("llama"))
    wrapper.register_forward_hook(lambda part, args, out: None)
    with pytest.raises(ModelError, match=r"hooks on the DataParallel around the LlamaForCausalLM"):
        dm.load_model(wrapper)


def test_autocast_inside_a_module_is_refused_as_that():
    module = make_module("llama")
    module.forward = torch.autocast("cpu", dtype=torch.bfloat16)(
        module.forward
    )  # as accelerate's mixed precision does
    with pytest.raises(
        ModelError, match=r"turns autocast on inside its forward \(torch.bfloat16\).*unwrap_model"
    ):
        dm.load_model(module)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_a_module_that_is_cast_after_loading_is_measured_in_its_new_dtype(cast):
    model = dm.load_model(make_module("llama"))
    figures(model)
    getattr(model.module, cast)()
    expected = dm.load_model(getattr(make_module("llama"), cast)())
    assert figures(model) == figures(expected)
    assert model.adapter.dtype == expected.adapter.dtype == model.module.dtype


def test_parts_that_are_replaced_after_loading_are_found_again():
    def replace(module: Any) -> Any:
        torch.manual_seed(5)
        attention = module.model.layers[1].self_attn
        attention.o_proj = nn.Linear(attention.o_proj.in_features, attention.o_proj.out_features, bias=False)
        return module

    model = dm.load_model(make_module("llama"))
    figures(model)
    replace(model.module)
    assert figures(model) == figures(dm.load_model(replace(make_module("llama"))))


# ----------------------------------------------------------------------------------------------------

PLACES = {
    "block": "",
    "attention": "self_attn",
    "MLP": "mlp",
    "norm": "input_layernorm",
    "projection": "self_attn.o_proj",
}


def part_of(module: Any, place: str, layer: int = 1) -> nn.Module:
    part: nn.Module = module.model.layers[layer].get_submodule(PLACES[place])
    return part


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("place", PLACES)
def test_hooks_that_only_look_are_harmless(place, plain):
    module, seen = make_module("llama"), []
    for kind in ("forward", "forward_pre", "full_backward"):
        register = getattr(part_of(module, place), f"register_{kind}_hook")
        register(lambda *given, kind=kind: seen.append(kind))
    assert figures(dm.load_model(module)) == pytest.approx(plain, abs=1e-5)
    seen.clear()
    module(torch.tensor([IDS])).logits.sum().backward()
    assert seen == ["forward_pre", "forward", "full_backward"]


def changed(by: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def change(part: nn.Module, args: tuple, output: Any) -> Any:
        return (by(output[0]), *output[1:]) if isinstance(output, tuple) else by(output)

    return change


def test_a_hook_that_changes_an_mlp_is_part_of_the_mlp():
    shift = torch.linspace(-1, 1, 36)
    hooked, biased = make_module("llama"), make_module("llama")
    part_of(hooked, "MLP").register_forward_hook(changed(lambda x: x + shift))
    biased.model.layers[1].mlp.down_proj.bias = nn.Parameter(shift)
    assert figures(dm.load_model(hooked)) == pytest.approx(figures(dm.load_model(biased)), abs=1e-5)


def test_a_hook_that_changes_a_projection_is_part_of_the_projection(plain):
    hooked, doubled = make_module("llama"), make_module("llama")
    part_of(hooked, "projection").register_forward_hook(changed(lambda x: 2 * x))
    with torch.no_grad():
        part_of(doubled, "projection").weight.mul_(2)
    found = figures(dm.load_model(hooked))
    assert found == pytest.approx(figures(dm.load_model(doubled)), abs=1e-5)
    assert found != pytest.approx(plain, abs=1e-3)


def tokenwise(x: torch.Tensor) -> torch.Tensor:
    """Another factor at each place: of rows that are packed, another one."""
    return x * torch.linspace(0.5, 1.5, x.shape[-2]).to(x)[:, None]


@pytest.mark.parametrize("place", ["block", "MLP"])
@pytest.mark.parametrize("when", ["before loading", "after a measurement"])
def test_hooks_that_depend_on_a_tokens_place_are_measured_with_every_row(place, when, plain):
    module = make_module("llama")
    model = dm.load_model(module) if when == "after a measurement" else None
    if model is not None:
        assert figures(model) == plain
    part_of(module, place).register_forward_hook(changed(tokenwise))
    model = model or dm.load_model(module)
    report = dm.check_model(model, IDS)
    # the last token has another factor where fewer come after it
    assert set(report.failed) == {"a prediction does not depend on later tokens"}
    assert "skipping rows" in report.unsupported
    assert figures(model) != pytest.approx(plain, abs=1e-3)


def test_a_hook_that_changes_attention_is_refused_where_edges_would_not_sum():
    module = make_module("llama")
    part_of(module, "attention").register_forward_hook(changed(lambda x: 2 * x))
    with pytest.raises(IdentityError, match=r"in layer 1.*hooks change its output.*handle.remove\(\)"):
        dm.measure(dm.load_model(module), IDS)


@pytest.mark.parametrize(
    ("place", "mix"),
    [
        ("block", lambda x: x + x.std()),
        ("block", lambda x: x + x.mean(-2, keepdim=True)),
        ("block", lambda x: x - x[:1]),
        ("MLP", lambda x: x + x.std()),
    ],
)
def test_a_hook_that_mixes_tokens_or_inputs_is_refused_by_name(place, mix):
    module = make_module("llama")
    handle = part_of(module, place).register_forward_hook(changed(mix))
    with pytest.raises(
        ModelError, match=r"hooks on LlamaForCausalLM change .*model\.layers\.1.*\(change\).*Remove"
    ):
        dm.load_model(module)
    handle.remove()
    assert dm.load_model(module).adapter.packs


def test_hooks_before_a_block_are_held_to_the_same():
    module = make_module("llama")
    module.model.layers[2].register_forward_pre_hook(
        lambda part, args: (args[0] + args[0].mean(1, True), *args[1:])
    )
    with pytest.raises(ModelError, match=r"the stream into layer 2 depends on other tokens"):
        dm.load_model(module)


def test_the_final_norm_is_found_behind_a_hook():
    module = make_module("llama")
    part_of(module, "block", layer=2).register_forward_hook(changed(lambda x: 1.5 * x))
    assert dm.load_model(module).adapter.final_norm is module.model.norm


def test_a_hook_that_fails_is_named():
    def to_numpy(part: nn.Module, args: tuple, output: Any) -> None:
        output.numpy()

    module = make_module("llama")
    part_of(module, "MLP").register_forward_hook(to_numpy)
    model = dm.load_model(module)
    with pytest.raises(
        ModelError, match=r"the hook to_numpy on model.layers.1.mlp failed .*RuntimeError.*x.detach\(\)"
    ):
        dm.build_graph(model, IDS, importance="fisher")
    assert module.model.layers[1].mlp._forward_hooks
    assert dm.measure(model, IDS, importance="l1", sizes=SIZES).full_trace_tv < 1e-4


# ----------------------------------------------------------------------------------------------------


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """What each gave, or its error; they start together and are switched as often as Python can."""
    found: list[Any] = [None] * len(work)
    together = threading.Barrier(len(work))

    def run(i: int) -> None:
        together.wait()
        try:
            found[i] = work[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return found


def test_one_model_in_several_threads_gives_what_it_gives_in_one(plain):
    model = dm.load_model(make_module("llama"))
    assert in_threads(*[lambda: figures(model)] * 2) == [plain] * 2
    assert figures(model) == plain


def test_two_modules_may_share_a_config():
    first, second = make_module("llama"), make_module("llama", seed=1)
    for part in second.modules():
        if hasattr(part, "config"):
            part.config = first.config
    one, other = dm.load_model(first), dm.load_model(second)
    expected = [figures(one), figures(other)]
    assert in_threads(lambda: figures(one), lambda: figures(other)) == expected


def test_models_may_be_loaded_in_several_threads(demo):
    found = in_threads(*[lambda: dm.load_model("demo")] * 3)
    assert [getattr(model, "name", model) for model in found] == ["demo"] * 3
    assert figures(found[2], "The captain looked") == figures(demo, "The captain looked")
    assert figures(dm.load_model("demo"), "The captain looked") == figures(demo, "The captain looked")


def test_the_lock_is_free_after_an_error():
    with pytest.raises(ModelError):
        dm.load_model(nn.Linear(2, 3))
    free = conditions._LOCK.acquire(blocking=False)
    assert in_threads(lambda: conditions._LOCK.acquire(blocking=False)) == [False]
    conditions._LOCK.release()

    def taken_and_given_back() -> bool:
        return conditions._LOCK.acquire(blocking=False) and conditions._LOCK.release() is None

    assert free
    assert in_threads(taken_and_given_back) == [True]


def test_a_module_in_memory_has_the_fingerprint_of_what_is_in_memory(tmp_path, demo):
    module = AutoModelForCausalLM.from_pretrained(DEMO_FOLDER / "demo", dtype=torch.float32)
    with torch.no_grad():
        module.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    model = dm.load_model(module, tokenizer=demo.tokenizer)
    assert demo.commit is not None
    assert model.origin is model.revision is None
    changed = model.commit
    assert changed.startswith("memory:")
    with torch.no_grad():
        module.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    assert model.commit not in (changed, demo.commit)
    with torch.no_grad():
        module.model.layers[0].mlp.down_proj.weight.mul_(2)
    assert model.commit == changed
    measured = dm.measure(model, "The captain looked", sizes=SIZES)
    assert measured.model["revision"] is None
    measured.save(tmp_path / "changed.json")
    assert dm.load_measurement(tmp_path / "changed.json").curve.equals(measured.curve)
