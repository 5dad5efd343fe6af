"""Renames tensors: one table maps the keys of .pth, .bin and .safetensors files to names in memory and back.

To rename a key, edit the table: `_TRUNK_NAMES` for the trunk, `_HEADS_OF_TWO` and `_HEADS_OF_ONE` for the classifiers.
`places` renames keys when a file is read, `file_names` when a file is written. PyTorch and Keras share the table. The
table also lists keys that are parts of one tensor: query, key and value of Hugging Face files are one tensor in memory.

The dialect of a file is detected from its keys:

* `deit`: names of this package in memory: timm's under `trunk.`, heads as in `huggingface`.
* `huggingface`: published files, and transformers up to 5.8 in memory (`encoder.layer.3.attention.attention.query`).
* `transformers`: transformers from 5.9 on, in memory (`layers.3.attention.q_proj`).
* `timm`: `blocks.3.attn.qkv`, heads `head` and `head_dist`; DeiT III has `ls1.gamma`.
* `original`: the paper's code; as timm, except for DeiT III's `gamma_1`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

DEIT: Final = "deit"
HUGGINGFACE: Final = "huggingface"
TRANSFORMERS: Final = "transformers"
TIMM: Final = "timm"
ORIGINAL: Final = "original"

TRUNK = "trunk."

# Tokens and position embeddings are matrices by shape but act like biases: optimizers do not decay them.
UNDECAYED_TENSORS = frozenset({"cls_token", "dist_token", "mask_token", "reg_token", "pos_embed"})

# Names in the trunk. Columns: this package (and timm), published files, transformers >= 5.9, original code. "{}" is the
# number of the block, "[a|b|c]" the parts that a tensor is split into. "" repeats the second column (transformers) or
# the first (original).
_TRUNK_NAMES = (
    ("cls_token", "embeddings.cls_token", "", ""),
    ("dist_token", "embeddings.distillation_token", "", ""),
    ("mask_token", "embeddings.mask_token", "", ""),
    ("pos_embed", "embeddings.position_embeddings", "", ""),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection", "", ""),
    ("blocks.{}.norm1", "encoder.layer.{}.layernorm_before", "layers.{}.layernorm_before", ""),
    (
        "blocks.{}.attn.qkv",
        "encoder.layer.{}.attention.attention.[query|key|value]",
        "layers.{}.attention.[q_proj|k_proj|v_proj]",
        "",
    ),
    ("blocks.{}.attn.proj", "encoder.layer.{}.attention.output.dense", "layers.{}.attention.o_proj", ""),
    (
        "blocks.{}.ls1.gamma",
        "encoder.layer.{}.layer_scale1.lambda1",
        "layers.{}.layer_scale1.lambda1",
        "blocks.{}.gamma_1",
    ),
    ("blocks.{}.norm2", "encoder.layer.{}.layernorm_after", "layers.{}.layernorm_after", ""),
    ("blocks.{}.mlp.fc1", "encoder.layer.{}.intermediate.dense", "layers.{}.mlp.fc1", ""),
    ("blocks.{}.mlp.fc2", "encoder.layer.{}.output.dense", "layers.{}.mlp.fc2", ""),
    ("blocks.{}.mlp.activation", "encoder.layer.{}.mlp.activation_fn", "layers.{}.mlp.activation_fn", ""),
    (
        "blocks.{}.ls2.gamma",
        "encoder.layer.{}.layer_scale2.lambda1",
        "layers.{}.layer_scale2.lambda1",
        "blocks.{}.gamma_2",
    ),
    ("norm", "layernorm", "", ""),
)  # fmt: skip

# Heads in timm and the original, with and without a distillation token. Other dialects use the names of this package.
_HEADS_OF_TWO = {"head": "cls_classifier", "head_dist": "distillation_classifier"}
_HEADS_OF_ONE = {"head": "classifier"}
_HEADS = {"head", "head_dist", "classifier", "cls_classifier", "distillation_classifier"}

# Names that only one dialect has; the first match decides. Prefixes of PyTorch wrappers are allowed.
_SIGNS = (
    (DEIT, re.compile(r"(^|\.)trunk\.")),
    (HUGGINGFACE, re.compile(r"(^|\.)encoder\.layer\.\d+\.")),
    (TRANSFORMERS, re.compile(r"(^|\.)layers\.\d+\.(attention\.[qkvo]_proj|mlp\.fc\d|layernorm_)")),
    (HUGGINGFACE, re.compile(r"(^|\.)embeddings\.(cls_token|position_embeddings|patch_embeddings)")),
    (ORIGINAL, re.compile(r"^blocks\.\d+\.gamma_[12]$")),
    (TIMM, re.compile(r"^(blocks\.\d+\.(attn|mlp|norm\d|ls\d)\.|patch_embed\.proj\.|cls_token$|pos_embed$)")),
)
# Inserted into names, at any place, by torch.compile, FSDP and activation checkpointing.
_INSERTED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Matches a tensor that every network has. Its group 1 is the prefix that training scripts add: "module." of
# DataParallel, "model." or "net." of Lightning, or the name of any other attribute.
_ANCHOR = re.compile(
    r"((?:.+?\.)??)(?:(?:(?:deit|vit)\.)?(?:trunk\.patch_embed\.proj|embeddings\.patch_embeddings\.projection)"
    r"|patch_embed\.proj)\.weight"
)
_SECOND_COPY = ("ema", "teacher", "target", "momentum", "average")  # words in prefixes of further networks in a file
_SUFFIX = r"(?P<suffix>\.weight|\.bias|\.alpha_[np]|\.beta|\.eps)?"  # those after .bias belong to learned activations
_PARTS = re.compile(r"\[([^\]]+)\]")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Place of a file's tensor within a tensor of the network.

    Attributes:
        name: Name of the tensor in the network.
        index: Number of the part along the first axis, from 0.
        count: Number of equal parts that the file splits the tensor into (3 for query, key and value).
    """

    name: str
    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class _Row:
    """One line of the table for one dialect: the names of a tensor in that dialect."""

    ours: str
    theirs: tuple[str, ...]
    our_pattern: re.Pattern[str]
    their_patterns: tuple[re.Pattern[str], ...]


