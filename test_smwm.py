"""Each test checks a claim of the README, in its order: pytest -q."""

import copy
import hashlib
import importlib.util
import inspect
import math
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import nn

import envs
import smwm

HERE = Path(smwm.__file__).resolve().parent
README = (HERE / "README.md").read_text()
TINY = "--frames 400 --episode 40 --steps 6 --batch 8 --probe-epochs 2 --tasks 4 --samples 8"
TINY += " --elites 4 --iterations 2"  # a run of a second
SMALL = dict(samples=50, elites=5, iterations=5)


def run(*args: str, code: int = 0, capsys=None) -> str:
    """Run the command line in this process; returns what it printed."""
    assert smwm.main([word for arg in args for word in str(arg).split()]) == code
    return "".join(capsys.readouterr()) if capsys else ""


def metrics(run: Path) -> dict:
    return smwm.read_json(Path(run) / "metrics.json")


def same_weights(one: str, two: str) -> bool:
    a, b = (smwm.load(run).state_dict() for run in (one, two))
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The main job: `python smwm.py train --env dotworld` in an empty folder."""
    here = tmp_path_factory.mktemp("main")
    command = [sys.executable, HERE / "smwm.py", "train", "--env", "dotworld"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return here / "runs/dotworld-smwm-s0"


@pytest.fixture(scope="session")
def dots(tmp_path_factory):
    """A small dot world dataset."""
    s = smwm.settings_for(frames=2000, episode=40)
    return smwm.open_dataset(smwm.collect(s, tmp_path_factory.mktemp("data")))


# ==== The method ================================================================================
class ByHand:
    """g(z, a) = z + a and h(z, z') = z' - z."""

    history = 1

    def forward_model(self, z, act):
        return z + act

    def inverse_model(self, z, z_next):
        return z_next - z


def test_loss_by_hand():
    """One window of three latents in two dimensions, z = (0,0), (1,0), (1,3), a = (1,2), (0,1).

    g predicts (1,2) and (1,1): the errors (0,2) and (0,-2) give L_fwd = (0+4+0+4)/4 = 2.
    h infers (1,0) and (0,3): the errors (0,-2) and (0,2) give L_inv = 2.  L = 2 + 10 * 2 = 22."""
    z = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]]])
    act = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    loss, terms = smwm.smwm_loss(ByHand(), z, act, lam=10.0)
    assert (loss.item(), terms["forward"].item(), terms["inverse"].item()) == (22, 2, 2)
    assert smwm.forward_loss(ByHand(), z, act)[0].item() == 2


@pytest.mark.parametrize("term", ["forward", "inverse"])
def test_gradient_reaches_the_latents_of_both_frames(term):
    z, model = torch.randn(3, 2, 8, requires_grad=True), smwm.WorldModel(action_dim=2, width=16)
    _, terms = smwm.smwm_loss(model, z, torch.randn(3, 1, 2))
    (gradient,) = torch.autograd.grad(terms[term], z)
    assert (gradient.abs().sum((0, 2)) > 1e-4).all()


def test_sigreg_statistic():
    """Of latents that are all 0, phi = 1, and the statistic over the whole line is
    n * integral (1 - exp(-t^2/2))^2 exp(-t^2/2) dt = n sqrt(2 pi) (1 - 2/sqrt(2) + 1/sqrt(3)).
    Of Gaussian latents it is of the order of 1, not of n."""
    n, act, generator = 4096, torch.zeros(4096, 1, 4), torch.Generator().manual_seed(0)
    exact = n * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    constant = smwm.sigreg_loss(ByHand(), torch.zeros(n, 2, 4), act)[1]["sigreg"]
    assert constant.item() == pytest.approx(exact, rel=0.02)
    gaussian = torch.randn(n, 2, 4, generator=generator)
    assert smwm.sigreg_loss(ByHand(), gaussian, act, generator=generator)[1]["sigreg"] < 2


def test_main_job(trained):
    """The README's first command: the latent is the dot's position, and all tasks are solved."""
    result = metrics(trained)
    assert result["probe"]["linear"]["dot 1"] >= 0.999
    assert 1.95 <= result["latent"]["effective_dim"] < 2.15
    assert result["latent"]["rollout_error"][4] < 0.02
    assert result["planning"]["tasks"] == result["planning"]["success"] == 100
    assert result["planning"]["random"] < 40


def test_without_the_inverse_term_the_latent_collapses(folder, capsys):
    """The same network, data and steps. What the command prints says so, and by which measure."""
    spread, options = {}, "--frames 2000 --steps 200 --batch 16 --tasks 2 --probe-epochs 1"
    for method in smwm.METHODS:
        said = run(f"train {options} --method {method}", capsys=capsys)
        spread[method] = metrics(f"runs/dotworld-{method}-s0")["latent"]["spread"]
        assert ("collapsed" in said) == (method == "forward")
    assert spread["smwm"] > 0.3 and spread["sigreg"] > 0.3 and spread["forward"] < 0.05, spread


def test_optimizer_is_muon_and_adamw():
    """Muon for square matrices is torch.optim.Muon bit for bit, the rest is torch.optim.AdamW."""
    ours, theirs = ([nn.Parameter(torch.ones(40, 40)), nn.Parameter(torch.ones(9))] for _ in "ab")
    optimizer = smwm.Optimizer(ours, decay=0.1, dtype=torch.bfloat16)
    muon = torch.optim.Muon(theirs[:1], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(theirs[1:], lr=0.1, weight_decay=0.1)
    for seed in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(seed))
            b.grad = a.grad.clone()
        optimizer.step(0.1)
        muon.step()
        adamw.step()
    assert torch.equal(ours[0], theirs[0]) and torch.allclose(ours[1], theirs[1], atol=1e-6)


def test_history_is_the_last_latents_and_blocks():
    """With h = 3 the prediction at t depends on z and a of t-2, t-1 and t, which are zero before the
    window. A rollout is repeated prediction."""
    model = smwm.WorldModel(action_dim=2, width=16, history=3)
    z, act = torch.randn(5, 6, 8, requires_grad=True), torch.randn(5, 5, 2)
    g = model.forward_model
    for t in range(3):
        (gradient,) = torch.autograd.grad(g(z, act[:, :1].expand(-1, 6, -1))[:, t].sum(), z)
        assert gradient.abs().sum((0, 2)).nonzero().flatten().tolist() == [t, t + 1, t + 2]
    imagined = model.rollout(z[:, :3], act[:, :2], act[:, 2:4])
    first = g(z[:, :3], act[:, :3])
    second = g(torch.cat([z[:, 1:3], first], 1), act[:, 1:4])
    assert torch.allclose(imagined, torch.cat([first, second], 1), atol=1e-6)
    padded = (
        torch.cat([torch.zeros(5, 2, 8), z[:, :1]], 1),
        torch.cat([torch.zeros(5, 2, 2), act[:, :1]], 1),
    )
    error = (g(*padded) - z[:, 1:2]).square().mean()
    assert torch.allclose(smwm.forward_loss(model, z[:, :2], act[:, :1])[0], error)


def test_encode_takes_frames_of_any_size_in_the_precision_of_the_training():
    """Every corner is seen. An output pixel is the mean of 2 x 3 input pixels. Autocast changes
    nothing."""
    model = smwm.WorldModel(action_dim=2, width=64).eval()
    corners = np.full((5, 64, 64, 3), 255, np.uint8)
    corners[[1, 2, 3, 4], [0, 0, -1, -1], [0, -1, 0, -1]] = 0
    z = model.encode(corners)
    assert z.shape == (5, 32) and (torch.cdist(z, z) + torch.eye(5) > 0).all()
    large = np.random.default_rng(0).integers(0, 256, (2, 3, 128, 192, 3)).astype(np.uint8)
    mean = large.reshape(2, 3, 64, 2, 64, 3, 3).astype(np.float32).mean((3, 5))
    z = model.encode(torch.from_numpy(mean.round().astype(np.uint8)))
    assert z.shape == (2, 3, 32) and torch.allclose(model.encode(large), z, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(large), z)
    model.bf16 = True
    assert not torch.equal(model.encode(large), z)
    for wrong in (large / 255, large[0, 0], large.transpose(0, 1, 4, 2, 3)):
        with pytest.raises(ValueError, match="expected uint8"):
            model.encode(wrong)


def visited(function) -> set[str]:
    """The functions and methods of smwm.py that a call visits, not those written inside others."""
    names = set()

    def profile(frame, event, arg):
        code = frame.f_code
        if event == "call" and code.co_filename == smwm.__file__ and "<" not in code.co_qualname:
            names.add(code.co_qualname)

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


def test_a_reader_visits_few_functions(dots):
    """At most 8 for a training step, at most 7 for an evaluation of the planner."""
    s = smwm.settings_for(steps=3, batch=8, tasks=2, samples=8, elites=2, iterations=2)
    model = smwm.build_model(s, 2, False)
    steps = visited(lambda: smwm.train(model, dots, s))
    steps -= {"train", "WorldModel.fit_actions", "Dataset.windows", "Optimizer.__init__"}  # once
    assert "smwm_loss" in steps and len(steps) <= 8, steps
    plans = visited(lambda: smwm.evaluate_planning(model, dots, s))
    plans -= {"evaluate_planning", "progress", "Lines.write", "WorldModel.standardise"}
    assert "cem" in plans and len(plans) <= 7, plans


def test_sections_run_where_they_are_copied():
    """Model, Losses and `cem` with `plan`, in a file that imports torch, numpy, math and partial."""
    source = (HERE / "smwm.py").read_text()
    parts = re.split(r"# ==== (\w+).*=\n", source)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    planner = sections["Planning"].split("def evaluate_planning")[0]
    code = "import math\nfrom functools import partial\nimport numpy as np\nimport torch\n"
    code += "from torch import Tensor, nn\nfrom torch.nn import functional as F\n"
    copied = {}
    exec(code + sections["Model"] + sections["Losses"] + planner, copied)
    obs = torch.randint(256, (2, 2, 64, 64, 3), dtype=torch.uint8)
    model = copied["WorldModel"](action_dim=2)
    copied["smwm_loss"](model, model.encode(obs), torch.randn(2, 1, 2))[0].backward()
    acts = copied["plan"](model.eval(), obs[:, 0], obs[:, 1], samples=8, elites=2, iterations=2)
    assert acts.shape == (2, 5, 2) and acts.isfinite().all()


# ==== Acting ====================================================================================
class Crane(gym.Env):
    """A disc on a rail, in its own pixels. Actions are not in [-1, 1]; one entry is constant."""

    action_space = gym.spaces.Box(np.float32([57, 300]), np.float32([456, 300]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.action_space.seed(seed)
        self.x = self.np_random.uniform(0, 1)

    def step(self, action):
        assert self.action_space.contains(action.astype(np.float32)), action
        self.x = float(np.clip(self.x + (action[0] - 256.5) / 1500, 0, 1))

    def render(self):
        frame, left = np.full((80, 120, 3), 255, np.uint8), round(10 + 80 * self.x)
        frame[30:50, left : left + 20] = (200, 30, 30)
        return frame


def snippet(words: str) -> str:
    """The README's Python example that has these words."""
    (found,) = [part for part in re.findall(r"```python\n(.*?)```", README, re.S) if words in part]
    return found


def test_readme_acts_in_any_environment(folder, monkeypatch):
    """The README's loop, as it stands there, in an environment that this test defines: acting gets
    nearer to the goal than random actions do."""
    monkeypatch.setattr(gym, "make", lambda *args, **options: Crane())
    names = {}
    exec(snippet("env.render()"), names)
    model, env = names["model"], names["env"]
    low, high = model.act_low[:2], model.act_high[:2]
    assert 57 <= low[0] < 65 and 448 < high[0] <= 456 and low[1] == high[1] == 300
    left = {"plan": [], "random": []}
    for seed in range(8):
        env.reset(seed=100 + seed)
        goal, target = env.render(), env.x
        for policy, ends in left.items():
            env.reset(seed=200 + seed)
            for action in smwm.plan(model, env.render()[None], goal[None], **SMALL)[0].numpy():
                env.step(action if policy == "plan" else env.action_space.sample())
            ends.append(abs(env.x - target))
    assert np.mean(left["plan"]) < 0.5 * np.mean(left["random"]), left


def test_plan_takes_the_past():
    """(B, H, W, 3), or (B, T, H, W, 3) with the actions between; what does not fit is refused."""
    model = smwm.WorldModel(action_dim=2, block=3, width=32, history=3).eval()
    obs = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 50, 3)).astype(np.uint8)
    good = dict(obs=obs, goal_obs=obs[:, 0], past=np.ones((2, 6, 2)), horizon=2, **SMALL)
    acts = smwm.plan(model, **good)
    assert acts.shape == (2, 6, 2) and acts.abs().max() <= 1
    assert torch.equal(smwm.plan(model, **good | {"past": np.ones((2, 2, 6))}), acts)
    alone = smwm.plan(model, **good | {"past": None, "obs": torch.from_numpy(obs[:, -1])})
    assert not torch.allclose(alone, acts)
    bad = [{"past": np.ones((2, 3, 2))}, {"goal_obs": obs[:1, 0]}, {"horizon": 0}, {"elites": 1}]
    bad += [{"obs": np.concatenate([obs, obs], 1)}, {"samples": 1, "elites": 1}, {"elites": 51}]
    for change in bad:
        with pytest.raises(ValueError, match="expected"):
            smwm.plan(model, **good | change)
    model.forward_model.out.bias.data[0] = math.nan
    with pytest.raises(ValueError, match="finite"):
        smwm.plan(model, **good)


