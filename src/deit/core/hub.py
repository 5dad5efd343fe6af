"""Downloads models from the Hugging Face Hub, and uploads them.

Everything that goes over the network goes through huggingface_hub, which brings the cache (`HF_HOME`), the offline
mode (`HF_HUB_OFFLINE`), mirrors (`HF_ENDPOINT`) and tokens. Only data is fetched: configuration, preprocessing and
weights; safetensors, and pickles only where there is nothing else (they are then read as data, never run).
"""

from __future__ import annotations

import difflib
import glob
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from deit.core.errors import UserError, parsing
from deit.core.file_names import (
    CALIBRATION_NAME,
    CARD_NAME,
    CLOUDS_NAME,
    CONFIG_NAME,
    PREPROCESSOR_NAME,
    PROCESSOR_NAME,
)
from deit.core.printable import markdown_text
from deit.core.published import VARIANTS

_PROCESSOR_FILES = (PREPROCESSOR_NAME, PROCESSOR_NAME)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".pkl", ".bin", ".safetensors", ".json", ".h5", ".npz", ".onnx")


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """Options of a download, named as the arguments of `from_pretrained`.

    Attributes:
        revision: Branch, tag or commit; None takes the main branch. Name a commit to get the same files for ever.
        token: Access token; True takes the one stored by `hf auth login`, False sends none.
        cache_dir: Where downloads are kept; None takes huggingface_hub's folder.
        local_files_only: Use what is in the cache and ask nobody.
        force_download: Download again what is in the cache.
        proxies: Accepted for old callers; huggingface_hub reads `HTTPS_PROXY` and the like by itself.
    """

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False
    proxies: Mapping[str, str] | None = None

    @classmethod
    def take_from(cls, kwargs: dict[str, Any]) -> HubOptions:
        """Removes the options from keyword arguments and returns them; `use_auth_token` is the old name of `token`."""
        if "use_auth_token" in kwargs:
            kwargs.setdefault("token", kwargs["use_auth_token"])
            del kwargs["use_auth_token"]
        taken = {name: kwargs.pop(name) for name in cls.__dataclass_fields__ if name in kwargs}
        options = cls(**taken)
        if options.proxies:
            warnings.warn(
                "proxies is not used: huggingface_hub takes them from the environment (HTTPS_PROXY).", stacklevel=3
            )
        return options


