"""The tests, in the order of the README and of smwm.py: pytest -q."""

import copy
import importlib
import inspect
import math
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

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
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def run(args: str, code: int = 0, capsys=None) -> str:
    """Run the command line in this process; returns what it printed."""
    assert smwm.main(args.split()) == code
    return "".join(capsys.readouterr()) if capsys else ""


def metrics(run: str) -> dict:
    return smwm.read_json(Path(run, "metrics.json"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The main job in an empty folder; dot world is the default of `--env`."""
    here = tmp_path_factory.mktemp("main")
    subprocess.run([sys.executable, HERE / "smwm.py", "train"], cwd=here, check=True)
    return here / "runs/dotworld-smwm-s0"


@pytest.fixture(scope="session")
def dots(tmp_path_factory):
    s = smwm.settings_for(frames=2000, episode=40)
    return smwm.open_dataset(smwm.collect(s, tmp_path_factory.mktemp("data")))


# ==== The method ================================================================================
BY_HAND = SimpleNamespace(history=1, forward_model=torch.add, inverse_model=lambda z, n: n - z)


def test_loss_by_hand():
    """One window of three latents in two dimensions, z = (0,0), (1,0), (1,3), a = (1,2), (0,1).

    g predicts (1,2) and (1,1): the errors (0,2) and (0,-2) give L_fwd = (0+4+0+4)/4 = 2.
    h infers (1,0) and (0,3): the errors (0,-2) and (0,2) give L_inv = 2.  L = 2 + 10 * 2 = 22.
    Nothing is detached: both gradients are (0,1) for the outer latents and (0,-2) between."""
    z = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]]], requires_grad=True)
    act = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    loss, terms = smwm.smwm_loss(BY_HAND, z, act, lam=10.0)
    assert (loss.item(), terms["forward"].item(), terms["inverse"].item()) == (22, 2, 2)
    slopes = [torch.autograd.grad(x, z, retain_graph=True)[0].tolist() for x in terms.values()]
    assert slopes == 2 * [[[[0, 1], [0, -2], [0, 1]]]]
    assert smwm.forward_loss(BY_HAND, z, act)[0].item() == 2
    late = SimpleNamespace(history=2, forward_model=lambda z, act: (z + act)[:, 1:])
    assert smwm.forward_loss(late, z, act)[0].item() == 2  # zeros come before the window


def test_sigreg_statistic():
    """For latents that are all 1, then all -1, phi(t) = exp(+-it). Over the whole line SIGReg is
    n * integral |exp(it) - exp(-t^2/2)|^2 exp(-t^2/2) dt
    = n sqrt(2 pi) (1 - sqrt(2) exp(-1/4) + 1/sqrt(3)). For Gaussian latents it is of order 1."""
    n, act, generator = 4096, torch.zeros(4096, 1, 1), torch.Generator().manual_seed(0)
    exact = n * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) * math.exp(-1 / 4) + 1 / math.sqrt(3))
    _, terms = smwm.sigreg_loss(BY_HAND, torch.tensor([[1.0], [-1.0]]).expand(n, 2, 1), act)
    assert terms["sigreg"].item() == pytest.approx(exact, rel=0.02)
    gaussian = torch.randn(n, 2, 1, generator=generator)
    assert smwm.sigreg_loss(BY_HAND, gaussian, act, generator=generator)[1]["sigreg"] < 2


def test_main_job(trained):
    """The README's first command: the latent is the dot's position, and all tasks are solved."""
    result = metrics(trained)
    assert result["probe"]["linear"]["dot 1"] >= 0.999 and result["planning"]["random"] < 40
    assert 1.95 <= result["latent"]["effective_dim"] < 2.15
    assert result["latent"]["rollout_error"][4] < 0.02 and result["latent"]["inverse"] < 0.05
    assert result["planning"]["tasks"] == result["planning"]["success"] == 100
    assert len(np.load(trained / "evaluation.npz")["components"]) == 2000  # the held-out frames


def test_without_the_inverse_term_the_latent_collapses(folder, capsys):
    """Only `forward` collapses, and the command says so. The pictures show all three methods."""
    spread, options = {}, "--frames 2000 --steps 150 --batch 16 --tasks 2 --probe-epochs 1"
    for method in smwm.METHODS:
        said = run(f"train {options} --method {method} --out {method}", capsys=capsys)
        spread[method] = metrics(method)["latent"]["spread"]
        assert ("collapsed" in said) == (method == "forward")
    assert spread["smwm"] > 0.3 and spread["sigreg"] > 0.3 and spread["forward"] < 0.05, spread
    drawn = run("figures smwm sigreg forward --out drawn", capsys=capsys).split()
    assert len(drawn) == 4 and all(Path(x).read_bytes()[:4] == b"\x89PNG" for x in drawn)


def test_optimizer_is_muon_and_adamw():
    """For matrices torch.optim.Muon, for the rest torch.optim.AdamW."""
    shapes = (40, 90), (90, 40), (9,)
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in "ab")
    optimizer = smwm.Optimizer(ours, muon=True, decay=0.1, dtype=torch.bfloat16)
    muon = torch.optim.Muon(theirs[:2], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(theirs[2:], lr=0.1, weight_decay=0.1)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = b.grad = torch.randn(a.shape)
        optimizer.step(0.1)
        muon.step()
        adamw.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_training_goes_on_as_if_it_had_not_stopped(dots, device):
    """On a GPU the first steps after a start run eagerly, later ones replay a CUDA graph."""
    s = smwm.settings_for(method="sigreg", lam=0.5, width=256, steps=14, batch=16)
    model, losses, saved = smwm.build_model(s, 2, device == "cuda").to(device), {}, {}

    def after_step(step: int, terms: dict, state: dict) -> None:
        losses.setdefault(step, []).append(terms["loss"].item())
        assert torch.isclose(terms["loss"], terms["forward"] + 0.5 * terms["sigreg"])
        saved.setdefault(step, copy.deepcopy((model.state_dict(), state)))

    smwm.train(model, dots, s, after_step)
    model.load_state_dict(saved[7][0])
    smwm.train(model, dots, s, after_step, saved[7][1])
    assert all(losses[step][0] == losses[step][1] for step in range(8, 15)), losses


def test_training_draws_training_windows_and_warms_up(dots, monkeypatch):
    s, rates, cosine = smwm.settings_for(steps=20), [], (1 + math.cos(0.1 * math.pi)) / 2
    monkeypatch.setattr(dots, "batch", batch := Mock(wraps=dots.batch))
    monkeypatch.setattr(smwm.Optimizer, "step", lambda self, lr: rates.append(lr.item() / s.lr))
    smwm.train(smwm.build_model(s, 2, False), dots, s)
    rows = torch.cat([call.args[0] for call in batch.call_args_list])
    assert torch.isin(rows, dots.windows("train", 3)).all()
    assert rates[:2] + rates[19:] == pytest.approx([0.5, cosine, 0])


def test_history_is_the_last_latents_and_blocks():
    """With P = 3 a prediction depends on three latents. A rollout is repeated prediction."""
    model = smwm.WorldModel(action_dim=2, width=16, history=3)
    z, act, g = torch.randn(5, 6, 8, requires_grad=True), torch.randn(5, 6, 2), model.forward_model
    for t in range(3):
        (gradient,) = torch.autograd.grad(g(z, act)[:, t].sum(), z)
        assert gradient.abs().sum((0, 2)).nonzero().flatten().tolist() == [t, t + 1, t + 2]
    first = g(z[:, :3], act[:, :3])
    second = g(torch.cat([z[:, 1:3], first], 1), act[:, 1:4])
    imagined = model.rollout(z[:, :3], act[:, :2], act[:, 2:4])
    assert torch.allclose(imagined, torch.cat([first, second], 1), atol=1e-6)


def test_encode_takes_frames_of_any_size_in_any_precision():
    """A pixel is the mean of 2 x 3 of the input. Autocast, flipped views, bf16 change no pixel."""
    model, pixels = smwm.WorldModel(action_dim=2, width=64).eval(), []
    model.encoder.register_forward_pre_hook(lambda _, x: pixels.append(x[0].float()))
    large = np.random.default_rng(0).integers(0, 256, (2, 3, 128, 192, 3)).astype(np.uint8)
    z = model.encode(large.reshape(2, 3, 64, 2, 64, 3, 3).mean((3, 5)).round().astype(np.uint8))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model.encode(np.flip(np.flip(large, 3).copy(), 3)), z, atol=1e-5)
    model.bf16 = True
    assert model.encode(large).shape == z.shape and torch.equal(pixels[0], pixels[-1])
    for wrong in (large / 255, large[0, 0], large.transpose(0, 1, 4, 2, 3)):
        pytest.raises(ValueError, model.encode, wrong)


def test_sections_run_where_they_are_copied():
    """Model, Losses and `cem` with `plan`, in a file that imports torch, numpy and math."""
    parts = re.split(r"# ==== (\w+).*=\n", (HERE / "smwm.py").read_text())
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    code = "import math, torch, numpy as np\nfrom torch import Tensor, nn\n"
    code += "from torch.nn import functional as F\n" + sections["Model"] + sections["Losses"]
    exec(code + sections["Planning"].split("def evaluate_planning")[0], copied := {})
    obs, model = torch.zeros(2, 2, 64, 64, 3).byte(), copied["WorldModel"](action_dim=2)
    copied["smwm_loss"](model, model.encode(obs), torch.randn(2, 1, 2))[0].backward()
    acts = copied["plan"](model.eval(), obs[:, 0], obs[:, 1], samples=8, elites=2, iterations=2)
    assert acts.shape == (2, 5, 2) and acts.isfinite().all()


# ==== Acting ====================================================================================
class Crane(gym.Env):
    """A disc on a rail, in its own pixels. Actions are not in [-1, 1]; one entry is constant."""

    action_space = gym.spaces.Box(np.float32([57, 300]), np.float32([456, 300]), seed=0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
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
    """The README's loop, in this test's environment. Plans end nearer to goals than random acts."""
    monkeypatch.setattr(gym, "make", lambda *args, **options: Crane())
    exec(snippet("env.render()"), names := {})
    model, env, left = names["model"], names["env"], {"plan": [], "random": []}
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
    model, seen = smwm.WorldModel(action_dim=2, block=3, width=32, history=3).eval(), []
    model.act_mean += 0.5
    model.forward_model.register_forward_pre_hook(lambda _, x: seen.append(x))  # 10 a plan
    obs = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 50, 3)).astype(np.uint8)
    good = dict(obs=obs, goal_obs=obs[:, 0], past=np.ones((2, 6, 2)), horizon=2, **SMALL)
    assert (acts := smwm.plan(model, **good)).shape == (2, 6, 2) and acts.abs().max() <= 1
    past, first = seen[0][1][..., :2, :], seen[0][1][:, 0, 2]
    assert (past == 0.5).all() and not first.any()  # ones, standardised; CEM's mean comes first
    smwm.plan(model, **good | {"past": None, "obs": torch.from_numpy(obs[:, -1])})
    assert [bool(z.any()) for z in seen[10][0].unbind(-2)] == [False, False, True]
    bad = [{"past": np.ones(shape)} for shape in ((2, 3, 2), (2, 2, 6))]
    bad += [{"goal_obs": obs[:1, 0]}, {"horizon": 0}, {"elites": 1}, {"iterations": 0}]
    bad += [{"obs": np.concatenate([obs, obs], 1)}, {"samples": 1, "elites": 1}, {"elites": 51}]
    for change in bad:
        with pytest.raises(ValueError, match="expected"):
            smwm.plan(model, **good | change)
    pytest.raises(AssertionError, smwm.plan, model.train(), obs, obs[:, 0])  # batch norm
    model.forward_model.out.bias.data[0] = math.nan
    pytest.raises(ValueError, smwm.plan, model.eval(), **good)  # not finite


def test_cem_finds_the_optimum_of_a_quadratic():
    target = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    zeros, generator = torch.zeros_like(target), torch.Generator().manual_seed(1)
    cost = lambda acts: (acts - target[:, None]).square().sum((2, 3))  # noqa: E731
    assert torch.allclose(smwm.cem(cost, zeros, zeros + 1, generator=generator), target, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_plans_agree_between_devices_and_batches(trained, dots, device):
    """The same latents on every device, and plans that reach the goal, in a batch or one by one."""
    here, there = smwm.load(trained), smwm.load(trained, device)
    obs, goal = dots.frames[[0, 39], None]
    z, z_goal = here.encode(obs), here.encode(goal)
    assert torch.allclose(there.encode(obs).cpu(), z, atol=0.05)
    acts = smwm.plan(there, obs, goal).cpu()
    end = here.rollout(z[:, None], acts[:, :0], here.standardise(acts))[:, -1]
    assert (end - z_goal).square().sum() < 0.05 * (z - z_goal).square().sum()
    batch = smwm.plan(there, dots.frames[:5], goal.expand(5, -1, -1, -1)).cpu()
    assert torch.allclose(batch[:1], acts, atol=1e-3 if device == "cpu" else 0.1)  # bf16


# ==== Results: planning tasks and probes ========================================================
def test_a_task_is_solved_at_its_first_success(dots):
    """At the first state within 2 px of the goal, the start included, within ten steps."""
    s = smwm.settings_for(tasks=200, goal_offset=5, horizon=3)
    scores, plans = smwm.score_planning(None, dots, s)
    paths = np.linalg.norm(plans["states"][:, 2:] - plans["goals"][:, None], axis=2)
    first = np.array([next(iter(np.flatnonzero(path <= 2)), -1) for path in paths])
    assert paths.shape[1] == 1 + 2 * 5 and (plans["solved"] == first).all() and 0 in first
    assert scores["success_unsolved"] == 100 * np.mean(first[first != 0] > 0)
    assert {*map(tuple, plans["goals"])} <= {*map(tuple, dots.states[dots.windows("test", 0)])}


def test_a_plan_sees_the_past_of_its_task(dots, monkeypatch):
    """With P = 3: the last three frames and the actions between them, and CEM's sizes."""
    s = smwm.settings_for(tasks=9, history=3, horizon=1, samples=9, elites=3, iterations=2)
    plan = Mock(side_effect=lambda model, obs, *rest, **sizes: torch.full((len(obs), 1, 2), 0.1))
    monkeypatch.setattr(smwm, "plan", plan)
    plans = smwm.evaluate_planning(smwm.build_model(s, 2, False), dots, s)
    (_, obs, _, past), sizes = plan.call_args_list[1]  # one action is recorded, one was planned
    left = ~np.isin(plans["solved"], (0, 1))
    seen = [[envs.DotWorld().render_state(x) for x in task[1:4]] for task in plans["states"][left]]
    assert (obs == seen).all() and (past == plans["actions"][left, 1:3]).all()
    assert sizes == dict(seed=3, horizon=1, samples=9, elites=3, iterations=2)


def test_probes_read_what_is_there_and_nothing_else():
    """y = x_1^2 is invisible to the linear probe, read by the MLP; noise is read by neither."""
    x, noise = torch.randn(2, 4000, 3, generator=torch.Generator().manual_seed(0)).double()
    for y, linear, mlp in ((x.sum(1, keepdim=True), 1, 1), (x[:, :1] ** 2, 0, 1), (noise, 0, 0)):
        y, y_test = smwm.standardise_by_train(y[:3000], y[3000:])
        for probe, score in ((smwm.linear_probe, linear), (smwm.mlp_probe, mlp)):
            read = probe(x[:3000], y, x[3000:])
            assert smwm.r2(read, y_test) == pytest.approx(score, abs=0.06)


def test_measures_by_hand():
    """R2: the mean predicts nothing; two off gives 1 - 3 * 4 / 2 = -5; a constant does not count.
    Effective dimension of variances 1, 1, 0.01: 2.01^2 / 2.0001 = 2.02.
    Wilson's interval of five hits of ten is 50 -+ 50 z / sqrt(n + z^2) with z = 1.96."""
    target = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    assert smwm.r2(torch.tensor([[2.0, 4.0]] * 3), target) == pytest.approx(0)
    assert smwm.r2(target + 2, target) == pytest.approx(-5)
    assert smwm.effective_dim(torch.tensor([1.0, 1, 0.01])) == pytest.approx(2.02, abs=1e-3)
    assert smwm.interval95(np.arange(10) < 5) == pytest.approx([23.66, 76.34], abs=0.01)


# ==== Environments ==============================================================================
VARIANTS = [(env, variant) for env, cls in envs.ENVS.items() for variant in cls.VARIANTS]


def played(world, seed: int, steps: int = 25) -> list[np.ndarray]:
    """The states along an episode of the behaviour policy."""
    world.reset(seed=seed)
    policy = world.behavior(np.random.default_rng(seed))
    return [world.advance(policy(world))["state"] for _ in range(steps)]


@pytest.mark.parametrize("env, variant", VARIANTS)
def test_copies_and_restored_states_continue_identically(env, variant):
    """Copies continue to the last bit, a restored state nearly so if nothing moves at random."""
    world, placed = envs.make(env, variant, 32), envs.make(env, variant, 32)
    state = played(world, 1)[-1]
    _, info = placed.reset(options={"state": state, "goal": state})
    length = {"sprite": 3, "tworoom": 2, "reacher": 4, "pusht": 7}.get(env, len(world.state()))
    assert len(state) == length and info["success"] and np.allclose(info["state"], state, atol=5)
    assert (envs.make(env, variant, 32).render_state(state) == world.render_state(state)).all()
    worlds = world, copy.copy(world), pickle.loads(pickle.dumps(world)), placed
    policy = world.behavior(np.random.default_rng(2))
    for _ in range(25):
        assert world.action_space.contains(action := policy(world))
        ours, copied, unpickled, near = (each.advance(action)["state"] for each in worlds)
        assert (ours == copied).all() and (ours == unpickled).all()
        if variant not in ("distractor", "combined", "none", "x", "xy"):
            assert np.allclose(ours, near, atol=5 if env == "pusht" else 1e-9)
    assert {*world.controlled, *world.angles} <= {*world.probe_targets(state[None])}


def test_reacher_is_the_control_suites():
    """dm_control 1.0.50's reacher.xml in mujoco 4.0.0, the wrist at its limit: equal bits."""
    world = envs.Reacher(size=16)
    world.reset(options={"state": [0.5, -1.0, 0, 0]})
    states = [world.advance([(t % 7 - 2) / 4, (t % 5 - 1) / 2])["state"] for t in range(200)]
    a, b = [5.328890163669101, 2.81578308999913], [0.6737939237518848, 0.501712354347192]
    assert states[199].tolist() == a + b


def test_pusht_is_the_published_simulator():
    """stable-worldmodel 0.1.1's Push-T with pymunk 7.3.1, the block pushed: equal bits."""
    world = envs.PushT(size=16)
    world.reset(options={"state": [140.0, 330.0, 256.0, 256.0, 0.6, 0.0, 0.0]})
    assert world.state().tolist() == [140.0, 330.0, 256.0, 255.99999999999997, 0.6, 0.0, 0.0]
    states = []
    for t in range(100):
        action = np.array([(t % 7 - 2) / 8, (-1) ** (t // 25) * (t % 5 - 1) / -8])
        states.append(world.advance(action)["state"].tolist())
    a, b = [624.6039761795397, 325.84590958705434], [317.104718278424, 384.04447597813976]
    assert states[99] == [*a, *b, 2.4546965800919747, -46.14757971184984, 139.69449384786782]


def test_tworoom_follows_the_published_rule():
    """stable-worldmodel 0.1.1's, 25 steps: through the door, against the wall from either side."""
    world, door = envs.TwoRoom(size=16), ([60, 49], [1, 0.25], [185.0, 80.25])
    walls = ([60, 100], [1, 0.125], [99.5, 115.625]), ([165, 150], [-1, 1], [124.5, 203.0])
    for start, action, end in (door, *walls):
        world.reset(options={"state": start})
        states = [world.advance(action)["state"] for _ in range(25)]
        assert np.abs(states[-1] - end).max() < 1e-5


def test_cube_holds_what_it_grasps():
    """A gripped cube lifted to z = 0.3 m is still there after 50 steps; opened, it falls."""
    world = envs.Cube(size=16)
    start = world.reset(seed=0)[1]["state"]
    cube, up, yaw = start[:3], np.array([*start[:2], 0.3]), 2 * np.arctan2(start[6], start[3])

    def go(target, close, steps) -> float:
        for _ in range(steps):
            state = world.state()
            turn = math.remainder(yaw - state[10], math.pi / 2)
            action = [*(target - state[7:10]) / 0.05, turn / 0.3, close]
            state = world.advance(np.clip(action, -1, 1))["state"]
        return np.abs(state[:3] - up).max()

    over = cube + [0, 0, 0.1]
    for target, close, steps in ((over, -1, 25), (cube, -1, 10), (cube, 1, 4), (up, 1, 12)):
        go(target, close, steps)
    assert all(go(up, 1, 1) < 0.02 for _ in range(50)) and go(up, -1, 20) > 0.25


def test_dotworld_moves_exactly():
    """16 px a unit; cut at the border (2 px and 62 px); a blocked move does not happen."""
    world = envs.DotWorld(independent=2)
    world.reset(options={"state": [10.0, 20.0, 40.0, 40.0], "goal": [18, 16, 56, 56]})
    _, *end, info = world.step([0.5, -0.25, 7.0, 1.0])  # 7 counts as 1
    assert info["state"].tolist() == [18, 16, 56, 56] and end == [1, True, False]
    assert world.advance([-1.0, 0.0, 1.0, 1.0])["state"].tolist() == [2, 16, 62, 62]
    world.reset(options={"state": [10.0, 20.0, 26.0, 22.0]})  # (26, 20) is too near the other
    assert world.advance([1.0, 0.0, 0.0, 0.0])["state"].tolist() == [10, 20, 26, 22]
    pair = envs.DotWorld(independent=0, coupled=1)
    pair.reset(options={"state": [10.0, 10.0, 20.0, 30.0]})  # the pair keeps its shape
    assert pair.advance([-1.0, 0.5])["state"].tolist() == [2, 18, 12, 38]


def test_what_is_not_controlled_moves_without_the_action():
    """Random dots do, static ones do not. A sprite does by 8 px and 8 / 7.5 rad (pi for xyt)."""
    states = np.array(played(world := envs.DotWorld(random=1, static=1), 0))
    assert np.ptp(states[:, 2:4], axis=0).min() > 10 and not np.ptp(states[:, 4:], axis=0).any()
    assert world.is_success(states[0], np.append(states[0, :2], states[-1, 2:]))
    for axes in ("", "x", "xy", "xyt"):
        moves = np.abs(np.diff(played(world := envs.Sprite(axes), 0, 200), axis=0))
        moves[:, 2] = np.minimum(moves[:, 2], 2 * math.pi - moves[:, 2])
        share = moves.max(0) / [8, 8, math.pi if axes == "xyt" else 8 / 7.5]
        assert (share <= 1 + 1e-9).all() and (share > 0.9).all()
        old, new = world.state(), world.advance(np.zeros(max(1, len(axes))))["state"]
        assert (old == new).tolist() == [c in axes for c in "xyt"] and world.is_success(old, new)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("env", envs.ENVS)
def test_environments_are_gymnasiums_and_refuse_bad_input(env):
    made = gym.make(f"smwm/{envs.ENVS[env].__name__}-v0", render_mode="rgb_array")
    check_env(world := made.unwrapped)
    assert made.spec.max_episode_steps == 200
    nan, bad = np.full(world.action_space.shape, np.nan), world.state() * np.nan
    for call, words in (
        (lambda: world.step(np.zeros(9)), "action: expected shape"),
        (lambda: world.step(nan), "action: expected finite"),
        (lambda: world.reset(options={"state": np.zeros(99)}), "state: expected shape"),
        (lambda: world.reset(options={"goal": bad}), "goal: expected finite"),
        (lambda: world.reset(options={"gaol": 1}), "gaol"),
        (lambda: type(world)(size=0), "size: expected"),
        (lambda: type(world)(render_mode="human"), "render_mode: expected"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


LIMITS = {"dotworld": {0: 2}, "sprite": {1: 2, 2: 0.1}, "tworoom": {0: 16}, "cube": {2: 0.04}}
LIMITS |= {"reacher": {0: 0.05, 1: 0.05}, "pusht": {0: 20, 3: 20, 4: math.pi / 9}}


@pytest.mark.parametrize("env", envs.ENVS)
def test_success_has_the_published_limits(env):
    state = (world := envs.ENVS[env]()).reset(seed=0)[1]["state"]
    for entry, limit in LIMITS[env].items():
        turn = 2 * math.pi * ((env, entry) in [("reacher", 0), ("pusht", 4), ("sprite", 2)])
        for share in (-1.01, -0.99, 0.99, 1.01):
            goal = state + (share * limit + turn) * np.eye(len(state))[entry]
            assert world.is_success(state, goal) == (abs(share) < 1)


def test_pictures_show_the_state():
    """Each thing is drawn in its place. Cube skips no pixel that shows more than bare table."""
    red, turn, whole = (214, 39, 40), math.pi / 2, envs.Cube()
    cube = [0.5, 0.1, 0.02, 1, 0, 0, 0, 0.4, -0.3, 0.3, 0, 0]
    shown = [("tworoom", [60, 100], (28, 17), red), ("reacher", [turn, 0, 0, 0], (6, 32), red)]
    shown += [("sprite", [32, 32, turn], (40, 32), red), ("cube", cube, (39, 39), (195, 35, 36))]
    shown += [("pusht", [99, 99, 256, 256, turn, 0, 0], (32, 20), (119, 136, 153))]
    for env, state, pixel, colour in shown:
        assert (envs.ENVS[env]().render_state(np.array(state))[pixel] == colour).all()
    whole._near = lambda: np.ones((64, 64), bool)
    for state in played(world := envs.Cube(), 0, 60)[::10]:
        assert (world.render_state(state) == whole.render_state(state)).all()


def test_behaviours_move_what_matters():
    """An agent changes rooms, a block is pushed, a cube is lifted; limits in the state's units."""
    for env, entry, least in (("tworoom", 0, 100), ("pusht", 2, 30), ("cube", 2, 0.05)):
        runs = [played(envs.make(env, "default", 16), seed, 100) for seed in range(4)]
        assert max(np.ptp(run, axis=0)[entry] for run in runs) > least


# ==== Own data, own loss, own environment =======================================================
def test_dataset_rows_are_transitions(dots):
    """The dot moved by 16 px times the actions in between; the splits share no episode."""
    for split in ("train", "test"):
        rows = dots.windows(split, 6)
        obs, act = dots.batch(rows, 3, 3)
        moved = 16 * act.unflatten(-1, (3, 2)).sum(2).double().numpy()
        change = np.diff(dots.states[rows[:, None] + torch.tensor([0, 3, 6])], axis=1)
        assert obs.shape[1:] == (3, 64, 64, 3) and np.allclose(change, moved, atol=1e-4)
        assert (envs.DotWorld().render_state(dots.states[rows[5]]) == obs[5, 0].numpy()).all()
    both = [{*(dots.windows(split, 0) // 40).tolist()} for split in ("train", "test")]
    assert not both[0] & both[1] and len(both[0] | both[1]) == 50


def test_collection_is_deterministic_and_cached(tmp_path, monkeypatch):
    """Equal bytes; a finished folder is reused. Other environments' code keeps its name."""
    s, source = smwm.settings_for(frames=400, episode=40), inspect.getsource
    first = smwm.collect(s, tmp_path / "a")
    stamp = (first / "frames.npy").stat().st_mtime_ns
    monkeypatch.setattr(inspect, "getsource", lambda x: source(x) + "#" * (x is envs.PushT))
    again = smwm.collect(s, tmp_path / "b")
    assert smwm.collect(s, tmp_path / "a") == first and again.name == first.name
    assert (first / "frames.npy").stat().st_mtime_ns == stamp
    assert smwm.settings_for(data=str(first)).env == "dotworld"
    assert all((again / file.name).read_bytes() == file.read_bytes() for file in first.iterdir())
    monkeypatch.setattr(inspect, "getsource", lambda x: source(x) + "#" * (x is envs.Canvas))
    assert smwm.collect(s, tmp_path / "b").name != first.name


def test_own_data(folder, capsys):
    """Saved, resized, trained on, probed and drawn. On held-out frames no probe reads noise."""
    rng, ends = np.random.default_rng(0), np.array([50, 120, 170, 240, 290, 293, 360, 410, 600])
    actions, states = rng.normal(size=(600, 1)), rng.normal(size=(600, 3))
    actions[ends - 1] = np.nan
    frames = rng.integers(0, 255, (600, 96, 128, 3)).astype(np.uint8)[:, ::-1]
    smwm.save_dataset("mine", frames, actions, ends, states)
    said = run(f"train {TINY} --data mine", capsys=capsys)
    assert "1 of 9 episodes are shorter" in said and "planning: off" in said and "state 2" in said
    assert max(metrics("runs/mine-smwm-s0")["probe"]["linear"].values()) < 0.1
    run("figures runs/mine-smwm-s0")
    pytest.raises(smwm.InputError, smwm.save_dataset, "mine", frames, actions, ends)  # exists
    np.save("mine/frames.npy", np.zeros((600, 32, 32, 3), np.uint8))
    assert "the data of the training" in run("evaluate runs/mine-smwm-s0", code=2, capsys=capsys)


def test_readme_plans_on_lewm_files(folder, capsys):
    """The README's recipe on a file of the LeWorldModel collection's layout, of Push-T."""
    h5py, world = pytest.importorskip("h5py"), envs.PushT(size=64)
    states = np.concatenate([played(world, seed, 60) for seed in range(10)])
    with h5py.File("lewm.h5", "w") as file:
        file["pixels"] = np.stack([world.render_state(state) for state in states])
        file["action"], file["state"] = np.tile([[0.5], [-0.5]], (300, 2)), states
        file["ep_len"], file["ep_offset"] = np.full(10, 60), np.arange(0, 600, 60)
    exec(snippet("h5py.File"), {})
    assert (smwm.open_dataset("data/lewm").states == states).all()
    said = run(f"train {TINY} --env pusht --data data/lewm --history 3", capsys=capsys)
    assert "planning, all tasks (n = 4)" in said and "block orientation" in said


def test_readme_own_loss_and_own_environment(folder, monkeypatch):
    """The README's loss, and a subclass of an environment, trained by the command line."""
    monkeypatch.setattr(smwm, "METHODS", dict(smwm.METHODS))
    monkeypatch.setattr(envs, "ENVS", dict(envs.ENVS))
    monkeypatch.syspath_prepend(folder)  # collect reads an environment's source from its file
    room = "import envs\nclass Room(envs.TwoRoom):\n    SPEED = 10.0\nenvs.ENVS['room'] = Room\n"
    for name, text in {"vicreg": snippet("smwm.METHODS["), "room": room}.items():
        Path(f"mine_{name}.py").write_text(text)
        importlib.import_module(f"mine_{name}")
        run(f"train {TINY} {'--env' if name == 'room' else '--method'} {name} --out {name}")
        assert metrics(name)["planning"]["tasks"] == 4
    monkeypatch.setattr(envs.TwoRoom, "render_state", lambda self, state: np.zeros((64, 64, 3)))
    pytest.raises(AssertionError, smwm.collect, smwm.settings_for(env="tworoom", frames=200))


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_bad_datasets_end_in_one_line(folder, capsys):
    nan = np.where(np.arange(400) == 7, np.nan, 1.0)[:, None]
    faults = [
        ("actions", lambda x: x * nan, "finite numbers (row 7"),
        ("states", lambda x: np.array([Malicious()], object), "an array"),
        ("frames", lambda x: x / 255, "uint8"),
        ("actions", lambda x: x[:-3], "(400, m or d)"),
        ("episode_ends", lambda x: x[::-1], "the last 400"),
        ("episode_ends", lambda x: np.int64(400), "two or more"),
        ("episode_ends", lambda x: x / 1, "two or more"),
        ("frames", None, "an array"),
    ]
    for n, (name, change, words) in enumerate(faults):
        data = smwm.collect(smwm.settings_for(frames=400, episode=40), folder / str(n))
        file = data / f"{name}.npy"
        np.save(file, change(np.load(file)), True) if change else file.write_text("hello")
        said = run(f"train {TINY} --data {data}", code=2, capsys=capsys).strip()
        assert said.startswith(f"error: {file}: expected") and words in said and "\n" not in said
    assert not (folder / "executed").exists() and not (folder / "runs").exists()


# ==== The command line ==========================================================================
def test_same_seed_same_run(folder, monkeypatch):
    """The same weights and metrics, also from `evaluate`. Other options give other weights."""
    for out, change in dict(a="", b="", c="--seed 4", d="--lr 0.1", e="--decay 0.5").items():
        run(f"train {TINY} --seed 3 {change} --out {out}")
    monkeypatch.setattr(smwm, "collect", None)
    run("evaluate a")
    run("evaluate a --tasks 6")
    a, *others = (smwm.load(out).state_dict() for out in "abcde")
    assert [all(torch.equal(a[x], b[x]) for x in a) for b in others] == [True, False, False, False]
    one, two = (metrics(out) | {"train": "has seconds"} for out in "ab")
    assert one == two
    assert smwm.read_json(folder / "a/metrics-tasks6.json")["planning"]["tasks"] == 6


def start(args: str) -> subprocess.Popen:
    """The command line in a process that saves a checkpoint at every logged step."""
    code = "import sys, smwm; smwm.Recorder.SAVE_EVERY = 0; sys.exit(smwm.main(sys.argv[1:]))"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    return subprocess.Popen([sys.executable, "-c", code, *args.split()], env=env)


def test_killed_at_any_moment_and_resumed(folder):
    """kill -9 in collection and in training; moved and resumed, it ends as if uninterrupted."""
    options = f"train {TINY} --frames 3000 --steps 60 --method sigreg --out"

    def kill_when(process, condition) -> None:
        while process.poll() is None and not condition():
            time.sleep(0.002)
        assert process.returncode is None
        process.kill()
        process.wait()

    kill_when(start(f"{options} cut"), lambda: [*folder.glob("data/.tmp*/*/frames.npy")])
    assert not [*folder.glob("data/dotworld*")] and not (folder / "cut").exists()
    log = folder / "cut/log.csv"
    kill_when(start(f"{options} cut"), lambda: log.exists() and len(log.read_text().split()) > 20)
    (folder / "cut").rename("moved")
    run("evaluate moved", code=2)
    pytest.raises(smwm.InputError, smwm.load, "moved")
    assert [start(x).wait() for x in ("train --resume moved", f"{options} whole")] == [0, 0]
    a, b = (smwm.load(run).state_dict() for run in ("moved", "whole"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = (np.loadtxt(f"{run}/log.csv", delimiter=",", skiprows=1) for run in ("moved", "whole"))
    assert np.array_equal(np.delete(a, 1, 1), np.delete(b, 1, 1))  # all but the seconds


def test_bad_settings_end_in_one_line(folder, capsys):
    pytest.raises(SystemExit, smwm.main, "train --env pusht --method sigreg --help".split())
    assert re.search("lam +.* .0.09.", capsys.readouterr().out)  # the default of sigreg
    run(f"train {TINY} --out one", capsys=capsys)
    for args, words in {
        "--variant dotted": "the variants are single",
        "--batch 0": "--batch: expected 1 <= x < inf, got 0",
        "--history 4": "expected --history < --window, got 4 and 4",
        "--elites 400": "expected elites <= samples",
        "--goal-offset 60": "expected train episodes of more than 62 frames",
        "--data nowhere": "nowhere/frames.npy: expected an array",
        "--out one": "one: it exists",
        "--lr 1e30 --steps 40": "the loss became",
        "--resume one": "not accepted here",
    }.items():
        said = run(f"train {TINY} {args}", code=2, capsys=capsys).splitlines()
        assert words in said[-1] and said[-1].startswith("error: ") and len(said) <= 3, said
    for args in ("evaluate", "evaluate one --out two", "train one"):
        assert "expected train, evaluate RUN" in run(args, code=2, capsys=capsys)


def test_nothing_is_overwritten_or_deleted(folder, monkeypatch):
    """Not a run, not a folder of somebody else's, and not by a write that fails half-way."""
    run(f"train {TINY} --out one")
    Path("mine").mkdir()
    Path("mine/.hidden").write_text("years of work")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for out in ("one", "mine"):
        run(f"train {TINY} --out {out}", code=2)
    monkeypatch.setattr(torch, "save", lambda content, path: path.write_text("half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        smwm.save_checkpoint(Path("one"), smwm.load("one"), smwm.settings_for(), None)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bad_files_end_in_one_line(folder, capsys):
    """A checkpoint and results, cut short, of another kind, or malicious."""
    run(f"train {TINY} --out one", capsys=capsys)
    path, content = Path("one/checkpoint.pt"), torch.load("one/checkpoint.pt", weights_only=True)
    whole = {file: file.read_bytes() for file in Path("one").iterdir()}
    changes = {"width": 64}, {"networks": "os.mkdir"}, {"x": Malicious()}
    bad = [content | {"settings": content["settings"] | change} for change in changes]
    for value in [*bad, [1, 2]]:
        torch.save(value, path)
        said = run("evaluate one", code=2, capsys=capsys)
        assert said.startswith(f"error: {path}: expected a checkpoint") and said.count("\n") == 1
    for path in (Path("one", name) for name in ("settings.json", "metrics.json", "evaluation.npz")):
        for value in (whole[path][: len(whole[path]) // 2], b"[3]"):
            path.write_bytes(value)
            said = run("figures one", code=2, capsys=capsys)
            assert said.startswith("error: one") and said.count("\n") == 1, said
        path.write_bytes(whole[path])
    assert not (folder / "executed").exists()
