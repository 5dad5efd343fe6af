"""What two heads answer with together."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deit.core.config.vision_transformer import VisionTransformerConfig


def average_heads(first: Tensor, second: Tensor, config: VisionTransformerConfig) -> Tensor:
    """Returns the logits (B, K) of two heads together, by `config.head_average`.

    Args:
        first: Logits (B, K) of the class head.
        second: Logits (B, K) of the distillation head.
        config: For several labels, "probabilities" averages the outputs of the sigmoid; for regression both are one.

    Returns:
        The mean of the logits; or logits whose softmax (sigmoid) is the mean of the heads' softmax (sigmoid) outputs.
    """
    numbers = config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1)
    if config.head_average == "logits" or numbers:
        return (first + second) / 2
    if config.problem_type == "multi_label_classification":
        yes = torch.logaddexp(F.logsigmoid(first), F.logsigmoid(second))
        return yes - torch.logaddexp(F.logsigmoid(-first), F.logsigmoid(-second))
    return torch.logaddexp(F.log_softmax(first, dim=-1), F.log_softmax(second, dim=-1)) - math.log(2)