def _pattern(name: str) -> re.Pattern[str]:
    numbered = re.escape(name).replace(r"\{\}", r"(?P<block>\d+)")
    return re.compile(rf"(?P<prefix>(?:.+\.)?){numbered}{_SUFFIX}")


def _expand(name: str) -> tuple[str, ...]:
    parts = _PARTS.search(name)
    return tuple(_PARTS.sub(part, name) for part in parts[1].split("|")) if parts else (name,)


def _rows(column: int) -> list[_Row]:
    rows = []
    for line in _TRUNK_NAMES:
        named = line[column] or (line[1] if column == 2 else line[0])
        theirs = _expand(named)
        rows.append(_Row(line[0], theirs, _pattern(TRUNK + line[0]), tuple(map(_pattern, theirs))))
    return rows


_TABLES = {HUGGINGFACE: _rows(1), TRANSFORMERS: _rows(2), TIMM: _rows(0), ORIGINAL: _rows(3)}

DIALECTS = tuple(_TABLES)


def detect_dialect(names: Iterable[str], *, default: str = HUGGINGFACE) -> str:
    """Returns the dialect of a file: one of `DIALECTS`, or "deit" for the names in memory here.

    Args:
        names: Names of all tensors of the file.
        default: Result if no name is specific to a dialect. Heads have the same names in `deit` and Hugging Face's
            dialects.

    Examples:
        >>> detect_dialect(["cls_token", "blocks.0.attn.qkv.weight", "head.weight"])
        'timm'
    """
    names = list(network_names(names).values())
    for dialect, sign in _SIGNS:
        if any(sign.search(name) for name in names):
            return dialect
    return default


def is_distilled(names: Iterable[str]) -> bool:
    """Returns True if a file in any dialect has a distillation token, by the names of its tensors."""
    return any(name.rpartition(".")[2] in ("dist_token", "distillation_token") for name in network_names(names))


def wrapper_of(names: Iterable[str]) -> str:
    """Returns the prefix that training scripts put in front of the network's names, such as "model." or ""."""
    found = {match[1] for match in (_ANCHOR.fullmatch(_INSERTED.sub("", name)) for name in names) if match}
    return min(found, key=lambda wrapper: (any(word in wrapper for word in _SECOND_COPY), len(wrapper)), default="")


def network_names(names: Iterable[str]) -> dict[str, str]:
    """Maps the names of the network's tensors in a file to the names without wrappers.

    If the network has a prefix, leaves out tensors without it (of the loss, of a second copy), except classifiers.

    Returns:
        Name in the file -> name in the network, still in the dialect of the file.

    Examples:
        >>> network_names(["module._orig_mod.patch_embed.proj.weight", "n_averaged"])
        {'module._orig_mod.patch_embed.proj.weight': 'patch_embed.proj.weight'}
    """
    plain = {name: _INSERTED.sub("", name) for name in names}
    wrapper = wrapper_of(plain.values())
    if not wrapper:  # includes parts of networks and other networks
        return {name: own.removeprefix("module.") for name, own in plain.items()}
    return {
        name: own.removeprefix(wrapper)
        for name, own in plain.items()
        if own.startswith(wrapper) or own.rpartition(".")[0] in _HEADS
    }


