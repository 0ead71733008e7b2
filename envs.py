"""Six pixel environments for sensorimotor world models: they step, draw, save and restore.

    env = gym.make("smwm/DotWorld-v0")          # after `import envs`
    obs, info = env.reset(seed=0)               # obs: (64, 64, 3) uint8; info: state, success
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())

Every environment is a `gymnasium.Env` that observes its own picture, drawn on the CPU without
OpenGL or display. `gym.make` cuts an episode off after 200 steps. To take one environment
elsewhere, copy its class, `PixelEnv` and, for the two-dimensional ones, `Canvas`.
"""

import copy
import itertools
import math

import gymnasium as gym
import mujoco
import numpy as np
import pymunk


# ==== Base class and canvas =====================================================================
class PixelEnv(gym.Env):
    """What the environments share.

    The observation is a (size, size, 3) uint8 frame, the action a float vector in [-1, 1]^m (values
    outside are clipped). `reset(options={"state": s, "goal": g})` starts at state s; the step that
    reaches the state g has the reward 1, others 0, and ends the episode.

    A subclass names the probe targets that the action moves in `controlled` and those that are
    angles, as sines and cosines, in `angles`. It writes

        _initial_state(rng) -> (d,)         a random start
        _step(action)                       advance by a checked and clipped action
        render_state(state) -> frame        the picture of a state, a pure function of it
        is_success(state, goal) -> bool     the published criterion
        probe_targets(states (n, d))        name -> (n, j): what a latent should hold
        behavior(rng) -> policy             data collection for one episode, policy(env) -> action

    and sets `self._state` in __init__; where that is not the whole state, it overrides state() and
    _set_state(), too. Raises ValueError on an action, a state or a goal of wrong shape or not
    finite, and on an unknown option. A copied or unpickled environment continues identically."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    VARIANTS: dict[str, dict] = {"default": {}}  # name -> constructor arguments
    controlled = angles = ()  # names of probe targets
    goal = None

    def __init__(self, action_dim: int, *, size: int = 64, render_mode: str | None = None):
        if not (isinstance(size, int | np.integer) and size >= 8):
            raise ValueError(f"size: expected a whole number of pixels, 8 or more, got {size!r}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode: expected 'rgb_array' or None, got {render_mode!r}")
        self.size, self.render_mode = int(size), render_mode
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)

    def state(self) -> np.ndarray:
        """The published state, (d,) float64."""
        return self._state.copy()

    def _set_state(self, state: np.ndarray) -> None:
        self._state = state

    def set_state(self, state: np.ndarray) -> None:
        """Restore a state that `state()` gave."""
        self._set_state(self._checked(state, "state", self.state().shape))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"state", "goal"}:
            raise ValueError(f"reset options: expected 'state' and 'goal', got {sorted(unknown)}")
        state, goal = options.get("state"), options.get("goal")
        goal = None if goal is None else self._checked(goal, "goal", self.state().shape)
        self.set_state(self._initial_state(self.np_random) if state is None else state)
        self.goal = goal
        info = self._info()
        return self.render_state(info["state"]), info

    def step(self, action: np.ndarray):
        info = self.advance(action)
        frame, success = self.render_state(info["state"]), info["success"]
        return frame, float(success), success, False, info

    def advance(self, action: np.ndarray) -> dict:
        """`step` without the picture; returns its info. A float32 action stays float32."""
        checked = self._checked(action, "action", self.action_space.shape)
        checked = action if getattr(action, "dtype", None) == np.float32 else checked
        self._step(np.clip(checked, -1.0, 1.0))
        return self._info()

    def render(self) -> np.ndarray | None:
        return self.render_state(self.state()) if self.render_mode == "rgb_array" else None

    def __copy__(self) -> "PixelEnv":
        return copy.deepcopy(self)  # nothing of the simulator is shared

    def _info(self) -> dict:
        state = self.state()
        success = self.goal is not None and bool(self.is_success(state, self.goal))
        return {"state": state, "success": success}

    def _checked(self, value, name: str, shape: tuple[int]) -> np.ndarray:
        value = np.array(value, dtype=np.float64)
        if value.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: expected finite numbers, got {value}")
        return value


class Canvas:
    """A size x size picture of the square [0, world]^2, y down, painted with smooth edges.

    A pixel's coverage is 1/2 - d, cut to [0, 1], where d is its centre's signed distance to the
    shape in pixels. Only pixels of a shape's bounding box are touched."""

    def __init__(self, size: int, world: float, background: int | np.ndarray = 255):
        self.frame = np.empty((size, size, 3), np.uint8)
        self.frame[...] = background  # a shade of grey, or a picture to paint over
        self.scale = size / world

    def disc(self, centre, radius: float, color) -> None:
        def distance(x, y):
            return np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2) - radius

        self._paint(distance, [centre], radius, color)

    def capsule(self, a, b, radius: float, color) -> None:
        """All points within `radius` of the segment from a to b."""
        (ax, ay), (dx, dy) = a, (b[0] - a[0], b[1] - a[1])
        length2 = max(dx * dx + dy * dy, 1e-12)

        def distance(x, y):
            t = np.clip(((x - ax) * dx + (y - ay) * dy) / length2, 0.0, 1.0)
            return np.sqrt((x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2) - radius

        self._paint(distance, [a, b], radius, color)

    def polygon(self, vertices, color) -> None:
        """A convex polygon: the intersection of the half planes of its edges."""
        vertices = np.asarray(vertices, dtype=np.float64)  # (n, 2)
        edges = vertices[[*range(1, len(vertices)), 0]] - vertices
        turn = edges[0, 0] * edges[1, 1] - edges[0, 1] * edges[1, 0]  # its sign: which way round
        normals = edges[:, ::-1] * ((1, -1) if turn > 0 else (-1, 1))  # pointing outwards
        normals = (normals / np.sqrt((normals * normals).sum(1, keepdims=True)))[..., None, None]
        offsets = normals[:, 0] * vertices[:, :1, None] + normals[:, 1] * vertices[:, 1:, None]

        def distance(x, y):
            return (normals[:, 0] * x + normals[:, 1] * y - offsets).max(0)

        self._paint(distance, vertices.tolist(), 0.0, color)

    def _paint(self, distance, points, margin: float, color) -> None:
        size, scale, bounds = len(self.frame), self.scale, []
        for values in zip(*points, strict=True):  # the box in pixels: x, then y
            low = math.floor((min(values) - margin) * scale - 1)
            high = math.ceil((max(values) + margin) * scale + 1)
            bounds.append((min(max(low, 0), size), min(max(high, 0), size)))
        (x0, x1), (y0, y1) = bounds
        x = np.arange(x0 + 0.5, x1) / scale
        y = np.arange(y0 + 0.5, y1)[:, None] / scale
        cover = (0.5 - scale * distance(x, y)).clip(0.0, 1.0)[..., None]
        patch = self.frame[y0:y1, x0:x1]
        patch[...] = np.rint(patch + cover * (np.asarray(color, np.float64) - patch))


# ==== DotWorld and its sprite ===================================================================
class DotWorld(PixelEnv):
    """The paper's toy world: coloured dots of radius 2 px on a white 64 x 64 canvas.

    The action displaces some dots; others move at random or stay. A displacement is cut at the
    border, and a move that would end on another dot does not happen.

    Arguments: numbers of `independent` dots, of `coupled` pairs that share one displacement, of
    `random` dots, which move by displacements that are not in the action, and of `static` dots.
    Action: displacements (x, y) in units of 16 px, for each independent dot and each pair.
    State: (x, y) of each dot in that order; y points down.
    Start: uniform in [2, 62] px, dots at least 4 px apart; the second dot of a pair within 16 px of
    the first in x and y.
    Success: every controlled dot within 2 px of its goal."""

    CANVAS, RADIUS, REACH, GOAL_DISTANCE = 64.0, 2.0, 16.0, 2.0  # px
    COLORS = [(214, 39, 40), (31, 119, 180), (44, 160, 44), (255, 127, 14), (148, 103, 189)]
    VARIANTS = {"single": {}, "independent2": {"independent": 2}}
    VARIANTS |= {"coupled": {"independent": 0, "coupled": 1}, "distractor": {"random": 1}}
    VARIANTS |= {"static": {"static": 1}}
    VARIANTS |= {"combined": {"independent": 2, "coupled": 1, "random": 1}}

    def __init__(self, independent=1, coupled=0, random=0, static=0, *, size=64, render_mode=None):
        counts = {"dot": independent, "pair": coupled, "random": random, "static": static}
        if min(counts.values()) < 0 or independent + coupled < 1:
            raise ValueError(f"dots: expected at least one controlled dot, got {counts}")
        self._groups, first = {}, 0  # name -> the dots that move together
        for kind, count in counts.items():
            for n in range(1, count + 1):
                last = first + (2 if kind == "pair" else 1)
                self._groups[f"{kind} {n}"], first = [*range(first, last)], last
        self.controlled = tuple(x for x in self._groups if x.startswith(("dot", "pair")))
        self._state = np.zeros(2 * first)
        super().__init__(2 * len(self.controlled), size=size, render_mode=render_mode)

    def _initial_state(self, rng: np.random.Generator) -> np.ndarray:
        placed = np.zeros((0, 2))
        for group in self._groups.values():
            for dot in group:
                low, high = np.full(2, self.RADIUS), np.full(2, self.CANVAS - self.RADIUS)
                if dot != group[0]:
                    low = np.maximum(low, placed[-1] - self.REACH)
                    high = np.minimum(high, placed[-1] + self.REACH)
                for _ in range(1000):
                    place = rng.uniform(low, high)
                    if (np.hypot(*(placed - place).T) >= 2 * self.RADIUS).all():
                        break
                else:
                    left = f"no place was found for dot {dot + 1} of {len(self._state) // 2}"
                    raise ValueError(f"dots: expected dots that fit on the canvas, {left}")
                placed = np.vstack([placed, place])
        return placed.ravel()

    def _step(self, action: np.ndarray) -> None:
        dots = self._state.reshape(-1, 2)
        for name, displacement in zip(self.controlled, action.reshape(-1, 2), strict=True):
            dots = self._moved(dots, self._groups[name], displacement)
        for name, group in self._groups.items():
            if name.startswith("random"):
                _, dots = self._draw(self.np_random, dots, group)
        self._state = dots.ravel()

    def _room(self, dots: np.ndarray, group: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest displacement in px that keep a group inside."""
        here, low, high = dots[group], self.RADIUS, self.CANVAS - self.RADIUS
        return low - here.min(0), high - here.max(0)

    def _moved(self, dots: np.ndarray, group: list[int], displacement) -> np.ndarray:
        """The dots after one group's displacement; the same array if it is blocked."""
        (low, high), moved = self._room(dots, group), dots.copy()
        moved[group] += np.minimum(np.maximum(self.REACH * displacement, low), high)
        others = np.delete(moved, group, 0) if len(group) < len(dots) else moved[:0]
        apart = moved[group][:, None] - others
        return dots if ((apart**2).sum(-1) < (2 * self.RADIUS) ** 2).any() else moved

    def _draw(self, rng: np.random.Generator, dots: np.ndarray, group: list[int]):
        """A displacement, uniform among those that are possible, and the dots after it."""
        low, high = self._room(dots, group)
        low, high = np.maximum(low / self.REACH, -1), np.minimum(high / self.REACH, 1)
        for _ in range(20):
            displacement = rng.uniform(low, np.maximum(low, high))
            moved = self._moved(dots, group, displacement)
            if moved is not dots:
                return displacement, moved
        return np.zeros(2), dots

    def render_state(self, state: np.ndarray) -> np.ndarray:
        canvas, dots = Canvas(self.size, self.CANVAS), state.reshape(-1, 2)
        for n, group in enumerate(self._groups.values()):
            for dot in group:
                canvas.disc(dots[dot], self.RADIUS, self.COLORS[n % len(self.COLORS)])
        return canvas.frame

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        moved = [dot for name in self.controlled for dot in self._groups[name]]
        apart = (state - goal).reshape(-1, 2)[moved]
        return bool((np.hypot(*apart.T) <= self.GOAL_DISTANCE).all())

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        dots, targets = states.reshape(len(states), -1, 2), {}
        for name, group in self._groups.items():
            targets[name] = dots[:, group].mean(1)
            if name.startswith("pair"):
                targets[f"{name} offset"] = dots[:, group[1]] - dots[:, group[0]]
        return targets

    def behavior(self, rng: np.random.Generator):
        """Displacements uniform among those that are possible: not blocked, not cut."""

        def policy(env: "DotWorld") -> np.ndarray:
            dots, action = env._state.reshape(-1, 2), []
            for name in env.controlled:
                displacement, dots = env._draw(rng, dots, env._groups[name])
                action.append(displacement)
            return np.concatenate(action).astype(np.float32)

        return policy


class Sprite(PixelEnv):
    """The paper's sprite: an arrow of radius 16 px. The action displaces a part of its pose.

    The other coordinates move at random, x and y by up to 8 px, the angle by up to 8/7.5 rad.

    Arguments: `axes`, the coordinates in the action: "" (none), "x", "xy" or "xyt".
    Action: displacements of these, x and y in units of 8 px, the angle in units of pi rad. Without
    any there is one entry that moves nothing, since an action space cannot be empty.
    State: x, y (px, y points down) and the angle (rad, wrapped).
    Start: x, y uniform in [16, 48] px, the arrow's bounds; angle uniform in [-pi, pi].
    Success: controlled coordinates within 2 px (the distance in the plane) and 0.1 rad."""

    CANVAS, RADIUS, REACH, GOAL_DISTANCE = 64.0, 16.0, 8.0, 2.0  # px
    TURN, GOAL_ANGLE = 8 / 7.5, 0.1  # rad
    HEAD = np.array([(1, 0), (0.1, -0.8), (0.1, 0.8)])  # corners in units of the radius
    SHAFT = np.array([(0.1, -0.3), (-0.5, -0.3), (-0.5, 0.3), (0.1, 0.3)])
    VARIANTS = {axes or "none": {"axes": axes} for axes in ("xyt", "xy", "x", "")}
    angles = ("angle",)

    def __init__(self, axes: str = "xyt", *, size: int = 64, render_mode: str | None = None):
        if axes not in ("", "x", "xy", "xyt"):
            raise ValueError(f"axes: expected '', 'x', 'xy' or 'xyt', got {axes!r}")
        self._count = len(axes)
        self._reach = np.array([self.REACH, self.REACH, math.pi if axes == "xyt" else self.TURN])
        self.controlled = ("x", "y", "angle")[: len(axes)]
        self._state = np.zeros(3)
        super().__init__(max(len(axes), 1), size=size, render_mode=render_mode)

    def _initial_state(self, rng: np.random.Generator) -> np.ndarray:
        low, high = self.RADIUS, self.CANVAS - self.RADIUS
        return rng.uniform([low, low, -math.pi], [high, high, math.pi])

    def _step(self, action: np.ndarray) -> None:
        displacement = self._draw(self.np_random)
        displacement[: self._count] = action[: self._count]
        pose = self._state + displacement * self._reach
        pose[:2] = pose[:2].clip(self.RADIUS, self.CANVAS - self.RADIUS)
        pose[2] = math.remainder(pose[2], 2 * math.pi)
        self._state = pose

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """A displacement in [-1, 1]^3, uniform among those that stay inside."""
        low, high, place = np.full(3, -1.0), np.ones(3), self._state[:2]
        low[:2] = np.maximum(low[:2], (self.RADIUS - place) / self.REACH)
        high[:2] = np.minimum(high[:2], (self.CANVAS - self.RADIUS - place) / self.REACH)
        return rng.uniform(low, np.maximum(low, high))

    def render_state(self, state: np.ndarray) -> np.ndarray:
        canvas, (c, s) = Canvas(self.size, self.CANVAS), (math.cos(state[2]), math.sin(state[2]))
        for part, color in ((self.HEAD, (214, 39, 40)), (self.SHAFT, (31, 119, 180))):
            canvas.polygon(self.RADIUS * part @ np.array([[c, s], [-s, c]]) + state[:2], color)
        return canvas.frame

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        apart = np.where(np.arange(3) < self._count, state - goal, 0.0)
        turned = abs(math.remainder(apart[2], 2 * math.pi))
        return math.hypot(*apart[:2]) <= self.GOAL_DISTANCE and turned <= self.GOAL_ANGLE

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        angle = states[:, 2:]
        sin_cos = np.concatenate([np.sin(angle), np.cos(angle)], 1)
        return {"x": states[:, :1], "y": states[:, 1:2], "angle": sin_cos}

    def behavior(self, rng: np.random.Generator):
        """Displacements uniform among those that stay inside; without any, uniform noise."""
        count = self._count
        return lambda env: np.float32(env._draw(rng)[:count] if count else rng.uniform(-1, 1, 1))


# ==== TwoRoom ===================================================================================
class TwoRoom(PixelEnv):
    """A round agent in a square of 224 x 224 units, cut by a wall with one door.

    The border is 14 wide. The wall is at x = 112, 10 thick; its door is centred at y = 49 with
    half-size 14. The published rule (stable-worldmodel): a step is cut at the border. A step that
    ends more than 15.75 from the door's y and overlaps the wall, or lies beyond it, ends with
    the agent 0.5 before the wall.

    Action: displacement (x, y) in units of the speed, 5 units a step. State: x, y; y points down.
    Start: uniform in the two rooms, where the agent (radius 7) touches neither border nor wall.
    Success: distance below 16 units."""

    WORLD, BORDER, RADIUS, SPEED, GOAL_DISTANCE = 224.0, 14.0, 7.0, 5.0, 16.0
    WALL, THICKNESS, DOOR, DOOR_HALF, DOOR_MARGIN, PUSHBACK = 112.0, 10.0, 49.0, 14.0, 1.75, 0.5
    controlled = ("agent position",)

    def __init__(self, *, size: int = 64, render_mode: str | None = None):
        super().__init__(2, size=size, render_mode=render_mode)
        self._state = np.zeros(2)
        canvas, w, b = Canvas(self.size, self.WORLD), self.WORLD, self.BORDER
        x, half = self.WALL, self.THICKNESS / 2
        borders = [(0, 0, w, b), (0, w - b, w, w), (0, 0, b, w), (w - b, 0, w, w)]
        wall = [(x - half, 0, x + half, self.DOOR - self.DOOR_HALF)]
        wall += [(x - half, self.DOOR + self.DOOR_HALF, x + half, w)]
        for x0, y0, x1, y1 in borders + wall:
            canvas.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], (60, 60, 60))
        self._rooms = canvas.frame

    def _initial_state(self, rng: np.random.Generator) -> np.ndarray:
        margin = self.BORDER + self.RADIUS
        while True:
            place = rng.uniform(margin, self.WORLD - margin, 2)
            if abs(place[0] - self.WALL) > self.THICKNESS / 2 + self.RADIUS:
                return place

    def _step(self, action: np.ndarray) -> None:
        # float32, as the original computes
        step = action.astype(np.float32) * np.float32(self.SPEED)
        moved = self._state.astype(np.float32) + step
        margin, zone = self.BORDER + self.RADIUS, self.THICKNESS / 2 + self.RADIUS
        x, y = (min(max(float(v), margin), self.WORLD - margin) for v in moved)
        if abs(y - self.DOOR) > self.DOOR_HALF + self.DOOR_MARGIN:
            if self._state[0] < self.WALL and x > self.WALL - zone:
                x = self.WALL - zone - self.PUSHBACK
            elif self._state[0] >= self.WALL and x < self.WALL + zone:
                x = self.WALL + zone + self.PUSHBACK
        self._state = np.array([x, y])

    def render_state(self, state: np.ndarray) -> np.ndarray:
        canvas = Canvas(self.size, self.WORLD, self._rooms)
        canvas.disc(state[:2], self.RADIUS, (214, 39, 40))
        return canvas.frame

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        return math.hypot(*(state - goal)) < self.GOAL_DISTANCE

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        return {"agent position": states[:, :2]}

    def behavior(self, rng: np.random.Generator):
        """Head for one random target after another, through the door if need be, with noise of
        standard deviation 2; the last action again with probability 0.05."""
        target, last = None, None

        def policy(env: "TwoRoom") -> np.ndarray:
            nonlocal target, last
            here = env._state
            if target is None or math.hypot(*(here - target)) < env.GOAL_DISTANCE:
                target = env._initial_state(rng)
            heading = target - here
            if (here[0] < env.WALL) != (target[0] < env.WALL):
                door = np.array([env.WALL, env.DOOR]) - here
                heading = door if math.hypot(*door) > 10.5 else heading
            action = heading / max(math.hypot(*heading), 1e-8) + rng.normal(0.0, 2.0, 2)
            if last is None or rng.random() >= 0.05:
                last = np.clip(action, -1, 1).astype(np.float32)
            return last

        return policy


