"""The linear layer of the attention modules."""

from torch import Tensor, nn

from subquad import functional


class Projection(nn.Linear):
    """``nn.Linear`` over the library's matrix product.

    Same parameters, same numbers to rounding, as ``torch.nn.Linear``; on the CPU
    forward and backward take the faster of the two libraries PyTorch carries.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        return functional.projection(input, self.weight, self.bias)
