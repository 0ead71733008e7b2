"""smwm.py with two convolutions more in the encoder, 3 x 3 ones on sides of 16 and of 8.

    python .github/deeper.py train --env cube --networks deeper --decay 0.5 --steps 16000

NOTES.md (Encoder) has what it changes in Cube's former data and in Push-T.
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import smwm  # noqa: E402


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