def places(names: Iterable[str], dialect: str | None = None) -> dict[str, Part]:
    """Returns, for every tensor of a file, its place in the network.

    Args:
        names: Names of all tensors of the file.
        dialect: See `detect_dialect`; None detects it.

    Returns:
        Name in the file -> part of a tensor of the network. Names that are not in the table stay unchanged.

    Examples:
        >>> places(["encoder.layer.0.attention.attention.key.bias"])["encoder.layer.0.attention.attention.key.bias"]
        Part(name='trunk.blocks.0.attn.qkv.bias', index=1, count=3)
    """
    names = list(names)
    dialect = dialect or detect_dialect(names)
    heads = _HEADS_OF_TWO if is_distilled(names) else _HEADS_OF_ONE
    own = network_names(names)
    return {name: _place(own.get(name, name), dialect, heads) for name in names}


def _place(name: str, dialect: str, heads: Mapping[str, str]) -> Part:
    if dialect == DEIT:
        return Part(name=name)
    stem, _, kind = name.rpartition(".")
    if dialect in (TIMM, ORIGINAL) and stem in heads:
        return Part(name=f"{heads[stem]}.{kind}")
    for row in _TABLES[dialect]:
        for index, pattern in enumerate(row.their_patterns):
            match = pattern.fullmatch(name)
            if match:
                own = _filled(TRUNK + row.ours, match)
                return Part(name=own, index=index, count=len(row.theirs))
    return Part(name=name)


def _filled(name: str, match: re.Match[str]) -> str:
    found = match.groupdict()
    return found["prefix"] + name.format(found.get("block")) + (found["suffix"] or "")


def name_in_trunk(name: str) -> str:
    """Returns the name of a tensor without the prefix of its trunk. Leaves names of heads unchanged.

    Examples:
        >>> name_in_trunk("deit.trunk.blocks.0.norm1.bias"), name_in_trunk("classifier.bias")
        ('blocks.0.norm1.bias', 'classifier.bias')
    """
    return name.rpartition(TRUNK)[2]


def file_names(name: str, dialect: str = HUGGINGFACE) -> list[str]:
    """Returns the names of one tensor of the network in a dialect.

    Args:
        name: Name in the network, such as `deit.trunk.blocks.0.attn.qkv.weight`.
        dialect: One of `DIALECTS`, or "deit". Names in timm and the original have no prefix before the trunk.

    Returns:
        One name, or three in the order query, key, value.

    Examples:
        >>> file_names("deit.trunk.blocks.0.norm1.bias")
        ['deit.encoder.layer.0.layernorm_before.bias']
    """
    if dialect == DEIT:
        return [name]
    stem, _, kind = name.rpartition(".")
    if dialect in (TIMM, ORIGINAL):
        for heads in (_HEADS_OF_TWO, _HEADS_OF_ONE):
            for theirs, ours in heads.items():
                if stem == ours:
                    return [f"{theirs}.{kind}"]
        before, trunk, rest = name.rpartition(TRUNK)
        if trunk and before.count(".") <= 1:
            name = TRUNK + rest
    for row in _TABLES[dialect]:
        match = row.our_pattern.fullmatch(name)
        if match:
            return [_filled(theirs, match) for theirs in row.theirs]
    return [name]  # heads, pooler and decoder have the same names everywhere


def layout(names: Iterable[str], dialect: str = HUGGINGFACE) -> dict[str, Part]:
    """Returns, for every tensor of a file to be written, its place in the network.

    Args:
        names: Names of all tensors of the network.
        dialect: See `file_names`.

    Returns:
        Name in the file -> part of a tensor of the network.
    """
    table = {}
    for name in names:
        written = file_names(name, dialect)
        for index, file_name in enumerate(written):
            table[file_name] = Part(name=name, index=index, count=len(written))
    return table


def match_prefix(found: Iterable[str], wanted: Iterable[str], base_prefix: str) -> dict[str, str]:
    """Maps network names of a file to those of a model, if one of the two is a bare trunk.

    So a model with heads can load the file of a bare trunk, and a bare trunk a file with heads.

    Args:
        found: Names in the file, translated to the network's.
        wanted: Names of all tensors of the model.
        base_prefix: Prefix of the trunk in a model with heads, such as `deit.`.

    Returns:
        Name found -> name in the model. Unknown names map to themselves.
    """
    found, wanted = list(found), set(wanted)
    file_has_prefix = any(name.startswith(base_prefix) for name in found)
    model_has_prefix = any(name.startswith(base_prefix) for name in wanted)
    if file_has_prefix and not model_has_prefix:
        return {name: name.removeprefix(base_prefix) for name in found}
    if model_has_prefix and not file_has_prefix:
        return {name: name if name in wanted else base_prefix + name for name in found}
    return {name: name for name in found}