# ==== Reacher ===================================================================================
class Reacher(PixelEnv):
    """The two-link planar arm of the DeepMind Control Suite, with identical physics (MuJoCo).

    One timestep of 0.02 s an action, contacts off, joint damping 0.01, the wrist limited to 160
    degrees each way. Links are capsules of radius 0.01 m, 0.12 and 0.10 m long. A ball is 0.12 m
    from the wrist. The frame shows 0.6 x 0.6 m from above, and no target.

    Action: control of the motors at shoulder and wrist, gear 0.05.
    State: shoulder and wrist angle (rad), their velocities (rad/s).
    Start: shoulder uniform in [-180, 180] degrees, wrist in [-160, 160] degrees, at rest.
    Success: both joint angles within 0.05 rad (the shoulder's difference wrapped)."""

    XML = """
    <mujoco>
      <option timestep="0.02"><flag contact="disable"/></option>
      <default>
        <joint type="hinge" axis="0 0 1" damping="0.01"/>
        <motor gear="0.05" ctrlrange="-1 1" ctrllimited="true"/>
      </default>
      <worldbody>
        <body pos="0 0 0.01">
          <joint name="shoulder"/><geom type="capsule" fromto="0 0 0 0.12 0 0" size="0.01"/>
          <body pos="0.12 0 0">
            <joint name="wrist" limited="true" range="-160 160"/>
            <geom type="capsule" fromto="0 0 0 0.1 0 0" size="0.01"/>
            <body pos="0.12 0 0"><geom type="sphere" size="0.01"/></body>
          </body>
        </body>
      </worldbody>
      <actuator><motor joint="shoulder"/><motor joint="wrist"/></actuator>
    </mujoco>"""
    WORLD, LINK, DRAWN, RADIUS, GOAL_ANGLE = 0.6, 0.12, 0.10, 0.01, 0.05
    controlled = angles = ("joint angles",)

    def __init__(self, *, size: int = 64, render_mode: str | None = None):
        super().__init__(2, size=size, render_mode=render_mode)
        self._model = mujoco.MjModel.from_xml_string(self.XML)
        self._data = mujoco.MjData(self._model)

    def state(self) -> np.ndarray:
        return np.concatenate([self._data.qpos, self._data.qvel])

    def _set_state(self, state: np.ndarray) -> None:
        self._data.qpos[:], self._data.qvel[:] = state[:2], state[2:]
        self._data.qacc_warmstart[:] = 0  # the solver's first guess at the wrist's limit

    def _initial_state(self, rng: np.random.Generator) -> np.ndarray:
        limits = np.array([math.pi, math.radians(160)])
        return np.concatenate([rng.uniform(-limits, limits), np.zeros(2)])

    def _step(self, action: np.ndarray) -> None:
        self._data.ctrl[:] = action
        mujoco.mj_step(self._model, self._data)

    def render_state(self, state: np.ndarray) -> np.ndarray:
        canvas, middle = Canvas(self.size, self.WORLD, 245), np.full(2, self.WORLD / 2)
        canvas.disc(middle, 2 * self.RADIUS, (60, 60, 60))
        # y points up in the world and down in the frame
        angles = state[0], state[0] + state[1]
        upper, lower = (np.array([math.cos(angle), -math.sin(angle)]) for angle in angles)
        elbow = middle + self.LINK * upper
        canvas.capsule(middle, elbow, self.RADIUS, (31, 119, 180))
        canvas.capsule(elbow, elbow + self.DRAWN * lower, self.RADIUS, (255, 127, 14))
        canvas.disc(elbow + self.LINK * lower, self.RADIUS, (214, 39, 40))
        return canvas.frame

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        shoulder = abs(math.remainder(state[0] - goal[0], 2 * math.pi))
        return shoulder < self.GOAL_ANGLE and abs(state[1] - goal[1]) < self.GOAL_ANGLE

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        angles = states[:, :2]
        return {"joint angles": np.concatenate([np.sin(angles), np.cos(angles)], 1)}

    def behavior(self, rng: np.random.Generator):
        """Uniform random actions."""
        return lambda env: rng.uniform(-1, 1, 2).astype(np.float32)


