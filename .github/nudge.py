"""smwm.py with initial weights a millionth larger: how far does a score depend on rounding?

    python .github/nudge.py train --env cube --seed 1 --out runs/nudged

Data, batches, tasks and all settings are those of smwm.py. Rounding errors differ, as they do
between a CPU and a GPU. `samples.py` averages both runs over sets of CEM's random samples.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import smwm  # noqa: E402

build_model = smwm.build_model


@torch.no_grad()
def nudged(*args) -> smwm.WorldModel:
    model = build_model(*args)
    for weight in model.parameters():
        weight.mul_(1 + 1e-6)
    return model


smwm.build_model = nudged
if __name__ == "__main__":
    sys.exit(smwm.main())