def test_cem_finds_the_optimum_of_a_quadratic():
    target = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    zeros, generator = torch.zeros_like(target), torch.Generator().manual_seed(1)
    cost = lambda acts: (acts - target[:, None]).square().sum((2, 3))  # noqa: E731
    assert torch.allclose(smwm.cem(cost, zeros, zeros + 1, generator=generator), target, atol=1e-3)
    exec(snippet("smwm.cem"), names := {})
    assert torch.allclose(names["best"].sum(1), names["goal"], atol=0.05)


def test_planning_a_batch_equals_one_by_one(trained, dots):
    model = smwm.load(trained)
    obs, goal = dots.frames[:6], dots.frames[6:12]
    looped = [smwm.plan(model, obs[i : i + 1], goal[i : i + 1], **SMALL) for i in range(6)]
    assert torch.allclose(smwm.plan(model, obs, goal, **SMALL), torch.cat(looped), atol=1e-4)


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_devices_agree(trained, dots, device):
    """The same weights give the same latents, and plans that reach the goal, on every device."""
    reference, model, obs, goal = (
        smwm.load(trained),
        smwm.load(trained, device),
        *dots.frames[:2, None],
    )
    reference.bf16 = model.bf16 = False
    z, z_goal = reference.encode(obs), reference.encode(goal)
    assert torch.allclose(model.encode(obs).cpu(), z, atol=1e-3)
    acts = model.standardise(smwm.plan(model, obs, goal)).cpu()
    end = reference.rollout(z[:, None], acts[:, :0], acts)[:, -1]
    assert (end - z_goal).square().sum() < 0.01 * (z - z_goal).square().sum()


