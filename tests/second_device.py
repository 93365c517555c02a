"""A second device on a machine that has none: its tensors live in CPU memory but say that they are elsewhere, and an
operation that is given tensors of both devices fails, as it does between a CPU and a GPU.
"""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class Elsewhere(torch.Tensor):
    """A tensor of the second device; `held` is its CPU twin."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def __repr__(self, **_: object) -> str:
        return f"Elsewhere({self.held})"

    def tolist(self) -> object:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        target = kwargs.pop("device", None)
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        strangers = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim > 0]
        if strangers and op not in _COPIES:
            raise RuntimeError(f"expected all tensors to be on the same device, found {NAME} and cpu: {op}")
        given = pytree.tree_map_only(Elsewhere, lambda x: x.held, (args, kwargs))
        out = op(*given[0], **given[1])
        if op is torch.ops.aten.copy_.default:
            return args[0]
        if (
            op is torch.ops.aten._to_copy.default
            and target is not None
            and torch.device(target).type == "cpu"
        ):
            return out
        if op is torch.ops.aten._local_scalar_dense.default:
            return out
        twins = {
            id(x.held): x for x in tensors if isinstance(x, Elsewhere)
        }  # in-place operations return what they got
        return pytree.tree_map_only(
            torch.Tensor, lambda x: twins[id(x)] if id(x) in twins else Elsewhere(x), out
        )


def second_device() -> torch.device:
    """Set the device up, once in a process."""
    if not hasattr(torch, NAME):
        _setup_privateuseone_for_python_backend(NAME)
        library = torch.library.Library("aten", "IMPL")
        library.impl("empty.memory_format", _empty, "PrivateUse1")
        library.impl("empty_strided", _empty_strided, "PrivateUse1")
        library.impl("_copy_from", _copy_from, "PrivateUse1")
        second_device.library = library  # it ends with the object
    return torch.device(NAME, 0)


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return Elsewhere(torch.empty(size, dtype=dtype))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    held = [x.held if isinstance(x, Elsewhere) else x for x in (source, target)]
    held[1].copy_(held[0])
    return target