# ==== Push-T ====================================================================================
class PushT(PixelEnv):
    """A round pusher and a T-shaped block on a plane of 512 x 512 units, seen from above (pymunk).

    There is no gravity, and a block that is not pushed stands still. The agent is moved by a PD
    controller (k_p 100, k_v 20) towards a point, 10 physics steps of 0.01 s an action. Physics and
    reset are those of the published simulator (stable-worldmodel).

    Action: where the agent should go, relative to where it is, in units of 100 (x, y).
    State: agent x, y, block x, y, angle in [0, 2 pi), agent velocity x, y; y points down.
    Start: block at rest, x, y uniform in [100, 400], angle uniform in [0, 2 pi]; agent uniform in
    [50, 450], at least 5 units from the block.
    Success: agent and block within 20 units of the goal's (the norm of all four differences), and
    the block's angle within pi/9.

    As at the original's reset, a state is placed and one physics step follows, which moves the
    agent by 0.01 s of its velocity. The solver's impulses in a contact are not part of the state:
    a trajectory restored within a push can differ from the first one."""

    WORLD, AGENT_RADIUS, ACTION, DT, SUBSTEPS = 512.0, 15.0, 100, 0.01, 10
    K_P, K_V = 100, 20
    WALLS = [((5, 506), (5, 5)), ((5, 5), (506, 5)), ((506, 5), (506, 506)), ((5, 506), (506, 506))]
    GOAL_DISTANCE, GOAL_ANGLE = 20.0, math.pi / 9
    # The T's two boxes in its own frame: a bar of 120 x 30, a stem of 30 x 90 below it.
    BAR = [(-60.0, 30.0), (60.0, 30.0), (60.0, 0.0), (-60.0, 0.0)]
    STEM = [(-15.0, 30.0), (-15.0, 120.0), (15.0, 120.0), (15.0, 30.0)]
    controlled = ("agent position", "block position", "block orientation")
    angles = ("block orientation",)

    def __init__(self, *, size: int = 64, render_mode: str | None = None):
        super().__init__(2, size=size, render_mode=render_mode)
        canvas = Canvas(self.size, self.WORLD)
        for a, b in self.WALLS:
            canvas.capsule(a, b, 2, (160, 160, 160))
        self._floor = canvas.frame
        self._set_state(np.array([100.0, 100.0, 256.0, 256.0, 0.0, 0.0, 0.0]))

    def state(self) -> np.ndarray:
        (x, y), angle = self._block.position, self._block.angle % (2 * math.pi)
        return np.array([*self._agent.position, x, y, angle, *self._agent.velocity])

    def _set_state(self, state: np.ndarray) -> None:
        self._placed, self._targets = state, []  # enough to continue identically in a copy
        self._space = space = pymunk.Space()  # a new one has no impulses left from other contacts
        space.gravity, space.damping = (0, 0), 0
        space.add(*(pymunk.Segment(space.static_body, a, b, 2) for a, b in self.WALLS))
        self._agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        space.add(self._agent, pymunk.Circle(self._agent, self.AGENT_RADIUS))
        # The original takes the bar's moment for both boxes.
        self._block = pymunk.Body(1, 2 * pymunk.moment_for_poly(1, self.BAR))
        bar, stem = (pymunk.Poly(self._block, box) for box in (self.BAR, self.STEM))
        self._cog = (bar.center_of_gravity + stem.center_of_gravity) / 2
        self._block.center_of_gravity = self._cog
        space.add(self._block, bar, stem)
        x, y, block_x, block_y, angle, vx, vy = state.tolist()
        self._agent.velocity, self._agent.position = (vx, vy), (x, y)
        self._block.angle = angle
        self._block.position = block_x, block_y
        space.step(self.DT)

    def __getstate__(self) -> dict:
        hidden = ("_space", "_agent", "_block")
        return {name: value for name, value in vars(self).items() if name not in hidden}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        targets = self._targets
        self._set_state(self._placed)
        for target in targets:
            self._go(*target)

    def _initial_state(self, rng: np.random.Generator) -> np.ndarray:
        x, y, angle = rng.uniform([100, 100, 0], [400, 400, 2 * math.pi])
        while True:
            agent = rng.uniform(50, 450, 2)
            self.set_state(np.array([*agent, x, y, angle, 0, 0]))
            gap = min(shape.point_query(tuple(agent)).distance for shape in self._block.shapes)
            if gap >= self.AGENT_RADIUS + 5:
                return self.state()

    @staticmethod
    def _rotation(angle: float) -> np.ndarray:
        c, s = math.cos(angle), math.sin(angle)
        return np.array([[c, -s], [s, c]])

    def _step(self, action: np.ndarray) -> None:
        # in the action's own precision, as the original computes
        self._go(*(p + a for p, a in zip(self._agent.position, action * self.ACTION, strict=True)))

    def _go(self, target_x: float, target_y: float) -> None:
        self._targets.append((target_x, target_y))
        agent, k_p, k_v, dt = self._agent, self.K_P, self.K_V, self.DT
        for _ in range(self.SUBSTEPS):
            (x, y), (vx, vy) = agent.position, agent.velocity
            ax, ay = k_p * (target_x - x) + k_v * (0 - vx), k_p * (target_y - y) + k_v * (0 - vy)
            agent.velocity = float(vx + ax * dt), float(vy + ay * dt)
            self._space.step(dt)

    def render_state(self, state: np.ndarray) -> np.ndarray:
        canvas, rotation = Canvas(self.size, self.WORLD, self._floor), self._rotation(state[4])
        for box in (self.BAR, self.STEM):
            canvas.polygon(np.array(box) @ rotation.T + state[2:4], (119, 136, 153))
        canvas.disc(state[:2], self.AGENT_RADIUS, (65, 105, 225))
        return canvas.frame

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        distance = np.sqrt(((state[:4] - goal[:4]) ** 2).sum())
        angle = abs(math.remainder(state[4] - goal[4], 2 * math.pi))
        return bool(distance < self.GOAL_DISTANCE and angle < self.GOAL_ANGLE)

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        sin_cos = np.stack([np.sin(states[:, 4]), np.cos(states[:, 4])], 1)
        values = states[:, :2], states[:, 2:4], sin_cos
        return dict(zip(self.controlled, values, strict=True))

    def behavior(self, rng: np.random.Generator):
        """Push the block towards a pose, walking round it between pushes; then towards another.

        The first pose is near (256, 256, pi/4), where the published demonstrations end. Each
        push starts square to the outline, at the best of 24 of its points. It draws the deviation
        of its actions' noise, up to 0.2."""
        right = [(60, 0), (60, 30), (15, 30), (15, 120)]
        corners = np.array([(-60, 0), *right, (-15, 120), (-15, 30), (-60, 30)], np.float64)
        edges = np.roll(corners, -1, 0) - corners
        lengths = np.abs(edges).sum(1)
        pose, walk = np.array([256, 256, math.pi / 4]) + rng.normal(0, [25, 25, 0.2]), True
        point = inward = None  # where and which way to push, in the block's frame
        left, speed, noise = 0, 0.0, 0.0  # steps left; length and noise of an action

        def choose(env: "PushT", centre: np.ndarray, turned: np.ndarray) -> None:
            nonlocal pose, point, inward, left, speed, noise, walk
            way = pose[:2] + env._rotation(pose[2]) @ env._cog - centre
            turn = math.remainder(pose[2] - env._block.angle, 2 * math.pi)
            if math.hypot(*way) < 12 and abs(turn) < 0.15:  # there
                pose = np.append(rng.uniform(180, 332, 2), rng.uniform(0, 2 * math.pi))
            best = -math.inf
            for edge in rng.choice(8, 24, p=lengths / lengths.sum()):
                at = corners[edge] + rng.uniform(0.1, 0.9) * edges[edge]
                normal = np.array([-edges[edge][1], edges[edge][0]]) / lengths[edge]
                n, arm = turned @ normal, turned @ (at - env._cog)
                start = centre + arm - 40 * n
                torque = arm[0] * n[1] - arm[1] * n[0]
                gain = n @ way / 60 + np.clip(turn, -1, 1) * torque / 30 + rng.normal(0, 0.3)
                gain -= 0.002 * math.hypot(*(start - env._agent.position))
                gain -= 1e6 * (np.abs(start - env.WORLD / 2) > 236).any()  # out of reach
                if gain > best:
                    best, point, inward = gain, at, normal
            left, walk, speed, noise = 30, True, rng.uniform(0.1, 0.28), rng.uniform(0, 0.2)

        def policy(env: "PushT") -> np.ndarray:
            nonlocal left, walk
            agent, turned = np.array(env._agent.position), env._rotation(env._block.angle)
            centre = np.array(env._block.position) + turned @ env._cog
            if left <= 0:
                choose(env, centre, turned)
            n = turned @ inward
            contact = centre + turned @ (point - env._cog) - env.AGENT_RADIUS * n
            goal, pace, left = contact - 15 * n, 0.28, left - 1
            if walk and math.hypot(*(goal - agent)) < 10:
                walk, left = False, int(rng.integers(8, 22))
            if walk:  # round the block on a circle, then straight to where the push starts
                here, there = (math.atan2(*(p - centre)[::-1]) for p in (agent, goal))
                angle = math.remainder(there - here, 2 * math.pi)
                if abs(angle) > 0.5:
                    angle = here + math.copysign(min(abs(angle), 0.6), angle)
                    goal = centre + 105 * np.array([math.cos(angle), math.sin(angle)])
                goal = np.clip(goal, 20, env.WORLD - 20)
            else:
                goal, pace = contact + 25 * n, speed
                near_wall = (np.abs(centre + 20 * n - env.WORLD / 2) > 170).any()
                if near_wall or math.hypot(*(contact - agent)) > 35:
                    left = 0
            action = (goal - agent) / max(0.6 * env.ACTION, math.hypot(*(goal - agent)) / pace)
            return np.clip(action + rng.normal(0, noise, 2), -1, 1).astype(np.float32)

        return policy


