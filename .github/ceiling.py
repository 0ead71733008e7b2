"""Plan with the true simulator in place of g: python .github/ceiling.py RUN [TASKS]

Tasks, planner and cost are those of `smwm.py evaluate RUN`: the cost of a sequence is the squared
distance of f(the frame that the simulator reaches) to f(goal). So this is how many tasks the
planner would solve with a perfect forward model. A plan of Push-T takes half a minute.
"""

import sys

import deeper  # noqa: F401, adds its networks and makes smwm importable
import numpy as np
import torch

import envs
import smwm


@torch.no_grad()
def main() -> None:
    model, s, _ = smwm.load_checkpoint(sys.argv[1])
    data = smwm.open_dataset(s.data)
    s = smwm.replace(s, tasks=int(sys.argv[2]) if len(sys.argv) > 2 else 20)
    learned = smwm.evaluate_planning(model, data, s)
    lead, chunk = s.block * max(2, s.history - 1), s.block * s.horizon
    real, imagined = (envs.make(s.env, s.variant, s.size) for _ in range(2))
    low, high = model.standardise(model.act_low), model.standardise(model.act_high)
    sizes = {name: getattr(s, name) for name in ("samples", "elites", "iterations")}
    mean, solved = torch.zeros(1, s.horizon, len(low)), []

    def actions(acts: torch.Tensor) -> np.ndarray:  # (N, H, A) -> (N, H * k, m)
        acts = acts.clamp(low, high) * model.act_std + model.act_mean
        return acts.reshape(len(acts), chunk, -1).numpy()

    def cost(acts: torch.Tensor) -> torch.Tensor:  # (1, N, H, A) -> (1, N)
        frames, state = [], real.state()
        for sequence in actions(acts[0]):
            imagined.set_state(state)
            for action in sequence:
                imagined.advance(action)
            frames.append(imagined.render_state(imagined.state()))
        return (model.encode(np.array(frames)) - z_goal).square().sum(-1)[None]

    for task, (states, goal) in enumerate(zip(learned["states"], learned["goals"], strict=True)):
        z_goal = model.encode(real.render_state(goal)[None])
        done = real.reset(options={"state": states[lead], "goal": goal})[1]["success"]
        for t in range(0, 2 * s.goal_offset, chunk):
            if not done:
                generator = torch.Generator().manual_seed(lead + t)
                best = smwm.cem(cost, mean, mean + 1, generator=generator, **sizes)
                done = any([real.advance(action)["success"] for action in actions(best)[0]])
        solved.append(done)
        with_g = int(np.sum(learned["solved"][: task + 1] >= 0))
        print(f"of {task + 1}: {with_g} with g, {sum(solved)} with the simulator", flush=True)


if __name__ == "__main__":
    main()
