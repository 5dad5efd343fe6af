"""What the name of a model stands for: a path of this machine, a name on the model hub, or `timm/NAME`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deit.core.errors import UserError, shown
from deit.core.files import at_home
from deit.core.hub import local_path
from deit.runtime.library_order import make_order_safe

_TIMM = "timm/"


def timm_name(name_or_path: str | os.PathLike[str]) -> str | None:
    """Returns NAME of the text `timm/NAME`, unless something of that path is on this machine; else None.

    NAME is an architecture of timm; where weights are meant as well, those that timm takes for it. A tag chooses
    others: "resnet50.a2_in1k".
    """
    if not isinstance(name_or_path, str) or not name_or_path.startswith(_TIMM) or os.path.exists(name_or_path):
        return None
    return name_or_path.removeprefix(_TIMM) or None


def published_cfg(name: str) -> Any:
    """Returns timm's `PretrainedCfg` of the weights that it takes for a name.

    Raises:
        UserError: timm has no such model, or none with weights.
    """
    make_order_safe()
    import timm

    try:
        cfg: Any = timm.get_pretrained_cfg(name)
        known = timm.is_model(name)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:  # an unknown tag, and odd texts
        raise UserError(f"timm cannot build {shown(name)} ({error}). See timm.list_models().") from error
    if not known:
        raise UserError(f"timm cannot build {shown(name)} (no such architecture). See timm.list_models().")
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise UserError(f"timm has published no weights of {shown(name)}. See timm.list_models(pretrained=True).")
    return cfg


def published_place(name_or_path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Returns a name on the hub for `timm/NAME`: of the weights that timm takes for NAME. Anything else stays.

    Without timm, and for a tag that it does not know, the text is taken for the name on the hub, which those that timm
    publishes itself have.

    Raises:
        UserError: timm has no such model, none with weights, or only some in a form of others.
    """
    name = timm_name(name_or_path)
    if name is None:
        return name_or_path
    try:
        cfg = published_cfg(name)
    except ModuleNotFoundError:
        return name_or_path
    except UserError:
        if "." in name:
            return name_or_path
        raise
    if not cfg.hf_hub_id or cfg.hf_hub_filename:
        raise UserError(
            f"The weights that timm takes for {shown(name)} are not in its own form, so they can only teach "
            "(--teacher). Choose others, see timm.list_models(pretrained=True), or save them with "
            "timm.models.save_for_hf and pass that folder."
        )
    return str(cfg.hf_hub_id)


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """Returns the folder or weight file of this machine that a name or path stands for; names are downloaded first.

    Args:
        name_or_path: A path, in which a leading ~ is the home folder; a short name of `deit.list_models()`; a name on
            the model hub; or `timm/NAME`, see `timm_name`.

    Raises:
        FileNotFoundError: There is nothing of that path or name.
        PermissionError: The hub wants another token.
        ConnectionError: The hub cannot be reached and the model is not in the cache.
        ModuleNotFoundError: huggingface_hub is not installed.
        UserError: See `published_place`.
    """
    given = at_home(name_or_path) if isinstance(name_or_path, str) else name_or_path
    return local_path(published_place(given))
