"""smwm.py with other rounding errors: how far does a score depend on them?

    KIND=nudge python .github/rounding.py train --env pusht --seed 1 --out runs/nudged-pusht-s1

KIND is `nudge` (initial weights a millionth larger), `float32`, `sums` (a GPU adds up the products
of bf16 numbers in float32 only) or `exact` (pixels divided by 256, which bf16 holds exactly). Data,
batches, tasks and settings are those of smwm.py. To plan with other samples (samples.py):

    PYTHONPATH=.github KIND=nudge python -c "import rounding, samples; samples.main()" RUN 4
"""

import os
import sys

import deeper  # noqa: F401, adds its networks and makes smwm importable
import torch

import smwm

KIND, build_model = os.environ["KIND"], smwm.build_model


def exact(encoder, inputs):
    pixels = (inputs[0].float() * 255).round()  # 0 to 255 again
    return (pixels / 256).to(inputs[0].dtype)


@torch.no_grad()
def rounded_otherwise(s, action_dim: int, bf16: bool) -> smwm.WorldModel:
    model = build_model(s, action_dim, bf16 and KIND != "float32")
    for weight in model.parameters() if KIND == "nudge" else ():
        weight.mul_(1 + 1e-6)
    if KIND == "exact":
        model.encoder.register_forward_pre_hook(exact)
    return model


smwm.build_model = rounded_otherwise
if KIND == "sums":
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
if __name__ == "__main__":
    sys.exit(smwm.main())