# ==== Results: planning tasks and probes ========================================================
def test_tasks_solved_at_the_start_are_told_apart(dots):
    """A goal one step on is solved at the start where the dot moved by less than 2 px."""
    s = smwm.settings_for(tasks=200, goal_offset=1)
    plans = smwm.evaluate_planning(None, dots, s)
    start, goal = plans["states"][:, 2], plans["goals"]
    near = np.linalg.norm(start - goal, axis=1) <= 2
    assert near.any() and ((plans["solved"] == 0) == near).all()
    other = smwm.evaluate_planning(None, dots, smwm.replace(s, seed=1))["goals"]
    assert not np.array_equal(goal, other)  # other seeds, other tasks


def test_probes_read_what_is_there_and_nothing_else():
    """y = x_1^2 is invisible to the linear probe, read by the MLP; noise is read by neither."""
    x, noise = torch.randn(2, 4000, 3, generator=torch.Generator().manual_seed(0)).double()
    for y, linear, mlp in ((x.sum(1, keepdim=True), 1, 1), (x[:, :1] ** 2, 0, 1), (noise, 0, 0)):
        y, y_test = smwm.standardise(y[:3000], y[3000:])
        for probe, score in ((smwm.linear_probe, linear), (smwm.mlp_probe, mlp)):
            read = probe(x[:3000], y, x[3000:])
            assert smwm.r2(read, y_test) == pytest.approx(score, abs=0.06)


def test_measures_by_hand():
    """R2: the mean predicts nothing; two off gives 1 - 3 * 4 / 2 = -5; a constant does not count.
    Effective dimension of variances 1, 1: (1 + 1)^2 / (1 + 1) = 2; with another of 0.01: 2.02.
    Wilson's interval of ten hits of ten: from n / (n + z^2) = 10 / 13.8416 = 72.25%.
    Constant entries, of any size, are centred and not scaled."""
    target = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    assert smwm.r2(torch.tensor([[2.0, 4.0]] * 3), target) == pytest.approx(0)
    assert smwm.r2(target + 2, target) == pytest.approx(-5)
    assert smwm.effective_dim(torch.tensor([1.0, 1, 0, 0])) == 2
    assert smwm.effective_dim(torch.tensor([1.0, 1, 0.01])) == pytest.approx(2.02, abs=1e-3)
    assert smwm.interval95(np.ones(10)) == [pytest.approx(72.25, abs=0.01), 100]
    model = smwm.WorldModel(action_dim=3, block=2)
    for constant in (0.0, 300.1, 1e-9):
        actions = torch.cat([torch.randn(100, 2), torch.full((100, 1), constant)], 1)
        model.fit_actions(actions)
        acts, _ = smwm.standardise(actions.double(), actions.double())
        for x in (model.standardise(actions.repeat(1, 2)), acts):
            assert x[:, 2].abs().max() < 1e-4 and x[:, 0].std() == pytest.approx(1, 0.01)