def is_hub_name(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a string names a model on the hub.

    An existing file or folder of that name takes precedence. A path object is always a path.
    """
    if not isinstance(name_or_path, str) or os.path.exists(name_or_path):
        return False
    if name_or_path in VARIANTS:
        return True
    return bool(_NAME.fullmatch(name_or_path)) and not name_or_path.lower().endswith(_FILE_SUFFIXES)


def local_path(
    name_or_path: str | os.PathLike[str],
    *,
    need: str = "weights",
    options: HubOptions | None = None,
    subfolder: str = "",
    variant: str | None = None,
    use_safetensors: bool | None = None,
) -> Path:
    """Returns the local folder or file of a model. Downloads it if it is a name on the hub.

    Args:
        name_or_path: Folder or file; a short name of `VARIANTS` such as "deit-tiny-patch16-224"; or a name on the
            hub such as "facebook/deit-tiny-patch16-224".
        need: "config", "processor" or "weights" (which include the other two).
        options: How to ask the hub.
        subfolder: Folder inside the model's.
        variant: As in `model.VARIANT.safetensors`.
        use_safetensors: True never fetches pickles, False fetches nothing else, None prefers safetensors.

    Returns:
        An existing path, `subfolder` included.

    Raises:
        FileNotFoundError: There is nothing of that path or name.
        PermissionError: The hub wants another token.
        ConnectionError: The hub cannot be reached and the model is not in the cache.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    if is_hub_name(name_or_path):
        name = str(name_or_path)
        groups = _file_groups(need, subfolder, variant, use_safetensors)
        folder = _download(_hub_name(name), groups, options or HubOptions())
    else:
        folder = Path(name_or_path)
        if not folder.exists():
            raise FileNotFoundError(f"No model directory at {folder}.{_hint(name_or_path)}")
    if subfolder:
        folder = folder / subfolder
        if not folder.is_dir():
            raise FileNotFoundError(f"No folder {subfolder!r} in {folder.parent}.")
    return folder


def _hub_name(name: str) -> str:
    if name not in VARIANTS:
        return name
    source = VARIANTS[name].source
    if source is None:
        raise FileNotFoundError(f"No weights of {name!r} were published. Train it, or choose another model.")
    return source


def _hint(name_or_path: str | os.PathLike[str]) -> str:
    if not isinstance(name_or_path, str) or os.sep in name_or_path:
        return ""
    near = difflib.get_close_matches(name_or_path, VARIANTS, n=1, cutoff=0.4)
    meant = f" Did you mean the published model {near[0]!r}?" if near else ""
    return f"{meant} See deit.list_models() for the short names."


def _file_groups(need: str, subfolder: str, variant: str | None, use_safetensors: bool | None) -> list[tuple[str, ...]]:
    """Returns groups of file patterns to download. A later group is used only if the earlier ones had no weights."""
    prefix = f"{subfolder}/" if subfolder else ""
    small = {"config": (CONFIG_NAME,), "processor": (*_PROCESSOR_FILES, CONFIG_NAME)}
    if need in small:
        return [tuple(prefix + name for name in small[need])]
    extra = f".{variant}" if variant else ""
    kinds = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}
    wanted = ["safetensors", "bin"] if use_safetensors is None else ["safetensors" if use_safetensors else "bin"]
    groups = []
    for kind in wanted:
        stem, suffix = kinds[kind]
        names = (
            f"{stem}{extra}.{suffix}",
            f"{stem}.{suffix}.index{extra}.json",
            f"{stem}{extra}-*-of-*.{suffix}",
            f"{stem}-*-of-*{extra}.{suffix}",
        )
        small_files = (CONFIG_NAME, *_PROCESSOR_FILES, CALIBRATION_NAME, CLOUDS_NAME)
        groups.append(tuple(prefix + name for name in (*small_files, *names)))
    return groups


def _download(name: str, groups: list[tuple[str, ...]], options: HubOptions) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name!r} is a name on the model hub, which needs the 'huggingface_hub' package. Install it with: "
            'pip install "deit[hub]". Or pass the path of a local copy of the model directory.',
            name=error.name,
        ) from error
    arguments: dict[str, Any] = {
        "revision": options.revision,
        "token": options.token,
        "cache_dir": options.cache_dir,
        "local_files_only": options.local_files_only,
        "force_download": options.force_download,
    }
    folder = Path()
    try:
        for patterns in groups:
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), **arguments))
            if any(_is_weight_file(file) for file in folder.rglob("*")):
                break
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"The model {name!r} has no revision {options.revision!r}.") from error
    except errors.GatedRepoError as error:
        raise PermissionError(f"Access to {name!r} must be granted first, on its page. Then pass token=.") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no model {name!r} on the hub, or it is private. Check the name, or pass token=."
        ) from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(f"No folder {name!r} here, and it cannot be a name on the hub ({error}).") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise _unreachable(name, error, options) from error
    return folder


def _unreachable(name: str, error: Exception, options: HubOptions) -> OSError:
    status = _status(error)
    if status in (401, 403):
        return PermissionError(f"The hub refuses access to {name!r} (error {status}). Pass another token=.")
    if options.local_files_only:
        reason = "local_files_only=True forbids to download it"
    elif os.environ.get("HF_HUB_OFFLINE"):
        reason = "HF_HUB_OFFLINE forbids to download it"
    else:
        reason = f"the hub cannot be reached ({type(error.__cause__ or error).__name__})"
    return ConnectionError(
        f"{name!r} is not in the local cache and {reason}. Copy the model's files (config.json, "
        "preprocessor_config.json, model.safetensors) into a folder and pass its path in place of the name."
    )


