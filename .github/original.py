"""Cube in OGBench's own simulator, with our picture of it: pip install ogbench==1.2.2, then

    python .github/original.py train --env original --seed 1
    python .github/original.py compare
    python .github/original.py transfer runs/cube-smwm-s1

The arm, the gripper with its links, the contacts, the controller and the policy of the data are the
original's. Frames are drawn by `envs.Cube` from the positions of cube, hand and fingers, since the
original's renderer needs OpenGL. `compare` prints how both simulators answer the same actions,
`transfer` how many tasks a model trained in `envs.Cube` solves in the original's.
"""

import math
import sys
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import envs  # noqa: E402
import smwm  # noqa: E402

PARTS = mujoco.mjtState.mjSTATE_INTEGRATION


class Original(envs.Cube):
    simulator = owner = None  # all instances share one simulator, which holds the owner's state

    def __init__(self, *, size: int = 64, render_mode: str | None = None):
        super().__init__(size=size, render_mode=render_mode)
        if Original.simulator is None:
            import ogbench  # noqa: F401, registers its environments

            env = gym.make("cube-single-v0", mode="data_collection", terminate_at_goal=False)
            Original.simulator = env.unwrapped
            Original.simulator.reset(seed=0)
        self._state = self._initial_state(np.random.default_rng(0))

    def state(self) -> np.ndarray:
        return self._state.copy()

    def _set_state(self, state: np.ndarray) -> None:
        self._state, Original.owner = state, None

    def _load(self) -> None:
        sim = self.simulator
        if Original.owner is not self:
            mujoco.mj_setState(sim._model, sim._data, self._state[12:], PARTS)
            mujoco.mj_forward(sim._model, sim._data)
            Original.owner = self

    def _read(self) -> np.ndarray:
        sim = self.simulator
        full = np.empty(mujoco.mj_stateSize(sim._model, PARTS))
        mujoco.mj_getState(sim._model, sim._data, full, PARTS)
        pads = [sim._data.body(f"ur5e/robotiq/{side}_pad").xpos for side in ("left", "right")]
        across = pads[0] - pads[1]
        opening = sim._data.qpos[sim._gripper_opening_joint_id] / 0.8
        hand = [*sim._data.site_xpos[sim._pinch_site_id], math.atan2(-across[0], across[1])]
        cube = sim._data.joint("object_joint_0").qpos
        return np.concatenate([cube, hand, [min(max(opening, 0.0), 1.0)], full])

    def _initial_state(self, rng: np.random.Generator) -> np.ndarray:
        self.simulator.reset(seed=int(rng.integers(2**31)))
        Original.owner = self
        return self._read()

    def _step(self, action: np.ndarray) -> None:
        self._load()
        sim = self.simulator
        sim.set_control(action)
        mujoco.mj_step(sim._model, sim._data, nstep=sim._n_steps)
        mujoco.mj_rnePostConstraint(sim._model, sim._data)  # contact forces, for the policy
        self._state = self._read()

    def behavior(self, rng: np.random.Generator):
        """OGBench's CubePlanOracle as stable-worldmodel runs it, with one place an episode."""
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

        sim = self.simulator
        np.random.seed(int(rng.integers(2**31)))  # the oracle draws from it
        oracle, place = CubePlanOracle(env=sim), sim._data.mocap_pos.copy()

        def policy(env: "Original") -> np.ndarray:
            env._load()
            sim.pre_step()  # compute_ob_info reads what it stores
            info = sim.compute_ob_info()
            if oracle.done or oracle._plan is None:
                sim._data.mocap_pos[:] = place
                oracle.reset(None, info)
            return np.clip(oracle.select_action(None, info), -1, 1).astype(np.float32)

        return policy


def compare() -> None:
    """Print how both worlds move, what is dropped, and how often the cube rests in the data."""
    for name in ("original", "cube"):
        world, rng = envs.make(name, "default", 16), np.random.default_rng(0)
        for axis, unit in ((0, "m"), (3, "rad")):
            action = np.zeros(5, np.float32)
            world.reset(seed=3)
            before = world.state()[7:11]
            for _ in range(6):
                action[axis] = math.copysign(1, 0.42 - before[axis] if axis == 0 else 1)
                world.advance(action)
            moved = abs(world.state()[7 + axis] - before[axis]) / 6
            print(f"{name}: a full action moves entry {axis} by {moved:.3f} {unit} a step")
        world.reset(seed=0)
        ramp = []
        for close in [1] * 4 + [-1] * 4:
            world.advance(np.array([0, 0, 0, 0, close], np.float32))
            ramp.append(round(float(world.state()[11]), 2))
        print(f"{name}: opening after closing 4 times, opening 4 times {ramp}")
        episodes, lifted = [], []
        for seed in range(40):
            world.reset(seed=seed)
            policy, states = world.behavior(rng), []
            for _ in range(200):
                states.append(world.state())
                world.advance(policy(world))
            states = np.array(states)
            episodes.append(states)
            near = np.linalg.norm(states[:, :3] - states[:, 7:10], axis=1) < 0.02
            lifted += [*states[(states[:, 2] > 0.1) & near][::20]]
        for action, times in ((-0.3, 1), (-0.3, 2), (-1, 1), (-1, 2)):
            dropped = 0
            for state in lifted:
                world.set_state(state)
                for close in [action] * times + [1] * 12:
                    world.advance(np.array([0, 0, 0, 0, close], np.float32))
                now = world.state()
                dropped += np.linalg.norm(now[:3] - now[7:10]) > 0.05
            share = f"{dropped} of {len(lifted)}"
            print(f"{name}: opening by {action}, {times} times, then closing drops {share}")
        cube = np.array(episodes)[:, :, :3]
        for later in (25, 40, 55, 70, 85):
            rests = np.linalg.norm(cube[:, later:] - cube[:, :-later], axis=2) <= 0.04
            print(f"{name}: within 4 cm of its place {later} steps later: {rests.mean():.2f}")


def transfer(run: str) -> None:
    model, s, _ = smwm.load_checkpoint(run)
    data = smwm.open_dataset(smwm.collect(smwm.settings_for(env="original", frames=30_000)))
    for seed in (1, 2):
        s = smwm.replace(s, env="original", seed=seed, tasks=100)
        for name, planner in ((s.method, model), ("random actions", None)):
            solved = smwm.evaluate_planning(planner, data, s)["solved"]
            start, end = (solved == 0).mean(), (solved >= 0).mean()
            print(f"seed {seed}, {name}: {end:.0%} solved, {start:.0%} at the start", flush=True)


envs.ENVS["original"] = Original
smwm.PRESETS["original"] = smwm.PRESETS["cube"]
if __name__ == "__main__":
    if sys.argv[1:] == ["compare"]:
        compare()
    elif sys.argv[1:2] == ["transfer"]:
        transfer(sys.argv[2])
    else:
        sys.exit(smwm.main())
