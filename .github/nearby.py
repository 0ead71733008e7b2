"""Cube by the distance between hand and cube, below and above 5 cm: python .github/nearby.py RUN

Prints how well linear probes of each part's frames read the cube's x, y, z, how many of the tasks
that start in each part RUN has solved (those solved at the start left out), and in how many of the
failures the first plan costs less than the recorded actions, which lead to the goal. Where it does,
the planner has searched well enough and the forward model is wrong about one of the two.
"""

import sys
from pathlib import Path

import deeper  # noqa: F401, adds its networks and makes smwm importable
import numpy as np
import torch

import smwm


def near(states: np.ndarray) -> np.ndarray:
    return np.linalg.norm(states[:, :3] - states[:, 7:10], axis=1) < 0.05


@torch.inference_mode()
def main() -> None:
    run = Path(sys.argv[1])
    model, s, _ = smwm.load_checkpoint(run)
    data, rng = smwm.open_dataset(s.data), np.random.default_rng(0)
    splits = {"train": 25_000, "test": 5_000}  # the frames of the probes
    rows = [np.sort(rng.permutation(data.windows(x, 0))[:n]) for x, n in splits.items()]
    latents = [smwm.encode_all(model, data.frames, part) for part in rows]
    arrays = np.load(run / "evaluation.npz")
    solved, states = arrays["solved"], arrays["states"]
    starts = states[:, states.shape[1] - 1 - 2 * s.goal_offset]
    rng = np.random.default_rng(s.seed)  # the tasks of evaluate_planning
    lead = s.block * max(2, s.history - 1)
    tasks = lead + rng.permutation(data.windows("test", lead + s.goal_offset))[: s.tasks]

    def cost(i: int, acts: torch.Tensor) -> float:
        z, goal = (model.encode(data.frames[[row]]) for row in (tasks[i], tasks[i] + s.goal_offset))
        acts = model.standardise(acts.reshape(1, s.horizon, -1))
        return float((model.rollout(z[:, None], acts[:, :0], acts)[:, -1] - goal).square().sum())

    for name, sign in (("near", True), ("far", False)):
        some = [near(data.states[part]) == sign for part in rows]
        x, x_test = smwm.standardise_by_train(*(z[m] for z, m in zip(latents, some, strict=True)))
        cube = [
            torch.from_numpy(data.states[part[m], :3]) for part, m in zip(rows, some, strict=True)
        ]
        y, y_test = smwm.standardise_by_train(*cube)
        read = smwm.linear_probe(x, y, x_test)
        scores = [round(smwm.r2(read[:, [i]], y_test[:, [i]]), 3) for i in range(3)]
        print(f"{name}: {len(x)} frames, linear R² of the cube's x, y, z {scores}")
        chosen = np.flatnonzero((solved != 0) & (near(starts) == sign))
        failed, cheaper = chosen[solved[chosen] < 0], 0
        for i in failed:
            frame, goal = data.frames[[tasks[i]]], data.frames[[tasks[i] + s.goal_offset]]
            plan = smwm.plan(model, frame, goal, seed=lead, horizon=s.horizon)
            recorded = data.actions[tasks[i] : tasks[i] + s.goal_offset]
            cheaper += cost(i, plan) < cost(i, recorded)
        share = 100 * (solved[chosen] > 0).mean()
        cheap = f"the plan is cheaper in {cheaper} of {len(failed)} failures"
        print(f"  {len(chosen)} tasks, {share:.1f}% solved; {cheap}", flush=True)


if __name__ == "__main__":
    main()
