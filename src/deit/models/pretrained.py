"""Loads and saves models as model directories in the published Hugging Face layout."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.config.vision_transformer import VisionTransformerConfig
from deit.core.errors import UserError, WrongTypeError
from deit.core.hub import upload_folder
from deit.core.model_directory import published_files
from deit.core.weights.files import number_of_bytes
from deit.models.configured_model import ConfiguredModel
from deit.models.trunk.construction import mark_as_initialized
from deit.models.trunk.split_qkv import join_tensors, split_tensors
from deit.models.weights.from_pretrained import open_model
from deit.models.weights.loading import published_tensors, refuse_incompatible, save_model, translate_state

Model = TypeVar("Model", bound="PreTrainedModel")


class PreTrainedModel(ConfiguredModel):
    """A model that is opened and saved as a model directory.

    `DeiTPreTrainedModel` and `ViTPreTrainedModel` are its kinds.
    """

    # --- saving --------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        safe_serialization: bool = True,
        max_shard_size: int | str = "5GB",
        variant: str | None = None,
        save_function: Callable[..., Any] | None = None,
        save_original_format: bool = True,
        push_to_hub: bool = False,
        **upload: Any,
    ) -> None:
        """Writes `config.json` and the weights into a folder, in the published layout; transformers can open it.

        A reader sees the old files or the new ones, never a part of one. Weight files that an earlier call left in the
        folder are removed.

        Args:
            save_directory: Folder, made if missing.
            is_main_process: False writes nothing: of several processes only one shall.
            state_dict: Weights to write in place of the model's own, under the names of `self.state_dict()`.
            safe_serialization: False writes `pytorch_model.bin` in place of `model.safetensors`.
            max_shard_size: Largest size of a file, such as "5GB" or a number of bytes; more goes to several files.
            variant: Writes `model.VARIANT.safetensors`.
            save_function: Accepted from scripts of accelerate, whose function writes on the main process only; here
                `is_main_process` says so, and files are always written whole by safetensors or PyTorch.
            save_original_format: Must be True: the published names are the ones that every version reads.
            push_to_hub: Also upload the files of the model in the folder, see `core.model_directory.PUBLISHED_FILES`.
            **upload: Arguments of `push_to_hub`; `repo_id` is the name of the folder when it is not given.

        Raises:
            ValueError: `save_original_format` is False.
            NotADirectoryError: There is a file of that name.
            TypeError: An argument is unknown.
        """
        upload.pop("save_peft_format", None)  # of transformers, about models that are not ours
        if not save_original_format:
            raise UserError("save_original_format=False is not supported: files get the published names.")
        if not push_to_hub:
            upload.pop("token", None)
        if upload and not push_to_hub:
            raise WrongTypeError(f"save_pretrained does not know the argument {next(iter(upload))!r}.")
        if not is_main_process:
            return
        folder = Path(save_directory)
        save_model(
            self,
            folder,
            published_tensors(join_tensors(self.state_dict() if state_dict is None else state_dict, self._qkv_names)),
            safe_serialization=safe_serialization,
            most_bytes=number_of_bytes(max_shard_size),
            variant=variant,
        )
        if push_to_hub:
            upload["tags"] = self._with_tags(upload.get("tags"))
            upload_folder(folder, upload.pop("repo_id", folder.name), files=published_files(folder)[0], **upload)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model",
        commit_description: str = "",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: Sequence[str] | str | None = None,
        **saving: Any,
    ) -> str:
        """Uploads configuration and weights to the model hub, through huggingface_hub.

        Args:
            repo_id: Name on the hub, such as "me/my-deit"; made if it is missing.
            commit_message: Says what the upload is.
            commit_description: Says more of it.
            private: Whether only its owner may see a new repository; None leaves the owner's default.
            token: Access token; None takes the one stored by `hf auth login`.
            revision: Branch to upload to, which must exist.
            create_pr: Propose the upload in place of making it.
            tags: Words that the model is found by, with those of `add_model_tags`: added to the card on the hub,
                or to a new one.
            **saving: `safe_serialization`, `max_shard_size` and `variant` of `save_pretrained`.

        Returns:
            The address of the commit.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder, **saving)
            return upload_folder(
                folder,
                repo_id,
                files=published_files(folder)[0],
                commit_message=commit_message,
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                tags=self._with_tags(tags),
            )

    # --- loading -------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: VisionTransformerConfig | str | os.PathLike[str] | None = None,
        dtype: torch.dtype | str | None = "auto",
        device_map: Any = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Opens a model directory, a weight file or a model on the hub; it is returned in evaluation mode.

        Weights may be in any dialect: published, transformers', timm's or the original release's. Heads that the file
        does not hold start anew and are named in a warning; any other missing tensor is an error, unless
        `output_loading_info` asks for the list. The memory that is used is the model's own: no second copy is made.

        Args:
            pretrained_model_name_or_path: Model directory, as `save_pretrained`, transformers or timm writes it; a
                `.safetensors`, `.bin` or `.pth` file; a name on the hub; a short name of `deit.list_models()`. None
                with `config` and `state_dict`.
            *model_args: Passed to the constructor.
            config: Replaces the directory's configuration.
            dtype: A torch type or its name; "auto" takes the file's, None float32.
            device_map: The device to load to: its name or number, {"": device}, or "auto".
            ignore_mismatched_sizes: Let tensors of another shape (a new number of classes) start anew.
            output_loading_info: Also return what did not match: a dict of sets. Every tensor that is missing from the
                file then starts anew, as in transformers, and is named in `missing_keys` and in a warning.
            **kwargs: Fields of the configuration that override it; `state_dict`, `subfolder`, `variant`,
                `use_safetensors` (see `deit.models.weights.from_pretrained.FileOptions`); `revision`, `token`,
                `cache_dir`, `local_files_only`, `force_download` (see `deit.core.hub.HubOptions`); others are passed to
                the constructor. `low_cpu_mem_usage=False` reads every tensor; else, on the CPU, those that need no
                change are views of the file, read when they are first used: the file may then be replaced or removed
                while the model lives, but not changed in place. `trust_remote_code` changes nothing: no code is loaded.

        Returns:
            The model, or (model, loading info).

        Raises:
            OSError: The folder or a file of it is missing, or the hub cannot be reached.
            TypeError: An argument is unknown.
            ValueError: A file is damaged, holds code, is quantized or belongs to another architecture, or shapes differ
                (then a RuntimeError, too, as in transformers).
            RuntimeError: It is called where torch's default device is "meta".
        """
        dtype = kwargs.pop("torch_dtype", dtype)
        placing = {"dtype": dtype, "device_map": device_map, "ignore_mismatched_sizes": ignore_mismatched_sizes}
        # Who asks what did not match is told; everybody else is not given a trunk of random weights.
        placing["may_lack_trunk"] = output_loading_info
        model, info = open_model(cls, pretrained_model_name_or_path, model_args, config, kwargs, **placing)
        mark_as_initialized(model)
        return (model, info.to_dict()) if output_loading_info else model

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Copies tensors into the model, as `torch.nn.Module.load_state_dict`; every dialect is accepted.

        Args:
            state_dict: Under the names of the model, or of published files, transformers, timm or the original code.
            strict: Whether missing and unexpected names are an error.
            assign: Take the tensors themselves in place of copies.

        Returns:
            A named tuple (missing_keys, unexpected_keys), in the names of the state dict's dialect.

        Raises:
            RuntimeError: Names or shapes do not match; the model is then as it was, unless the names are its own.
        """
        own = self.state_dict()
        current = join_tensors(own, self._qkv_names)
        split = len(current) < len(own)
        translated = translate_state(state_dict, current, f"{self.base_model_prefix}.")
        if translated is None:
            tensors = split_tensors(state_dict, self._qkv_names) if split else join_tensors(state_dict, self._qkv_names)
            return super().load_state_dict(tensors, strict=strict, assign=assign)
        refuse_incompatible(self, translated, current, strict)
        tensors = split_tensors(translated.tensors, self._qkv_names) if split else translated.tensors
        result = super().load_state_dict(tensors, strict=False, assign=assign)
        return type(result)(translated.missing_keys, translated.unexpected_keys)


class DeiTPreTrainedModel(PreTrainedModel):
    """What all DeiT models share; see `PreTrainedModel`."""

    config_class = DeiTConfig
    base_model_prefix = "deit"
    config: DeiTConfig


class ViTPreTrainedModel(PreTrainedModel):
    """What all ViT models share; see `PreTrainedModel`."""

    config_class = ViTConfig
    base_model_prefix = "vit"
    config: ViTConfig
