"""The Trainer of transformers for the models of this package: what it saves opens here and in transformers."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers.trainer import TRAINING_ARGS_NAME

from deit.models.pretrained import PreTrainedModel


class Trainer(transformers.Trainer):
    """`transformers.Trainer`, with the same arguments, which saves the models of this package by `save_pretrained`.

    transformers' own Trainer calls `save_pretrained` for models of transformers and PEFT alone. Of any other it writes
    the tensors under their names in memory and no `config.json`: other programs then open the checkpoint with other
    numbers, or not at all. Here each checkpoint, the best model and what is pushed have the published names and a
    configuration. All else is transformers': resuming, `load_best_model_at_end`, callbacks, logging.

    Models that are not of this package are saved as transformers does.

    Examples:
        >>> model = DeiTForImageClassification(DeiTConfig(hidden_size=32, num_attention_heads=2))  # doctest: +SKIP
        >>> Trainer(model, TrainingArguments("run"), train_dataset=images).train()  # doctest: +SKIP
    """

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(model, PreTrainedModel):
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder = Path(str(self.args.output_dir if output_dir is None else output_dir))
        model.save_pretrained(folder, state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)  # with the weights, as transformers