def _status(error: Exception) -> int | None:
    """Returns the HTTP status of the hub's answer, if there was one."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _is_weight_file(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin") and file.name.startswith(("model", "pytorch_model"))


def upload_folder(
    folder: Path,
    name: str,
    *,
    files: Sequence[str],
    commit_message: str = "Upload model",
    commit_description: str = "",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] = (),
) -> str:
    """Uploads files of a folder to the hub. Creates the repository if it does not exist.

    Args:
        folder: Where they are.
        name: Repository, such as "me/my-deit"; without an owner it is the token's.
        files: Names of the files in the folder; nothing else is uploaded.
        commit_message: Says what the upload is.
        commit_description: Further text.
        private: Whether only its owner may see a new repository; None leaves the owner's default.
        token: See `HubOptions`.
        revision: Branch to upload to, which must exist; None takes the main branch.
        create_pr: Propose the upload in place of making it.
        tags: Words that the model is found by, added to those of its card: the folder's `README.md`, else the hub's,
            else a new one. It is written into the folder.

    Returns:
        The address of the commit.

    Raises:
        ModuleNotFoundError: huggingface_hub is not installed.
        ValueError: `name` cannot be a name on the hub.
        FileNotFoundError: There is no such branch.
        PermissionError: The hub wants a token, or another one.
        ConnectionError: The hub cannot be reached or fails.
    """
    huggingface_hub, failures = _uploading()
    try:
        repository = huggingface_hub.create_repo(name, private=private, token=token, exist_ok=True)
        if tags:
            _write_tags(folder, repository.repo_id, tags, token)
            files = [*files, CARD_NAME]
        commit = huggingface_hub.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            commit_message=commit_message,
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
            allow_patterns=[glob.escape(file) for file in files],
        )
    except failures as error:
        raise _not_uploaded(name, revision, error) from error
    return str(commit)


def _uploading() -> tuple[Any, tuple[type[Exception], ...]]:
    """Returns huggingface_hub and the exceptions that its requests raise."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        message = "push_to_hub needs the 'huggingface_hub' package. Install it with: pip install \"deit[hub]\""
        raise ModuleNotFoundError(message, name=error.name) from error
    # OSError, and what the HTTP library raises by itself: which library that is depends on huggingface_hub's version.
    http_errors = cast("tuple[type[Exception], ...]", errors.HfHubHTTPError.__bases__)
    return huggingface_hub, (errors.HFValidationError, *http_errors)


def _write_tags(folder: Path, name: str, tags: Sequence[str], token: str | bool | None) -> None:
    import huggingface_hub
    from huggingface_hub import ModelCard, errors

    file = folder / CARD_NAME
    try:
        path = file if file.is_file() else huggingface_hub.hf_hub_download(name, CARD_NAME, token=token)
        with parsing(Path(path), "a model card"):
            card = ModelCard.load(path)
    except errors.EntryNotFoundError:
        title = markdown_text(name.rpartition("/")[2])
        card = ModelCard(f"---\nlibrary_name: transformers\n---\n\n# {title}\n")  # transformers opens the files, too
    card.data.tags = list(dict.fromkeys([*(card.data.tags or ()), *tags]))
    card.save(file)


def _not_uploaded(name: str, revision: str | None, error: Exception) -> Exception:
    """Converts an error of huggingface_hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return UserError(f"{name!r} cannot be a name on the hub ({error}). Pass one such as 'me/my-deit'.")
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{name!r} has no branch {revision!r} on the hub. Make it first.")
    status = _status(error)
    if status in (401, 403):
        return PermissionError(
            f"The hub refuses to take {name!r} (error {status}). Log in with `hf auth login`, or pass another token, "
            "which may write there."
        )
    reason = f"error {status}" if status else f"{type(error).__name__}: {error}"
    return ConnectionError(f"Nothing was uploaded to {name!r}: the hub cannot be reached or fails ({reason}).")