# ==== Cube ======================================================================================
class Cube(PixelEnv):
    """A gripper with two fingers and a cube on a table (after OGBench cube-single; MuJoCo).

    Physics 0.002 s, control 0.05 s. The gripper really grasps, by contact and friction. A carriage
    in the place of the original's arm, not drawn, holds it in x [0.25, 0.6], y [-0.35, 0.35], z
    [0.02, 0.35] m. In a step it covers 43% of the way to its target, 22% in yaw, a third in
    opening, as the original does (`.github/original.py compare`). The contacts of the fingers are
    soft, so that a small opening rarely drops the cube, as in the original.

    Action: targets relative to where the gripper is: x, y, z in units of 0.05 m, yaw in units of
    0.3 rad, opening in units of 1 (positive closes).
    State: cube x, y, z, quaternion w, x, y, z; gripper x, y, z, yaw and opening from 0 to 1, where
    1 is closed; then MuJoCo's full integration state.
    Start: cube (half-size 0.02 m) on the table, x uniform in [0.3, 0.55] m, y in [-0.3, 0.3] m, any
    yaw; gripper open, anywhere in its range with z of 0.2 m or more, any yaw.
    Success: the cube within 0.04 m of its goal position."""

    FINGER_TRAVEL = 0.045  # m from the centre to a finger when open
    XML = """
    <mujoco>
      <option timestep="0.002" integrator="implicitfast" cone="elliptic" impratio="10"/>
      <default>
        <position kp="1500" kv="133"/>
        <default class="finger">
          <geom type="box" size="0.012 0.008 0.025" mass="0.02" friction="0.7" priority="1"
                solref="0.017 1"/>
          <joint type="slide" range="0 0.045"/>
          <position kp="1000" kv="120"/>
        </default>
      </default>
      <worldbody>
        <geom name="table" type="plane" size="0 0 0.1"/>
        <body name="cube" pos="0.4 0 0.02">
          <freejoint/>
          <geom name="cube" type="box" size="0.02 0.02 0.02" density="1240" solref="0.004 1"/>
        </body>
        <body name="gripper" gravcomp="1">
          <inertial pos="0 0 0.05" mass="0.35" diaginertia="0.002 0.002 0.002"/>
          <joint name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/>
          <joint name="z" type="slide" axis="0 0 1"/><joint name="yaw" type="hinge" axis="0 0 1"/>
          <geom name="palm" type="box" size="0.01 0.055 0.008" pos="0 0 0.039" contype="0"
                conaffinity="0"/>
          <body gravcomp="1" childclass="finger"><joint name="left" axis="0 1 0"/>
            <geom name="left" pos="0 0.008 0.006"/></body>
          <body gravcomp="1" childclass="finger"><joint name="right" axis="0 -1 0"/>
            <geom name="right" pos="0 -0.008 0.006"/></body>
        </body>
      </worldbody>
      <actuator>
        <position joint="x"/><position joint="y"/><position joint="z"/>
        <position joint="yaw" kp="40" kv="8"/>
        <position joint="left" class="finger"/><position joint="right" class="finger"/>
      </actuator>
    </mujoco>"""
    SUBSTEPS, CUBE, GOAL_DISTANCE = 25, 0.02, 0.04  # steps, m, m
    SCALE = np.array([0.05, 0.05, 0.05, 0.3, 1.0])  # m, m, m, rad, opening
    LOW, HIGH = np.array([0.25, -0.35, 0.02]), np.array([0.6, 0.35, 0.35])  # m
    CUBE_LOW, CUBE_HIGH = np.array([0.3, -0.3]), np.array([0.55, 0.3])  # m
    COLORS = {"table": (205, 198, 188), "cube": (214, 39, 40), "palm": (70, 70, 75)}
    COLORS |= {"left": (31, 119, 180), "right": (44, 160, 44)}
    CAMERA, PITCH, VIEW = np.array([2.18, 0.0, 1.58]), math.radians(40), math.radians(20)
    HALF, LAMP = math.tan(VIEW / 2), np.array([0.42, 0.0, 1.5])  # the camera's right is +y
    FORWARD = np.array([-math.cos(PITCH), 0.0, -math.sin(PITCH)])
    UP = np.array([-math.sin(PITCH), 0.0, math.cos(PITCH)])
    AROUND = np.array([(i, j) for j in (-1, 0, 1) for i in (-1, 0, 1) if i or j]) / 3  # pixels
    SIDES = np.array([*itertools.product((-1.0, 1.0), repeat=3)])  # corners of a box
    controlled = ("cube position", "gripper position", "gripper opening", "gripper yaw")
    angles = ("gripper yaw",)

    def __init__(self, *, size: int = 64, render_mode: str | None = None):
        super().__init__(5, size=size, render_mode=render_mode)
        self._model = mujoco.MjModel.from_xml_string(self.XML)
        self._data, self._scene = mujoco.MjData(self._model), mujoco.MjData(self._model)
        for data in (self._data, self._scene):
            mujoco.mj_forward(self._model, data)
        names = [self._model.geom(i).name for i in range(self._model.ngeom)]
        self._colors = np.array([self.COLORS[name] for name in names], np.float64)
        table = self._cast(np.full(1, 0.5), np.full(1, 0.5))[0]  # bare in the corner
        self._bare = np.full((size, size, 3), np.rint(table), np.uint8)
        self._full = np.zeros(mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_INTEGRATION))

    def state(self) -> np.ndarray:
        # qpos: cube x, y, z, quaternion (7), gripper x, y, z, yaw (4), left and right finger (2)
        mujoco.mj_getState(self._model, self._data, self._full, mujoco.mjtState.mjSTATE_INTEGRATION)
        return np.concatenate([self._data.qpos[:11], [self._opening()], self._full])

    def _opening(self) -> float:
        travel = (self._data.qpos[11] + self._data.qpos[12]) / 2
        return float(np.clip(1 - travel / self.FINGER_TRAVEL, 0, 1))

    def _set_state(self, state: np.ndarray) -> None:
        mujoco.mj_setState(self._model, self._data, state[12:], mujoco.mjtState.mjSTATE_INTEGRATION)

    def _initial_state(self, rng: np.random.Generator) -> np.ndarray:
        data, yaw = self._data, rng.uniform(-math.pi, math.pi)
        mujoco.mj_resetData(self._model, data)
        data.qpos[:3] = *rng.uniform(self.CUBE_LOW, self.CUBE_HIGH), self.CUBE
        data.qpos[3:7] = math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)
        data.qpos[7:10] = rng.uniform([*self.LOW[:2], 0.2], self.HIGH)
        data.qpos[10], data.qpos[11:] = rng.uniform(-math.pi, math.pi), self.FINGER_TRAVEL
        return self.state()

    def _step(self, action: np.ndarray) -> None:
        here = np.append(self._data.qpos[7:11], self._opening())
        target = here + action * self.SCALE
        target[:3] = target[:3].clip(self.LOW, self.HIGH)
        self._data.ctrl[:4] = target[:4]
        self._data.ctrl[4:] = self.FINGER_TRAVEL * (1 - min(max(target[4], 0.0), 1.0))
        mujoco.mj_step(self._model, self._data, self.SUBSTEPS)

    def render_state(self, state: np.ndarray) -> np.ndarray:
        """Cast a ray for each pixel that may not be bare table, and 3 x 3 rays where neighbouring
        pixels hit different things."""
        model, scene, size = self._model, self._scene, self.size
        scene.qpos[:11], scene.qpos[11:] = state[:11], self.FINGER_TRAVEL * (1 - state[11])
        mujoco.mj_kinematics(model, scene)
        colors, hit = np.empty((size, size, 3)), np.zeros((size, size), np.int32)
        near = y, x = np.nonzero(self._near())
        colors[near], hit[near] = self._cast(x + 0.5, y + 0.5)
        edge = np.zeros((size, size), bool)
        down, across = hit[1:] != hit[:-1], hit[:, 1:] != hit[:, :-1]
        edge[1:] |= down
        edge[:-1] |= down
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        edge = y, x = np.nonzero(edge)
        if len(x):
            x, y = self.AROUND[:, :1] + x + 0.5, self.AROUND[:, 1:] + y + 0.5  # (8, edges)
            around = self._cast(x.ravel(), y.ravel())[0].reshape(8, -1, 3)
            colors[edge] = (colors[edge] + around.sum(0)) / 9
        frame = self._bare.copy()
        frame[near] = np.rint(colors[near])
        return frame

    def _near(self) -> np.ndarray:
        """The pixels (size, size) that may show a box or its shadow; others show bare table."""
        model, scene = self._model, self._scene
        sides = self.SIDES * model.geom_size[1:, None]  # (geom, corner, 3)
        corners = np.einsum("gij,gcj->gci", scene.geom_xmat[1:].reshape(-1, 3, 3), sides)
        corners += scene.geom_xpos[1:, None]
        lit = corners - self.LAMP
        shadows = self.LAMP - lit * (self.LAMP[2] / lit[..., 2:])  # thrown on the table
        points = np.concatenate([corners, shadows]) - self.CAMERA
        scale = self.size / (2 * self.HALF * (points @ self.FORWARD))  # pixels a metre
        at, middle = np.arange(self.size)[:, None] + 0.5, self.size / 2
        inside = []
        for place in (middle - scale * (points @ self.UP), middle + scale * points[..., 1]):
            inside.append((at > place.min(1) - 1) & (at < place.max(1) + 1))
        down, across = np.array(inside, np.float32)
        return down @ across.T > 0

    def _cast(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colours (n, 3) and geom ids (n,), plus 100 in shadow, at pixel positions x, y (n,)."""
        right, up = (2 * x / self.size - 1) * self.HALF, (1 - 2 * y / self.size) * self.HALF
        rays = self.FORWARD + right[:, None] * (0, 1, 0) + up[:, None] * self.UP
        n, scene = len(x), self._scene
        hit, distance, normals = np.empty(n, np.int32), np.empty(n), np.empty(3 * n)
        found = hit, distance, normals, n, 10.0  # at most 10 m away
        mujoco.mj_multiRay(self._model, scene, self.CAMERA, rays.ravel(), None, 1, -1, *found)
        light = np.array([0.36, 0.48, 0.8])
        shade = 0.55 + 0.45 * np.abs(normals.reshape(-1, 3) @ light)
        # The shadows of a lamp overhead tell a higher thing from a farther one.
        rays = self.CAMERA + distance[:, None] * rays - self.LAMP
        found = np.empty(n, np.int32), distance, None, n, 10.0
        mujoco.mj_multiRay(self._model, scene, self.LAMP, rays.ravel(), None, 1, -1, *found)
        shadow = distance < 0.999  # met something before the point
        shade[shadow] *= 0.6
        return self._colors[hit] * shade[:, None], hit + 100 * shadow

    def is_success(self, state: np.ndarray, goal: np.ndarray) -> bool:
        return bool(np.sqrt(((state[:3] - goal[:3]) ** 2).sum()) <= self.GOAL_DISTANCE)

    def probe_targets(self, states: np.ndarray) -> dict[str, np.ndarray]:
        yaw = 2 * states[:, 10]  # the gripper looks the same after half a turn
        sin_cos = np.stack([np.sin(yaw), np.cos(yaw)], 1)
        values = states[:, :3], states[:, 7:10], states[:, 11:12], sin_cos
        return dict(zip(self.controlled, values, strict=True))

    def behavior(self, rng: np.random.Generator):
        """Carry the cube to a place and leave it, again and again; the place stays the same.

        The rules are those of OGBench's CubePlanOracle, in stable-worldmodel's environment, which
        draws one place an episode. A plan leads the hand along 11 poses in about 90 steps, whether
        the grasp succeeds or not. Its noise is a tenth of a full action, a little smoothed."""
        place = np.array([*rng.uniform(self.CUBE_LOW, self.CUBE_HIGH), self.CUBE])
        place_yaw, plan = rng.uniform(-math.pi, math.pi), []  # the targets that are left

        def new_plan(hand: np.ndarray, yaw: float, cube: np.ndarray, cube_yaw: float) -> list:
            """Targets x, y, z, yaw, opening, a step apart."""
            grasp_yaw = yaw + math.remainder(cube_yaw - yaw, math.pi / 2)
            put_yaw = grasp_yaw + math.remainder(place_yaw - grasp_yaw, math.pi / 2)
            rest = rng.uniform([*self.LOW[:2], 0.2], self.HIGH)
            over_cube, over_place = (x + [0, 0, rng.uniform(0.1, 0.2)] for x in (cube, place))
            between = np.append((over_cube + over_place)[:2] / 2, hand[2])
            between += rng.uniform([-0.1, -0.1, 0], [0.1, 0.1, 0.2])
            poses = [  # x, y, z, yaw, opening; steps from the pose before
                (*hand, yaw, 0, 0),
                (*over_cube, grasp_yaw, 0, 8),
                (*cube, grasp_yaw, 0, 12),
                (*cube, grasp_yaw, 1, 8),
                (*over_cube, grasp_yaw, 1, 8),
                (*between, (grasp_yaw + put_yaw) / 2, 1, 8),
                (*over_place, put_yaw, 1, 8),
                (*place, put_yaw, 1, 12),
                (*place, put_yaw, 0, 8),
                (*over_place, put_yaw, 0, 8),
                (*rest, put_yaw + rng.uniform(-math.pi, math.pi), 0, 8),
            ]
            *entries, steps = np.array(poses).T
            times = steps.cumsum() + np.append(0, rng.uniform(-1.6, 1.6, 10))  # a little uneven
            t = np.arange(0, times[-1])
            targets = np.stack([np.interp(t, times, entry) for entry in entries], 1)
            noise = np.pad(rng.normal(0, 0.1 * self.SCALE, targets.shape), ((1, 1), (0, 0)), "edge")
            # the weights of a Gaussian of half a step, which smooths the noise
            return [*(targets + 0.11 * noise[:-2] + 0.78 * noise[1:-1] + 0.11 * noise[2:])]

        def policy(env: "Cube") -> np.ndarray:
            qpos = env._data.qpos
            if not plan:
                cube_yaw = 2 * math.atan2(qpos[6], qpos[3])
                plan.extend(new_plan(qpos[7:10], qpos[10], qpos[:3], cube_yaw))
            here = np.append(qpos[7:11], env._opening())
            return np.clip((plan.pop(0) - here) / self.SCALE, -1, 1).astype(np.float32)

        return policy


ENVS = {"dotworld": DotWorld, "sprite": Sprite, "tworoom": TwoRoom, "reacher": Reacher}
ENVS |= {"pusht": PushT, "cube": Cube}
for _cls in ENVS.values():
    gym.register(f"smwm/{_cls.__name__}-v0", f"{__name__}:{_cls.__name__}", max_episode_steps=200)


def make(env: str, variant: str, size: int) -> PixelEnv:
    """An environment by its name in ENVS and the name of one of its VARIANTS."""
    return ENVS[env](**ENVS[env].VARIANTS[variant], size=size)
