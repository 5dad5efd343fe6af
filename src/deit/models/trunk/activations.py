"""The activations that a configuration can name, with the values of transformers' activations of the same names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deit.core.errors import UserError

Activation = Callable[[Tensor], Tensor]

# Functions have names of their own, not `lambda`: a model that holds one can be pickled.


def tanh_gelu(x: Tensor) -> Tensor:
    """The Gaussian error linear unit with its usual approximation by tanh."""
    return F.gelu(x, approximate="tanh")


def sigmoid_gelu(x: Tensor) -> Tensor:
    """The Gaussian error linear unit approximated by a sigmoid."""
    return x * torch.sigmoid(1.702 * x)


def clipped_gelu(x: Tensor) -> Tensor:
    """The Gaussian error linear unit, cut at 10."""
    return F.gelu(x).clamp(-10.0, 10.0)


def laplace(x: Tensor) -> Tensor:
    """The distribution function of a normal variable whose mean and deviation are those of MEGA's attention."""
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def squared_relu(x: Tensor) -> Tensor:
    """The square of the positive part."""
    return F.relu(x).square()


def root_softplus(x: Tensor) -> Tensor:
    """The square root of the softplus."""
    return F.softplus(x).sqrt()


def identity(x: Tensor) -> Tensor:
    """The input itself."""
    return x


class XIELU(nn.Module):
    """A learned activation: a parabola for positive numbers, an exponential for the others (arXiv 2411.13010).

    Both sides have a learned strength, kept as the number whose softplus it is; they start at 0.8.
    """

    def __init__(self) -> None:
        super().__init__()
        # In bfloat16, as in transformers. The last two are constants that its files hold too.
        self.alpha_p = nn.Parameter(torch.empty(1, dtype=torch.bfloat16))
        self.alpha_n = nn.Parameter(torch.empty(1, dtype=torch.bfloat16))
        self.beta = nn.Parameter(torch.tensor(0.5).bfloat16(), requires_grad=False)
        self.eps = nn.Parameter(torch.tensor(-1e-6).bfloat16(), requires_grad=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gives the parameters the values that they start with."""
        positive, negative = torch.tensor([0.8, 0.8 - 0.5]).bfloat16().expm1().log()
        for parameter, value in zip(self.parameters(), (positive, negative, 0.5, -1e-6), strict=True):
            parameter.fill_(value)

    def forward(self, x: Tensor) -> Tensor:
        """Acts on each number alone."""
        positive = F.softplus(self.alpha_p) * x.square()
        negative = (torch.minimum(x, self.eps).expm1() - x) * (self.beta + F.softplus(self.alpha_n))
        return torch.where(x > 0, positive, negative) + self.beta * x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_10": clipped_gelu,
    "gelu_accurate": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_new": tanh_gelu,
    "gelu_python": F.gelu,
    "gelu_python_tanh": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "hardswish": F.hardswish,
    "laplace": laplace,
    "leaky_relu": F.leaky_relu,
    "linear": identity,
    "mish": F.mish,
    "quick_gelu": sigmoid_gelu,
    "relu": F.relu,
    "relu2": squared_relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sqrtsoftplus": root_softplus,
    "swish": F.silu,
    "tanh": torch.tanh,
}
# These hold parameters, so each block has its own.
LEARNT_ACTIVATIONS: dict[str, type[nn.Module]] = {"prelu": nn.PReLU, "xielu": XIELU}


def find_activation(activation: str | Activation) -> Activation:
    """Returns an activation by its name in configurations; a function is returned as it is.

    Raises:
        ValueError: The name is unknown.
    """
    if not isinstance(activation, str):
        return activation
    if activation in LEARNT_ACTIVATIONS:
        return LEARNT_ACTIVATIONS[activation]()
    if activation not in ACTIVATIONS:
        known = ", ".join((*ACTIVATIONS, *LEARNT_ACTIVATIONS))
        raise UserError(f"Unknown activation {activation!r}. Known: {known}.")
    return ACTIVATIONS[activation]
