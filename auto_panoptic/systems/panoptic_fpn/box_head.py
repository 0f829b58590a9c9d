"""Box head of fully connected layers with GroupNorm."""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from fvcore.nn import weight_init
from torch import nn


@ROI_BOX_HEAD_REGISTRY.register()
class GroupNormBoxHead(nn.Sequential):
    """Flatten, then ``num_fc`` times: linear without bias -> GroupNorm(32) -> ReLU (reference code).

    (R, C, S, S) -> (R, fc_dim); R may be 0.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, num_fc: int, fc_dim: int):
        """``input_shape`` is that of the pooled region features; ``fc_dim`` is a multiple of 32.

        Raises:
            ValueError: ``fc_dim`` cannot be divided into 32 groups, or there is no layer.
        """
        super().__init__()
        if num_fc < 1 or fc_dim < 1 or fc_dim % 32:
            raise ValueError(
                f"a box head of {num_fc} layers with {fc_dim} outputs: it needs at least one layer, and a "
                "multiple of 32 outputs (GroupNorm)"
            )
        size = input_shape.channels * input_shape.height * input_shape.width
        self.add_module("flatten", nn.Flatten())
        for i in range(1, num_fc + 1):
            fc = nn.Linear(size, fc_dim, bias=False)
            weight_init.c2_xavier_fill(fc)
            self.add_module(f"fc{i}", fc)
            self.add_module(f"norm{i}", nn.GroupNorm(32, fc_dim, eps=1e-5))
            self.add_module(f"relu{i}", nn.ReLU(inplace=True))
            size = fc_dim
        self._output_size = size

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {
            "input_shape": input_shape,
            "num_fc": cfg.MODEL.ROI_BOX_HEAD.NUM_FC,
            "fc_dim": cfg.MODEL.ROI_BOX_HEAD.FC_DIM,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """ShapeSpec with the number of output channels."""
        return ShapeSpec(channels=self._output_size)
