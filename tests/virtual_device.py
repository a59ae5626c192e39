"""A device of torch that computes on the processor, but refuses tensors of another device as a GPU would.

What runs on it gives bit for bit what it gives on the processor, so that a machine without a GPU can tell whether every
tensor is where it has to be. Random numbers come from a generator of the processor, as torch has none for such a
device; it is told which one it stands for, and refused for numbers on another, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "virtual"
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class VirtualTensor(Tensor):
    """A tensor of the device; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> VirtualTensor:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {})


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def register() -> None:
    """Makes the device known to torch, which has to be before anything is differentiated in this process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {})


class _Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.stands_for = torch.device(device)
        return made

    stands_for: torch.device

    @property
    def device(self) -> torch.device:
        return self.stands_for


class _Generators(TorchFunctionMode):
    """Looks at generators before the dispatcher, which does not hand on what they are told."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for generator in (value for value in (*args, *kwargs.values()) if isinstance(value, _Generator)):
            tensors = [value for value in args if isinstance(value, Tensor)]
            wanted = tensors[0].device if tensors else torch.device(kwargs.get("device") or "cpu")
            given = generator.device
            if given.type != wanted.type:
                raise RuntimeError(f"Expected a '{wanted.type}' device type for generator but found '{given.type}'")
        return function(*args, **kwargs)


@contextmanager
def virtual_device() -> Iterator[torch.device]:
    """The device, within a block; where there is a GPU, of which it takes the place, the test is skipped."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, and torch has one accelerator a process")
    with _Generators(), _Dispatch(), patch.object(torch, "Generator", _Generator):
        yield torch.device(NAME, 0)


def _call(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    here = any(isinstance(value, VirtualTensor) for value in tensors)
    if function in COPIES:
        return _copy(function, args, kwargs, device)
    if not here and (device is None or device.type != NAME):
        return function(*args, **kwargs)
    indexes = "index" in function.name()  # a GPU's tensors may be indexed by those of the processor
    if "index_put" in function.name():  # but what is written there may not be the processor's
        tensors, indexes = [args[0], args[2]], False
    if here and not indexes and any(not isinstance(value, VirtualTensor) and value.ndim for value in tensors):
        raise RuntimeError(f"{function.name()}: expected all tensors to be on {NAME}, but found some on cpu")
    inner_kwargs = {key: torch.device("cpu") if key == "device" else _inner(value) for key, value in kwargs.items()}
    result = function(*_inner(args), **inner_kwargs)
    if function is torch.ops.aten._local_scalar_dense.default:
        return result
    wrapped = tree_map(lambda value: VirtualTensor(value) if isinstance(value, Tensor) else value, result)
    return return_and_correct_aliasing(function, args, kwargs, wrapped) if here else wrapped


def _copy(function: Any, args: Any, kwargs: dict[str, Any], device: torch.device | None) -> Any:
    if function is torch.ops.aten.copy_.default:
        _inner(args[0]).copy_(_inner(args[1]))
        return args[0]
    to = args[0].device if device is None else device
    rest = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    copied = function(_inner(args[0]), *args[1:], **rest)
    return VirtualTensor(copied) if to.type == NAME else copied


def _inner(tree: Any) -> Any:
    return tree_map(lambda value: value.inner if isinstance(value, VirtualTensor) else value, tree)
