"""How far success depends on CEM's random samples: python .github/samples.py RUN [TIMES]

Model and tasks are those of `smwm.py evaluate RUN`; each time the planner draws other samples. It
plans on a GPU where there is one, so a run that was trained on a CPU can be compared there.
"""

import sys
from functools import partial

import deeper  # noqa: F401, adds its networks and makes smwm importable
import torch

import smwm


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, s, _ = smwm.load_checkpoint(sys.argv[1], device)
    data, plan = smwm.open_dataset(s.data), smwm.plan

    def plan_anew(*args, seed, shift, **sizes):
        return plan(*args, seed=seed + 1000 * shift, **sizes)

    for shift in range(int(sys.argv[2]) if len(sys.argv) > 2 else 5):
        smwm.plan = partial(plan_anew, shift=shift)  # 0: the samples of `evaluate`
        solved = smwm.evaluate_planning(model, data, s)["solved"] >= 0
        print(f"{sys.argv[1]}, {device}, samples {shift}: {100 * solved.mean():.1f}%", flush=True)


if __name__ == "__main__":
    main()
