"""smwm.py with two convolutions more in the encoder, 3 x 3 ones on sides of 16 and of 8.

    python .github/deeper.py train --env grasps --networks deeper --frames 800000 --steps 16000

NOTES.md (Encoder) has what it changes in Cube on grasps and in Push-T.
"""

import sys

import grasps  # noqa: F401, adds its environment and makes smwm importable
import torch
from torch import nn

import smwm


class Deeper(smwm.Encoder):
    def __init__(self, *, size: int, width: int):
        super().__init__(size=size, width=width)
        first, c, layers = size // 16, width // 8, []
        stages = (3, c, first), (c, c, 1), (c, 2 * c, 2), (2 * c, 2 * c, 1), (2 * c, 4 * c, 2)
        for n_in, n_out, stride in stages:
            half = (stride + 1) // 2
            conv = nn.Conv2d(n_in, n_out, stride + 2 * half, stride=stride, padding=half)
            layers += [conv, nn.BatchNorm2d(n_out), nn.GELU()]
        self.convs = nn.Sequential(*layers).to(memory_format=torch.channels_last)


smwm.NETWORKS["deeper"] = (Deeper, smwm.ForwardModel)
if __name__ == "__main__":
    sys.exit(smwm.main())
