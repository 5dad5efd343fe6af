"""transformers' names of the parts of a model, so that hooks and partial freezing written for it go on working.

An alias is a property: it gives the real module and holds nothing, so parameters, `state_dict` and `named_modules` are
as without it. Aliases cannot be set, because that would change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from deit.core.errors import UserError


class ReadOnlyNameError(UserError, AttributeError):
    """A name of transformers was set in place of the real one."""


class Alias:
    """Another name of an attribute, read-only.

    Args:
        place: Of the attribute, seen from the module, such as "trunk.norm".
    """

    def __init__(self, place: str) -> None:
        self.place = place

    def __get__(self, module: Any, kind: type | None = None) -> Any:
        if module is None:
            return self
        for name in self.place.split("."):
            module = getattr(module, name)
        return module

    def __set__(self, module: Any, value: Any) -> None:
        raise ReadOnlyNameError(f"This name of transformers is read-only here. Set {self.place!r}.")


class Aliased(nn.Module):
    """A module that has aliases; `torch.nn.Module` would let a module be set under their names, to no effect."""

    def __setattr__(self, name: str, value: Any) -> None:
        alias = getattr(type(self), name, None)
        if isinstance(alias, Alias):
            alias.__set__(self, value)
        if isinstance(alias, property) and alias.fset is None:
            raise ReadOnlyNameError(f"{name!r} is a read-only name of transformers: {_WHERE}.")
        super().__setattr__(name, value)


class Group(nn.Module):
    """Parts that are one module in transformers and several here; its parameters are theirs.

    Hooks are refused where no module here has the same output. It is built anew whenever it is asked for.

    Args:
        name: Of the module in transformers.
        parts: Names in transformers, and the real modules and parameters.
        same_output: The real module whose output is the output of the module in transformers.
    """

    def __init__(self, name: str, parts: Mapping[str, Any], same_output: nn.Module | None = None) -> None:
        super().__init__()
        self.__dict__.update(_name=name, _same_output=same_output)
        for part, value in parts.items():
            super().__setattr__(part, value)
        self.training = any(part.training for part in self.children())

    def __setattr__(self, name: str, value: Any) -> None:
        if "_name" in self.__dict__ and name != "training":
            raise ReadOnlyNameError(f"{self._name}.{name} is a read-only name of transformers: {_WHERE}.")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            hint = " Query, key and value are one layer; open the model with fused_qkv=False." if name in _THREE else ""
            known = ", ".join(dict.fromkeys((*self._modules, *self._parameters)))
            raise AttributeError(f"{self._name} has no {name!r} here, only: {known}.{hint}") from error

    def register_forward_hook(self, *arguments: Any, **options: Any) -> Any:
        """Hangs a hook on the real module that has the same output.

        Raises:
            UserError: There is none.
        """
        if self._same_output is None:
            return self._refuse_hook()
        return self._same_output.register_forward_hook(*arguments, **options)

    def _refuse_hook(self, *arguments: Any, **options: Any) -> Any:
        raise UserError(f"{self._name} is no module of its own here, so such a hook would never be called: {_WHERE}.")

    register_forward_pre_hook = _refuse_hook
    register_full_backward_hook = _refuse_hook
    register_full_backward_pre_hook = _refuse_hook
    register_backward_hook = _refuse_hook
    forward = _refuse_hook


_WHERE = "take a module inside it, such as a block, a norm or a linear layer"
_THREE = ("query", "key", "value", "q_proj", "k_proj", "v_proj")


def embeddings_of(trunk: Any) -> Group:
    """Returns what transformers calls `embeddings`: from pixels to the tokens that enter the first block."""
    parts = {
        "cls_token": trunk.cls_token,
        "distillation_token": trunk.dist_token,
        "mask_token": trunk.mask_token,
        "position_embeddings": trunk.pos_embed,
        "patch_embeddings": trunk.patch_embed,
        "dropout": trunk.pos_drop,
    }
    return Group("embeddings", parts, same_output=trunk.pos_drop)


def encoder_of(trunk: Any) -> Group:
    """Returns what transformers 4 calls `encoder`: all blocks."""
    return Group("encoder", {"layer": trunk.blocks})


def self_attention_of(attention: Any) -> Group:
    """Returns what transformers 4 calls `attention.attention`: query, key and value, where they are apart."""
    names = zip(("query", "key", "value"), attention.qkv_names, strict=False)
    parts = {theirs: getattr(attention, own) for theirs, own in names} or {"qkv": attention.qkv}
    return Group("attention.attention", parts)