def test_readme_tables_are_the_reports_output():
    command = [sys.executable, HERE / ".github/report.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for table in done.stdout.strip().split("\n\n"):
        assert table in README


# ==== Environments ==============================================================================

VARIANTS = [(env, variant) for env, cls in envs.ENVS.items() for variant in cls.VARIANTS]


def played(world, seed: int, steps: int = 25) -> list[np.ndarray]:
    """The states along an episode of the behaviour policy."""
    world.reset(seed=seed)
    policy = world.behavior(np.random.default_rng(seed))
    return [world.advance(policy(world))["state"] for _ in range(steps)]


@pytest.mark.parametrize("env", envs.ENVS)
def test_gymnasium_check_env(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(f"smwm/{envs.ENVS[env].__name__}-v0", render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("env, variant", VARIANTS)
def test_copies_continue_identically(env, variant):
    """A deep copy and an unpickled environment, amid an episode: equal to the last bit."""
    world = envs.make(env, variant, 32)
    played(world, 1)
    copies = copy.deepcopy(world), pickle.loads(pickle.dumps(world))
    policy = world.behavior(np.random.default_rng(2))
    for _ in range(25):
        action = policy(world)
        states = [each.advance(action)["state"] for each in (world, *copies)]
        assert (states[0] == states[1]).all() and (states[0] == states[2]).all()


@pytest.mark.parametrize("env, variant", VARIANTS)
def test_a_state_is_restored_drawn_and_judged(env, variant):
    """The published entries determine what follows, but for what moves at random: exactly, or nearly
    where the solver's impulses in a contact are not among them (Push-T)."""
    world, other, rng = *(envs.make(env, variant, 32) for _ in "ab"), np.random.default_rng(0)
    length = {"sprite": 3, "tworoom": 2, "reacher": 4, "pusht": 7}.get(env, len(world.state()))
    for seed in range(3):
        state = played(world, seed)[-1]
        _, info = other.reset(options={"state": state, "goal": state})
        assert len(state) == length and info["success"]
        assert np.allclose(other.state(), state, atol=3 if env == "pusht" else 0)
        assert (other.render_state(state) == world.render_state(state)).all()
        for _ in range(10 * (variant not in ("distractor", "combined", "none", "x", "xy"))):
            action = rng.uniform(-1, 1, world.action_space.shape).astype(np.float32)
            ours, theirs = (each.advance(action)["state"][:4] for each in (world, other))
            assert np.allclose(ours, theirs, atol=5 if env == "pusht" else 1e-9)
    targets = world.probe_targets(np.stack([state, state]))
    assert all(v.shape[0] == 2 and v.ndim == 2 and np.isfinite(v).all() for v in targets.values())
    assert {*world.controlled, *world.angles} <= {*targets}


def test_reacher_is_the_control_suites():
    """dm_control 1.0.50's suite/reacher.xml, stepped by mujoco 4.0.0 with the same controls: equal
    to the last bit, the wrist at its limit among them."""
    world = envs.Reacher(size=16)
    world.reset(options={"state": [0.5, -1.0, 0, 0]})
    states = [world.advance([(t % 7 - 2) / 4, (t % 5 - 1) / 2])["state"] for t in range(200)]
    a, b = [2.868279819650522, 2.809784177621687], [0.8279547267027635, 3.95478238824409]
    assert states[99].tolist() == a + b
    a, b = [5.328890163669101, 2.81578308999913], [0.6737939237518848, 0.501712354347192]
    assert states[199].tolist() == a + b


def test_pusht_is_the_published_simulator():
    """stable-worldmodel 0.1.1's Push-T with pymunk 7.3.1, same start and actions, the block pushed:
    all seven published entries equal to the last bit."""
    world = envs.PushT(size=16)
    world.reset(options={"state": [140.0, 330.0, 256.0, 256.0, 0.6, 0.0, 0.0]})
    assert world.state().tolist() == [140.0, 330.0, 256.0, 255.99999999999997, 0.6, 0.0, 0.0]
    states = []
    for t in range(100):
        action = np.array([(t % 7 - 2) / 8, (-1) ** (t // 25) * (t % 5 - 1) / -8])
        states.append(world.advance(action)["state"].tolist())
    a, b = [235.25564433603427, 206.98785694689406], [301.19048695034877, 250.9019869813708]
    assert states[24] == [*a, *b, 1.171019491224357, 46.7664757224519, -139.6944938478682]
    a, b = [381.8902952735237, 325.8459095870542], [323.23229257215206, 379.05590909245365]
    assert states[49] == [*a, *b, 2.388082068439956, -94.7566862746601, 139.69449384786782]
    a, b = [624.6039761795397, 325.84590958705434], [317.104718278424, 384.04447597813976]
    assert states[99] == [*a, *b, 2.4546965800919747, -46.14757971184984, 139.69449384786782]


def test_tworoom_follows_the_published_rule():
    """stable-worldmodel 0.1.1's TwoRoom, 25 steps of the same action: through the door, stopped by
    the wall, and back."""
    world = envs.TwoRoom(size=16)
    for start, action, end in (
        ([60, 49], [1, 0.25], [185.0, 80.25]),
        ([60, 100], [1, 0.125], [99.5, 115.625]),
        ([180, 60], [-0.7, -0.05], [92.5, 53.75]),
    ):
        world.reset(options={"state": start})
        states = [world.advance(action)["state"] for _ in range(25)]
        assert np.abs(states[-1] - end).max() < 1e-5


def test_cube_holds_what_it_grasps():
    """A gripped cube lifted to z = 0.3 m is still there after 50 steps; opened, it falls."""
    world = envs.Cube(size=16)
    cube = world.reset(seed=0)[1]["state"][:3]
    yaw = 2 * np.arctan2(world.state()[6], world.state()[3])

    def go(target, close, steps):
        for _ in range(steps):
            state = world.state()
            turn = math.remainder(yaw - state[10], math.pi / 2)
            world.advance(np.clip([*(target - state[7:10]) / 0.05, turn / 0.3, close], -1, 1))

    up = np.array([*cube[:2], 0.3])
    for target, close, steps in (
        (cube + [0, 0, 0.1], -1, 25),
        (cube, -1, 10),
        (cube, 1, 4),
        (up, 1, 12),
    ):
        go(target, close, steps)
    for _ in range(50):
        go(up, 1, 1)
        assert np.abs(world.state()[:3] - up).max() < 0.02
    go(up, -1, 20)
    assert world.state()[2] < 0.05


def test_cube_casts_rays_where_they_matter():
    """The pixels taken for bare table are: casting a ray for each gives the same picture."""
    world, every = envs.Cube(size=64), envs.Cube(size=64)
    every._near = lambda: np.ones((64, 64), bool)
    for seed in range(10):
        state = played(world, seed)[-1]
        assert (world.render_state(state) == every.render_state(state)).all()
        assert world._near().mean() < 0.5


def test_dotworld_moves_exactly():
    """16 px a unit; cut at the border (2 px and 62 px); a blocked move does not happen."""
    world = envs.DotWorld(independent=2)
    world.reset(options={"state": [10.0, 20.0, 40.0, 40.0]})
    assert world.advance([0.5, -0.25, 1.0, 1.0])["state"].tolist() == [18, 16, 56, 56]
    assert world.advance([-1.0, 0.0, 1.0, 1.0])["state"].tolist() == [2, 16, 62, 62]
    world.reset(options={"state": [10.0, 20.0, 26.0, 22.0]})  # (26, 20) is too near the other
    assert world.advance([1.0, 0.0, 0.0, 0.0])["state"].tolist() == [10, 20, 26, 22]
    pair = envs.DotWorld(independent=0, coupled=1)
    pair.reset(options={"state": [10.0, 10.0, 20.0, 30.0]})  # the pair keeps its shape
    assert pair.advance([-1.0, 0.5])["state"].tolist() == [2, 18, 12, 38]
    with pytest.raises(ValueError, match="expected dots that fit"):
        envs.DotWorld(independent=500).reset(seed=0)


def test_what_is_not_controlled_moves_without_the_action():
    """Dots by 16 px at most; a sprite by 8 px and 8 / 7.5 rad (pi for xyt), controlled or not."""
    world = envs.DotWorld(random=1, static=1)
    start = world.reset(seed=0)[1]["state"]
    states = np.array([world.advance([0, 0])["state"] for _ in range(20)])
    assert (states[:, [0, 1, 4, 5]] == start[[0, 1, 4, 5]]).all()
    assert np.ptp(states[:, 2:4], axis=0).min() > 10
    for axes in ("", "x", "xy", "xyt"):
        world = envs.Sprite(axes)
        moves = np.abs(np.diff(played(world, 0, 200), axis=0))
        moves[:, 2] = np.minimum(moves[:, 2], 2 * math.pi - moves[:, 2])
        share = moves.max(0) / [8, 8, math.pi if axes == "xyt" else 8 / 7.5]
        assert (share <= 1 + 1e-9).all() and (share > 0.9).all()
        before, after = world.state(), world.advance(np.zeros(max(1, len(axes))))["state"]
        assert (before == after).tolist() == [c in axes for c in "xyt"]


def test_behaviour_data_teaches():
    """Over 25 steps Push-T's block moves more than 20 units and turns more than 20 degrees in half
    of the windows; the cube moves more than 4 cm in half and is in the air in a quarter; the rooms'
    door is passed in 40% of the episodes; the wrist meets all of its range."""
    names = ("pusht", "cube", "tworoom", "reacher")
    worlds = [envs.make(name, "default", 16) for name in names]
    push, cube, rooms, arm = (np.array([played(w, n, 100) for n in range(30)]) for w in worlds)
    move = push[:, 25:] - push[:, :-25]
    assert (np.linalg.norm(move[..., 2:4], axis=-1) > 20).mean() > 0.5
    assert (np.abs(np.remainder(move[..., 4] + np.pi, 2 * np.pi) - np.pi) > 0.35).mean() > 0.5
    move = np.linalg.norm((cube[:, 25:] - cube[:, :-25])[..., :3], axis=-1)
    assert (move > 0.04).mean() > 0.5 and (cube[..., 2] > 0.03).mean() > 0.25
    left = rooms[..., 0] < 112
    assert (left.any(1) & ~left.all(1)).mean() > 0.4
    assert np.histogram(arm[..., 1], 8, (-2.8, 2.8))[0].min() > 30


# First characters of the sha256 of the frame of `reset(seed=0)`, at 64 and at 224 pixels.
PICTURES = {
    ("dotworld", "combined"): ("7c08368734a2", "3115b9f7659e"),
    ("sprite", "xyt"): ("d5486bf6172a", "ec4432db6539"),
    ("tworoom", "default"): ("8e720e209297", "5f94955b2aac"),
    ("reacher", "default"): ("767f93f633a8", "c26605d33929"),
    ("pusht", "default"): ("ba422902ef27", "3c870b2b8831"),
    ("cube", "default"): ("996fe4e83db1", "3340c6577afa"),
}


@pytest.mark.parametrize("env, variant", PICTURES)
def test_pictures_are_the_same_on_every_machine(env, variant):
    frames = [envs.make(env, variant, size).reset(seed=0)[0] for size in (64, 224)]
    found = tuple(hashlib.sha256(frame.tobytes()).hexdigest()[:12] for frame in frames)
    assert found == PICTURES[env, variant]


def test_picture_is_true_to_the_state():
    """The darkness of a dot sums to its area, and its centre of mass is its position, y down."""
    ink = 1 - envs.DotWorld(size=128).render_state(np.array([20.3, 41.8]))[..., 1] / 255.0
    y, x = np.mgrid[:128, :128] / 2 + 0.25
    assert (ink * x).sum() / ink.sum() == pytest.approx(20.3, abs=0.02)
    assert (ink * y).sum() / ink.sum() == pytest.approx(41.8, abs=0.02)
    red = 1 - envs.DotWorld.COLORS[0][1] / 255
    assert ink.sum() / red / 4 == pytest.approx(math.pi * 2**2, rel=0.03)


def test_docstring_numbers_are_the_codes():
    """Numbers that a docstring repeats, made from the constants that they repeat."""
    dots, sprite, rooms, arm, push, cube = envs.ENVS.values()
    for cls, phrases in {
        dots: "radius {RADIUS:g} px|{CANVAS:g} x {CANVAS:g}|of {REACH:g} px|within {GOAL_DISTANCE:g} px",
        sprite: "of {RADIUS:g} px|of {REACH:g} px|within {GOAL_DISTANCE:g} px|{GOAL_ANGLE} rad",
        rooms: "{WORLD:g} x {WORLD:g}|{SPEED:g} units a step|radius {RADIUS:g}|{BORDER:g} wide"
        "|below {GOAL_DISTANCE:g}|x = {WALL:g}, {THICKNESS:g} thick|y = {DOOR:g} with half-size "
        "{DOOR_HALF:g}|stops {PUSHBACK} units",
        arm: "{LINK} m and {LINK} m|{DRAWN:.2f} m|{RADIUS} m|{WORLD} x {WORLD} m|{GOAL_ANGLE} rad",
        push: "{WORLD:g} x {WORLD:g}|k_p {K_P}, k_v {K_V}|{SUBSTEPS} physics steps of {DT} s"
        "|of {ACTION} |within {GOAL_DISTANCE:g} units",
        cube: "of {SCALE[0]} m|half-size {CUBE} m|within {GOAL_DISTANCE} m|x [{LOW[0]}, {HIGH[0]}]",
    }.items():
        text, constants = " ".join(cls.__doc__.split()), {x: getattr(cls, x) for x in dir(cls)}
        for phrase in phrases.split("|"):
            assert phrase.format(**constants) in text, (cls, phrase)
        assert "".join(re.findall("(A|St|S)(?:ction|ate|tart|uccess):", text)) == "AStSS", cls


@pytest.mark.parametrize("env", envs.ENVS)
def test_environments_refuse_bad_input(env):
    world = envs.ENVS[env]()
    world.reset(seed=0)
    nan = np.full(world.action_space.shape, np.nan)
    for call, words in (
        (lambda: world.step(np.zeros(9)), "action: expected shape"),
        (lambda: world.step(nan), "action: expected finite"),
        (lambda: world.set_state(np.zeros(99)), "state: expected shape"),
        (lambda: world.reset(options={"goal": world.state() * np.nan}), "goal: expected"),
        (lambda: world.reset(options={"gaol": 1}), "gaol"),
        (lambda: type(world)(size=0), "size: expected"),
        (lambda: type(world)(render_mode="human"), "render_mode: expected"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# ==== Own data, own loss, own environment =======================================================
def test_dataset_rows_are_transitions(dots):
    """In every window of both splits the dot moved by 16 px times the actions in between; frames
    and states agree; the splits share no episode."""
    seen = []
    for split in ("train", "test"):
        rows = dots.windows(split, 6)
        obs, act = dots.batch(rows, 3, 3)
        assert obs.shape[1:] == (3, 64, 64, 3) and act.shape[1:] == (2, 6)
        moved = 16 * act.unflatten(-1, (3, 2)).sum(2).double().numpy()
        for n in (0, 1):
            change = dots.states[rows + 3 * n + 3] - dots.states[rows + 3 * n]
            assert np.allclose(change, moved[:, n], atol=1e-4)
        assert (envs.DotWorld().render_state(dots.states[rows[5]]) == obs[5, 0].numpy()).all()
        seen.append(set((dots.windows(split, 0) // 40).tolist()))
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 50


def test_collection_is_deterministic_and_cached(tmp_path, monkeypatch):
    """The same bytes each time; a second call finds the first's folder; the name does not depend on
    other environments' code."""
    s, source = smwm.settings_for(frames=400, episode=40), inspect.getsource
    first = smwm.collect(s, tmp_path / "a")
    stamp = (first / "frames.npy").stat().st_mtime_ns
    assert smwm.collect(s, tmp_path / "a") == first
    assert (first / "frames.npy").stat().st_mtime_ns == stamp
    monkeypatch.setattr(inspect, "getsource", lambda x: source(x) + "#" * (x is envs.PushT))
    again = smwm.collect(s, tmp_path / "b")
    assert again.name == first.name
    for name in ("frames", "actions", "states", "episode_ends"):
        assert (again / f"{name}.npy").read_bytes() == (first / f"{name}.npy").read_bytes()


def foreign(rows: int = 600) -> dict:
    """Frames of 96 x 128, episodes of 50 and 70 and one of 3, NaN as the last action of each."""
    rng, ends = np.random.default_rng(0), np.array([50, 120, 170, 240, 290, 293, 360, 410, 600])
    actions, states = rng.normal(size=(rows, 1)), rng.normal(size=(rows, 3))
    actions[ends - 1] = np.nan
    frames = rng.integers(0, 255, (rows, 96, 128, 3)).astype(np.uint8)
    return dict(frames=frames, actions=actions, episode_ends=ends, states=states)


def test_own_data(folder, capsys):
    """Saved, resized, trained on, probed and drawn; a short episode is left out and counted."""
    smwm.save_dataset("mine", **foreign())
    said = run(f"train {TINY} --data mine", capsys=capsys)
    assert "1 of 9 episodes are shorter" in said and "planning: off" in said
    assert metrics("runs/mine-smwm-s0")["probe"]["linear"].keys() == {
        "state 0",
        "state 1",
        "state 2",
    }
    run("figures runs/mine-smwm-s0")
    with pytest.raises(smwm.InputError, match="mine: expected a new folder"):
        smwm.save_dataset("mine", **foreign())


def test_a_recording_of_the_published_simulator_is_planned_in(folder, capsys):
    """Push-T with its seven published entries, as in other people's recordings."""
    world = envs.PushT(size=64)
    states = np.concatenate([played(world, seed, 60) for seed in range(10)])
    frames = np.stack([world.render_state(state) for state in states])
    smwm.save_dataset(
        "pushes", frames, np.tile([[0.5], [-0.5]], (300, 2)), range(60, 601, 60), states
    )
    said = run(f"train {TINY} --env pusht --data pushes", capsys=capsys)
    assert "planning, all tasks (n = 4)" in said and "block orientation" in said


@pytest.mark.skipif(not importlib.util.find_spec("h5py"), reason="needs h5py")
def test_readme_reads_lewm_files(folder):
    """The README's recipe on a file of the LeWorldModel collection's layout."""
    import h5py

    arrays = foreign()
    lengths = np.diff(arrays["episode_ends"], prepend=0)
    with h5py.File("lewm.h5", "w") as file:
        file["pixels"], file["action"], file["state"] = (
            arrays[x] for x in ("frames", "actions", "states")
        )
        file["ep_len"], file["ep_offset"] = lengths, arrays["episode_ends"] - lengths
    exec(snippet("h5py.File"), {})
    data = smwm.open_dataset("data/lewm")
    assert (data.ends == arrays["episode_ends"]).all() and (data.states == arrays["states"]).all()


def test_readme_own_loss_and_own_environment(folder, monkeypatch):
    """The README's examples, as they stand there, trained by the command line."""
    monkeypatch.setattr(smwm, "METHODS", dict(smwm.METHODS))
    monkeypatch.setattr(envs, "ENVS", dict(envs.ENVS))
    for words, name, option in (
        ("smwm.METHODS", "loss", "--method vicreg"),
        ("envs.ENVS", "slider", "--env slider --block 1"),
    ):
        Path(f"{name}.py").write_text(snippet(words))  # collect reads an environment's source
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        run(f"train {TINY} {option} --out {name}-run")
    assert "place" in metrics("slider-run")["probe"]["linear"] and metrics("loss-run")


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_bad_datasets_end_in_one_line(folder, capsys):
    nan = np.where(np.arange(400) == 7, np.nan, 1.0)[:, None]
    for n, (name, change, words) in enumerate(
        (
            ("actions", lambda x: x * nan, "finite numbers (row 7"),
            ("states", lambda x: x * nan, "finite numbers (row 7"),
            ("frames", lambda x: x / 255, "uint8"),
            ("frames", lambda x: x[:0], "uint8"),
            ("frames", lambda x: x.max(), "uint8"),
            ("frames", lambda x: x[:, :50], "multiple of 16"),
            ("actions", lambda x: x[:-3], "numbers (400, n)"),
            ("actions", lambda x: x.astype(str), "numbers"),
            ("episode_ends", lambda x: x[::-1], "rising to 400"),
            ("episode_ends", lambda x: x[-1:], "two episodes"),
            ("episode_ends", lambda x: np.int64(400), "two episodes"),
            ("states", lambda x: np.array([Malicious()], object), "an array"),
            ("frames", "hello", "an array"),
            ("meta", "[1", "JSON"),
        )
    ):
        path = smwm.collect(smwm.settings_for(frames=400, episode=40), folder / str(n))
        file = path / f"{name}.{'json' if name == 'meta' else 'npy'}"
        if callable(change):
            np.save(file, change(np.load(file)), allow_pickle=True)
        else:
            file.write_text(change)
        said = run(f"train {TINY} --data {path}", code=2, capsys=capsys).strip()
        assert said.startswith(f"error: {file}: expected") and words in said and "\n" not in said
    assert not (folder / "executed").exists() and not (folder / "runs").exists()


# ==== The command line ==========================================================================
def test_same_seed_same_run(folder):
    """Weights, metrics, and what `evaluate` finds again; other tasks are kept beside."""
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(f"train {TINY} --seed {seed} --out {out}")
    assert same_weights("a", "b") and not same_weights("a", "c")
    run("evaluate a")
    run("evaluate a --tasks 6")
    results = metrics("a"), metrics("b")
    for result in results:
        del result["train"]["seconds"], result["planning"]["seconds_per_plan"]
    assert results[0] == results[1]
    assert smwm.read_json(folder / "a/metrics-tasks6.json")["planning"]["tasks"] == 6


def start(args: str) -> multiprocessing.Process:
    """The command line in a process of its own, which saves a checkpoint at every logged step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gymnasium", "mujoco", "pymunk", "torch"])
    process = context.Process(target=_main, args=(os.getcwd(), args))
    process.start()
    return process


def _main(folder: str, args: str) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    smwm.Recorder.SAVE_EVERY = 0.0
    sys.exit(smwm.main(args.split()))


@pytest.mark.parametrize("method", smwm.METHODS)
def test_killed_at_any_moment_and_resumed(folder, method):
    """kill -9 in collection leaves nothing that is taken for whole. kill -9 in training, then the run
    is moved and resumed: the weights and the log are those of an uninterrupted run."""
    options = f"train --frames 3000 --steps 60 --batch 16 --probe-epochs 1 --tasks 2 --samples 8"
    options += f" --elites 4 --iterations 2 --method {method} --out"

    def kill_when(process, condition) -> None:
        while process.exitcode is None and not condition():
            time.sleep(0.002)
        assert process.exitcode is None, process.exitcode
        process.kill()
        process.join()

    kill_when(start(f"{options} cut"), lambda: [*folder.glob("data/.tmp*/*/frames.npy")])
    assert not [*folder.glob("data/dotworld*")] and not (folder / "cut").exists()
    log = folder / "cut/log.csv"
    kill_when(start(f"{options} cut"), lambda: log.exists() and len(log.read_text().split()) > 20)
    (folder / "cut").rename("moved")
    assert smwm.load_checkpoint("moved")[2]["step"] >= 19
    others = start("train --resume moved"), start(f"{options} whole")
    for process in others:
        process.join()
        assert process.exitcode == 0
    assert same_weights("whole", "moved")
    logs = [np.loadtxt(f"{out}/log.csv", delimiter=",", skiprows=1) for out in ("whole", "moved")]
    assert np.array_equal(np.delete(logs[0], 1, 1), np.delete(logs[1], 1, 1))  # all but seconds


def test_two_processes_train_as_one(folder, capsys):
    """torchrun with two CPU processes follows the loss curve of one process, up to the statistics
    of the batch norms, which each process takes of its half; one process writes."""
    options = "train --frames 2000 --steps 20 --batch 64 --probe-epochs 1 --tasks 2 --samples 8"
    options += " --elites 4 --iterations 2 --out"
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node=2".split()
    command, env = (
        [sys.executable, *torchrun, HERE / "smwm.py"],
        os.environ | {"OMP_NUM_THREADS": "1"},
    )
    two = subprocess.run(
        [*command, *options.split(), "two"], capture_output=True, text=True, env=env
    )
    assert two.returncode == 0, two.stderr
    said = run(f"{options} one", capsys=capsys)
    assert said.count("trained") == two.stdout.count("trained") == 1
    curves = [np.loadtxt(f"{out}/log.csv", delimiter=",", skiprows=1) for out in ("one", "two")]
    assert np.allclose(curves[0][-5:, 2:], curves[1][-5:, 2:], rtol=0.2), curves


def test_bad_settings_end_in_one_line(folder, capsys):
    run(f"train {TINY} --out one")
    for args, words in (
        ("--variant dotted", "--variant: expected one of single"),
        ("--batch 0", "--batch: expected 1 or more, got 0"),
        ("--lr nan", "--lr: expected"),
        ("--size 60", "a size that 16 divides"),
        ("--elites 400", "expected elites <= samples"),
        ("--window 60", "expected train episodes of more than 59 frames, the longest of 10 has 40"),
        ("--goal-offset 60", "expected train episodes of more than 62 frames"),
        ("--device cuda:9", "--device cuda:9: expected one of"),
        ("--data nowhere", "nowhere/frames.npy: expected an array"),
        ("--out /proc/run", "/proc"),
        ("--out one", "one: expected a new run folder"),
        ("--lr 1e30 --steps 40", "the loss became"),
        ("--resume one", "--resume keeps the settings"),
        ("one", "expected run folders after evaluate and figures alone"),
    ):
        capsys.readouterr()
        said = run(f"train {TINY} {args}", code=2, capsys=capsys)
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert words in line and "Traceback" not in said
    for known in ("--env moon", "--method magic", "--device abacus"):
        with pytest.raises(SystemExit):
            run(f"train {known}")


def test_nothing_is_overwritten_or_deleted(folder, monkeypatch):
    run(f"train {TINY} --out one")
    Path("mine").mkdir()
    Path("mine/.hidden").write_text("years of work")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for out in ("one", "mine"):
        run(f"train {TINY} --out {out}", code=2)

    def full(content, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        smwm.save_checkpoint(Path("one"), smwm.load("one"), smwm.settings_for(), None)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bad_files_end_in_one_line(folder, capsys):
    """A checkpoint and results, cut short, of another kind, or malicious."""
    run(f"train {TINY} --out one")
    whole = {path: path.read_bytes() for path in Path("one").iterdir()}
    path, content = Path("one/checkpoint.pt"), torch.load("one/checkpoint.pt", weights_only=True)
    nan = {name: value * math.nan for name, value in content["model"].items()}
    bad = [content | {"settings": content["settings"] | {"width": 64}}, content | {"model": nan}]
    bad += [content | {"settings": content["settings"] | {"networks": "os.mkdir"}}, [1, 2]]
    for value in (*bad, content | {"settings": Malicious()}, whole[path][:1000], b"hello"):
        path.write_bytes(value) if isinstance(value, bytes) else torch.save(value, path)
        capsys.readouterr()
        said = run("evaluate one", code=2, capsys=capsys).strip()
        assert said.startswith(f"error: {path}: expected a checkpoint") and "\n" not in said
    for path in (Path("one", name) for name in ("settings.json", "metrics.json", "evaluation.npz")):
        for value in (b"", whole[path][: len(whole[path]) // 2], b"[3]"):
            path.write_bytes(value)
            said = run("figures one", code=2, capsys=capsys).strip()
            assert said.startswith("error: one") and "\n" not in said, said
        path.write_bytes(whole[path])
    assert not (folder / "executed").exists()


def test_figures_draw_runs_side_by_side(trained, folder, capsys):
    run(f"train {TINY} --method forward")
    for runs in ([trained], [trained, "runs/dotworld-forward-s0"]):
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            said = run("figures", *runs, "--out drawn", capsys=capsys)
        assert len(said.split()) == 1 + len(runs)
        assert all(Path(path).read_bytes()[:4] == b"\x89PNG" for path in said.split())
    for entries, angle in ((1, False), (2, False), (3, False), (2, True), (4, True)):
        place, colour = smwm.colours(np.random.default_rng(0).normal(size=(9, entries)), angle)
        assert place.shape == (9, 2) and colour.shape[0] == 9 and np.isfinite(colour).all()


def test_progress_is_plain_lines_without_a_terminal(capsys, monkeypatch):
    tqdm = smwm.tqdm
    monkeypatch.setattr(
        smwm, "tqdm", lambda *a, **k: tqdm(*a, **k | {"mininterval": 0, "delay": 0})
    )
    for _ in (bar := smwm.progress(range(3), "work")):
        bar.set_postfix({"loss": 1.5})
    said = capsys.readouterr().err
    assert re.search(r"^work: 1/3, .*left, loss=1.5$", said, re.M) and "\r" not in said


def test_help_fits_a_screen_and_shows_the_defaults_that_would_be_used(capsys):
    for args, expected in (
        ("", dict(steps=250, lam=10.0, block=1)),
        ("--env sprite --variant xyt", dict(steps=2000, lam=100.0)),
        ("--env pusht --method sigreg", dict(lam=0.09, frames=600_000)),
    ):
        with pytest.raises(SystemExit):
            smwm.main(["train", *args.split(), "--help"])
        text = capsys.readouterr().out
        assert len(text.splitlines()) <= 45 and max(map(len, text.splitlines())) <= 100
        for name, value in expected.items():
            assert re.search(rf"--{name} .*\[{re.escape(str(value))}\]", text), (args, name)


def test_sizes():
    """The budgets of a minimal reference implementation."""
    texts = {x: (HERE / x).read_text() for x in ("smwm.py", "envs.py", "test_smwm.py", "README.md")}
    count = {name: len(text.splitlines()) for name, text in texts.items()}
    assert count["smwm.py"] <= 1100 and count["envs.py"] <= 950 and count["test_smwm.py"] <= 700
    assert count["README.md"] <= 220 and max(map(len, README.splitlines())) <= 100
    assert len(texts["smwm.py"].split("# Running it")[0].splitlines()) <= 500
    assert (
        len(smwm.fields(smwm.Settings)) <= 26 and "fmt: " not in texts["smwm.py"] + texts["envs.py"]
    )
    order = re.findall(r"# ==== (\w+)", texts["smwm.py"])[:7]
    assert order == ["Settings", "Model", "Losses", "Data", "Training", "Planning", "Probes"]
