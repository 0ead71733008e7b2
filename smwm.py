"""Sensorimotor world models in one file (Ivashkov, Balestriero, Schölkopf, arXiv 2606.20104).

An encoder f, a forward model g and an inverse model h are trained together on recorded frames o_t
and actions a_t, without rewards:

    z_t   = f(o_t)                           the latent of a frame
    L_fwd = ||g(z_t, a_t) - z_{t+1}||^2      predict the next latent
    L_inv = ||h(z_t, z_{t+1}) - a_t||^2      recover the action from two latents
    L     = L_fwd + lam * L_inv

L_fwd alone is minimised by a constant latent: the encoder collapses. Adding L_inv prevents this
without a target network, a stop-gradient or a frozen encoder, because the latent must keep enough
to tell actions apart. Anything that the action does not change and g cannot predict only adds to
L_fwd, so training shrinks or drops it. To act, the cross-entropy method searches for actions whose
imagined end is nearest to the latent of a goal image. The agent executes them and plans again.

    python smwm.py train --env dotworld  # collect data, train, probe, plan

Letters in shapes: B windows or tasks, T frames in a window, S image side, D latent, k env actions
in a block, m entries of an env action, A = k * m entries of a block, P latents that g sees, N
samples and K elites of the planner, H blocks to plan (but H x W is the size of a frame).
"""

import argparse
import contextlib
import ctypes
import hashlib
import inspect
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import envs


# ==== Settings ==================================================================================
def setting(default, group: str, text: str):
    return field(default=default, metadata={"group": group, "help": text})


@dataclass(frozen=True)
class Settings:
    """All settings. PRESETS override these defaults, and command line options override both."""

    env: str = setting("dotworld", "data", "environment; with your own --data, only to plan")
    variant: str = setting("", "data", "variant of the environment; empty: its first")
    data: str = setting("", "data", "dataset folder, used as it is; empty: collect one in data/")
    frames: int = setting(20_000, "data", "frames to collect")
    episode: int = setting(100, "data", "frames in a collected episode")
    size: int = setting(64, "data", "side of a collected frame (S), a multiple of 16")
    method: str = setting("smwm", "training", "the loss to train with")
    lam: float = setting(10.0, "training", "weight of the anti-collapse term")
    block: int = setting(5, "training", "env actions in a block (k)")
    window: int = setting(4, "training", "frames in a training window (T), one block apart")
    history: int = setting(1, "training", "latents that the forward model sees (P)")
    networks: str = setting("conv", "training", "encoder and forward model")
    width: int = setting(256, "training", "width of the networks, twice D; Muon is used above 128")
    steps: int = setting(5000, "training", "optimiser steps")
    batch: int = setting(128, "training", "windows in a batch (B)")
    lr: float = setting(2e-3, "training", "peak learning rate")
    decay: float = setting(1e-4, "training", "weight decay")
    seed: int = setting(0, "training", "seed of weights, batches and planning tasks")
    probe_epochs: int = setting(200, "evaluation", "epochs of the MLP probe, at most")
    tasks: int = setting(100, "evaluation", "planning tasks")
    goal_offset: int = setting(25, "evaluation", "env steps to the goal; the budget is twice that")
    horizon: int = setting(5, "evaluation", "blocks to plan, and to execute before replanning (H)")
    samples: int = setting(300, "evaluation", "CEM samples (N)")
    elites: int = setting(30, "evaluation", "CEM elites (K)")
    iterations: int = setting(30, "evaluation", "CEM iterations")


# ==== Model =====================================================================================
class Encoder(nn.Module):
    """f: images (B, 3, S, S), white 0 and black 1, to latents (B, D). S is a multiple of 16."""

    def __init__(self, *, size: int, width: int):
        super().__init__()
        stride1, c, layers = size // 16, width // 8, []  # sides: S -> 16 -> 8 -> 4
        for n_in, n_out, stride in ((3, c, stride1), (c, 2 * c, 2), (2 * c, 4 * c, 2)):
            half = (stride + 1) // 2  # kernels of about twice the stride overlap
            conv = nn.Conv2d(n_in, n_out, stride + 2 * half, stride=stride, padding=half)
            layers += [conv, nn.BatchNorm2d(n_out), nn.GELU()]
        self.convs = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        # the original's projector: batch norm on the hidden layer, none on the latent
        hidden = [nn.Linear(4 * 4 * (4 * c), 2 * width), nn.BatchNorm1d(2 * width), nn.GELU()]
        self.head = nn.Sequential(*hidden, nn.Linear(2 * width, width // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convs(x).permute(0, 2, 3, 1).flatten(1))  # channels last: no copy


class ForwardModel(nn.Module):
    """g: next latents from the last P latents and blocks, (..., n, D), (..., n, A) -> (..., n', D).

    n' = n - P + 1. A residual MLP. The latest action block shifts and scales each normalisation and
    gates each branch (AdaLN)."""

    def __init__(self, *, act_dim: int, history: int, width: int, depth: int = 3):
        super().__init__()
        self.history, dim = history, width // 2
        self.embed = nn.Linear(history * (dim + act_dim), width)
        self.modulate = nn.ModuleList(nn.Linear(act_dim, 3 * width) for _ in range(depth))
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.residual = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, dim)

    def forward(self, z: Tensor, act: Tensor) -> Tensor:
        z_seen, act_seen = (x.unfold(-2, self.history, 1).flatten(-2) for x in (z, act))
        z, act = z[..., self.history - 1 :, :], act[..., self.history - 1 :, :]
        x = self.embed(torch.cat([z_seen, act_seen], dim=-1))  # (..., n', P*(D+A)) -> width
        layers = zip(self.modulate, self.hidden, self.residual, strict=True)
        for modulate, hidden, residual in layers:
            shift, scale, gate = modulate(act).chunk(3, dim=-1)
            y = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
            x = x + gate * residual(F.gelu(hidden(y)))
        return z + self.out(x)


class InverseModel(nn.Sequential):
    """h: the action block between two latents, (..., D), (..., D) -> (..., A)."""

    def __init__(self, *, act_dim: int, width: int):
        layers = [nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU()]
        super().__init__(*layers, nn.Linear(width, act_dim))

    def forward(self, z: Tensor, z_next: Tensor) -> Tensor:
        return super().forward(torch.cat([z, z_next], dim=-1))


class WorldModel(nn.Module):
    """The three networks, and the statistics of the actions that they were trained on.

    action_dim is m, block k, size S; D = width / 2. The networks see standardised action blocks.
    `train` calls `fit_actions`; call `eval()` before `plan`. `bf16`: compute in bfloat16."""

    def __init__(self, *, action_dim, block=1, size=64, width=256, history=1, networks="conv"):
        super().__init__()
        self.block, self.size, self.history, self.bf16 = block, size, history, False
        act_dim, (encoder, forward_model) = block * action_dim, NETWORKS[networks]
        self.encoder = encoder(size=size, width=width)
        self.forward_model = forward_model(act_dim=act_dim, history=history, width=width)
        self.inverse_model = InverseModel(act_dim=act_dim, width=width)
        for name, value in (("mean", 0.0), ("std", 1.0), ("low", -1.0), ("high", 1.0)):
            self.register_buffer(f"act_{name}", torch.full((act_dim,), value))

    def fit_actions(self, actions: Tensor) -> None:
        """Store the mean, deviation and bounds of actions (n, m)."""
        std, mean = torch.std_mean(actions.double(), 0)
        varies = std > 1e-6 * actions.abs().amax(0)  # constant entries are centred, but not scaled
        self.act_mean.copy_(mean.repeat(self.block))
        self.act_std.copy_(torch.where(varies, std, 1.0).repeat(self.block))
        self.act_low.copy_(actions.amin(0).repeat(self.block))
        self.act_high.copy_(actions.amax(0).repeat(self.block))

    def standardise(self, acts: Tensor) -> Tensor:
        return (acts - self.act_mean) / self.act_std

    def encode(self, obs: Tensor | np.ndarray) -> Tensor:
        """Latents (B, ..., D) of uint8 frames (B, ..., H, W, 3) of any size; else ValueError."""
        obs = torch.as_tensor(obs if torch.is_tensor(obs) else np.array(obs))
        if obs.dtype != torch.uint8 or obs.ndim < 4 or obs.shape[-1] != 3:
            raise ValueError(f"expected uint8 (B, ..., H, W, 3), got {obs.dtype} {[*obs.shape]}")
        x = obs.to(self.act_mean.device).flatten(0, -4).permute(0, 3, 1, 2)
        if x.shape[-2:] != (self.size, self.size):  # each pixel is the mean of its area
            x = F.interpolate(x.float(), (self.size, self.size), mode="area").round()
        # Pixels are rounded to bf16 in either precision, so that a trained model works in both.
        x = (255 - x).bfloat16().mul_(1 / 255).to(torch.bfloat16 if self.bf16 else torch.float32)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            z = self.encoder(x)
        return z.float().unflatten(0, obs.shape[:-3])

    def rollout(self, z: Tensor, past: Tensor, acts: Tensor) -> Tensor:
        """Imagine (..., H, D): z (..., P, D), standardised past (..., P-1, A), acts (..., H, A)."""
        latents = []
        for act in acts.unbind(-2):
            past = torch.cat([past, act[..., None, :]], dim=-2)[..., -self.history :, :]
            latents.append(self.forward_model(z, past))  # (..., 1, D)
            z = torch.cat([z[..., 1:, :], latents[-1]], dim=-2)
        return torch.cat(latents, dim=-2)


NETWORKS = {"conv": (Encoder, ForwardModel)}


# ==== Losses ====================================================================================
# Each maps latents z (B, T, D) and the standardised blocks between them, act (B, T-1, A), to the
# loss and its terms. In a loss ||x||^2 is the mean over entries. `lam` weighs the second term.
def forward_loss(model, z: Tensor, act: Tensor, *, lam=0.0, generator=None):
    """The ablation, which collapses: L = L_fwd."""
    # L_fwd = mean ||g(z_t, a_t) - z_{t+1}||^2. The target is NOT detached: the encoder learns from
    # both sides, and only the second term of the losses below keeps it from making z constant.
    pad = (0, 0, model.history - 1, 0)  # zeros before the window's first frame
    z_hat = model.forward_model(F.pad(z[:, :-1], pad), F.pad(act, pad))
    forward = F.mse_loss(z_hat, z[:, 1:])
    return forward, {"forward": forward}


def smwm_loss(model, z: Tensor, act: Tensor, *, lam=10.0, generator=None):
    """The method: L = L_fwd + lam * L_inv."""
    forward, terms = forward_loss(model, z, act)
    # L_inv = mean ||h(z_t, z_{t+1}) - a_t||^2
    inverse = F.mse_loss(model.inverse_model(z[:, :-1], z[:, 1:]), act)
    return forward + lam * inverse, terms | {"inverse": inverse}


def sigreg_loss(model, z: Tensor, act: Tensor, *, lam=0.09, generator=None):
    """The baseline LeWorldModel (arXiv 2603.19312): L = L_fwd + lam * SIGReg(z).

    SIGReg (LeJEPA, arXiv 2511.08544) pushes the latents of each time step towards N(0, I). It is
    the mean, over random unit directions u, of the Epps-Pulley statistic of x = u.z: 2 B times
    the integral of |phi(t) - exp(-t^2/2)|^2 exp(-t^2/2) over [0, 3], phi(t) = mean exp(i t x)."""
    forward, terms = forward_loss(model, z, act)
    u = F.normalize(torch.randn(z.shape[-1], 1024, generator=generator, device=z.device), dim=0)
    t = torch.linspace(0, 3, 17, device=z.device)  # for the trapezoid rule
    gauss = torch.exp(-t.square() / 2)
    tx = (z @ u).float()[..., None] * t  # (B, T, 1024, 17)
    error = (tx.cos().mean(0) - gauss).square() + tx.sin().mean(0).square()
    sigreg = 2 * len(z) * torch.trapezoid(error * gauss, t).mean()
    return forward + lam * sigreg, terms | {"sigreg": sigreg}


METHODS = {"smwm": smwm_loss, "sigreg": sigreg_loss, "forward": forward_loss}


# ==== Data ======================================================================================
class Dataset:
    """Episodes one after another, n rows: frames (n, S, S, 3) uint8, actions (n, m), states (n, d).

    Row t of the actions was taken after frame t. `ends` (episodes,) holds the row after each
    episode's last. A fixed tenth of the episodes is held out."""

    def __init__(self, frames, actions, ends, states=None):
        self.frames, self.actions = torch.as_tensor(frames), torch.as_tensor(actions)
        self.states = np.zeros((len(frames), 0)) if states is None else states
        self.starts, self.ends = np.append(0, ends[:-1]), np.asarray(ends)
        held_out = np.random.default_rng(0).permutation(len(ends)) < max(1, len(ends) // 10)
        self.episodes = {"train": np.flatnonzero(~held_out), "test": np.flatnonzero(held_out)}

    def windows(self, split: str, span: int) -> Tensor:
        """First rows of all windows that stay within an episode for `span` further rows."""
        rows = [np.arange(self.starts[i], self.ends[i] - span) for i in self.episodes[split]]
        return torch.from_numpy(np.concatenate(rows))

    def batch(self, rows: Tensor, window: int, block: int) -> tuple[Tensor, Tensor]:
        """Windows from rows (B,) on: obs (B, T, S, S, 3), `block` rows apart, act (B, T-1, A)."""
        at = (rows[:, None] + block * torch.arange(window)).to(self.frames.device)
        obs = self.frames.index_select(0, at.flatten()).unflatten(0, at.shape)  # self.frames[at]
        steps = rows[:, None] + torch.arange(block * (window - 1))
        return obs, self.actions[steps].reshape(len(rows), window - 1, -1)


# ==== Training ==================================================================================
class Optimizer:
    """AdamW. With `muon`, Muon trains the matrices (all weights of two dimensions).

    Muon (Jordan et al. 2024) evens out the singular values of an update, so features with a weak
    gradient are learned too. Its updates have AdamW's size (Liu et al. 2025, arXiv 2502.16982)."""

    def __init__(self, weights, *, muon: bool, decay: float, dtype=torch.float32):
        self.weights, self.muon, self.decay, self.dtype = [*weights], muon, decay, dtype
        moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self.weights]
        step = torch.zeros((), dtype=torch.float64, device=self.weights[0].device)
        self.state = {"step": step, "moments": moments}

    @torch.no_grad()
    def step(self, lr: Tensor | float) -> None:
        step = self.state["step"].add_(1)
        unbias, unbias_square = 1 - 0.9**step, 1 - 0.999**step
        for weight, (mean, square) in zip(self.weights, self.state["moments"], strict=True):
            if weight.grad is None:
                continue
            weight.mul_(1 - lr * self.decay)
            if self.muon and weight.ndim == 2:
                mean.lerp_(weight.grad, 0.05)
                x = weight.grad.lerp(mean, 0.95).to(self.dtype)  # Nesterov's momentum
                x = (x.T if len(x) > x.shape[1] else x) / x.norm().clamp(min=1e-7)
                for _ in range(5):  # Newton-Schulz steps bring the singular values to 0.7 ... 1.2
                    gram = x @ x.T
                    poly = torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
                    x = torch.addmm(x, poly, x, beta=3.4445)
                x = (x if x.shape == weight.shape else x.T).to(weight)
                weight.sub_(x * (0.2 * lr * max(weight.shape) ** 0.5))
            else:
                mean.lerp_(weight.grad, 0.1)
                square.lerp_(weight.grad.square(), 0.001)
                root = (square / unbias_square).sqrt_().add_(1e-8)
                weight.sub_(mean / root * (lr / unbias))


def train(model: WorldModel, data: Dataset, s: Settings, after_step=None, resume=None) -> None:
    """Train `model` in place, on the device it is on. On a GPU the steps replay a CUDA graph.

    after_step(step, terms, state) gets the loss, its terms, the spread (near 0: a collapse), and a
    state valid until the next step. `resume=state`, with that step's weights, goes on from it."""
    device, start = model.act_mean.device, (resume["step"] if resume else 0)
    model.fit_actions(data.actions[data.windows("train", 1)])
    rows = data.windows("train", s.block * (s.window - 1))
    dtype = torch.bfloat16 if model.bf16 else torch.float32
    optimizer = Optimizer(model.parameters(), muon=s.width > 128, decay=s.decay, dtype=dtype)
    sampler = torch.Generator().manual_seed(s.seed)  # draws the batches
    generator = torch.Generator(device).manual_seed(s.seed)  # draws what the loss needs
    if resume:
        optimizer.state = resume["optimizer"]
        sampler.set_state(resume["sampler"].cpu())
        generator.set_state(resume["generator"].cpu())

    def update(obs: Tensor, act: Tensor, lr: Tensor) -> dict[str, Tensor]:
        act = (act - model.act_mean) / model.act_std
        with torch.autocast(device.type, torch.bfloat16, enabled=model.bf16):
            z = model.encode(obs)  # (B, T, D)
            loss, terms = METHODS[s.method](model, z, act, lam=s.lam, generator=generator)
        model.zero_grad()
        loss.backward()
        optimizer.step(lr)
        terms = {"loss": loss} | terms | {"spread": z.flatten(0, 1).var(0).mean().sqrt()}
        return {name: x.detach() for name, x in terms.items()}

    model.train()
    for step in range(start + 1, s.steps + 1):
        at = rows[torch.randint(len(rows), (s.batch,), generator=sampler)]
        obs, act = (x.to(device, non_blocking=True) for x in data.batch(at, s.window, s.block))
        # a linear warm-up over a tenth of the steps, capped by a cosine that ends at exactly 0
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / s.steps)
        lr = torch.full((), s.lr * min(10 * step / s.steps, cosine), device=device)
        if device.type != "cuda" or step < start + 4:
            terms = update(obs, act, lr)
        else:  # three steps set up the libraries; later ones replay a recorded update in one launch
            if step == start + 4:
                graph, inputs = torch.cuda.CUDAGraph(), (obs, act, lr)
                graph.register_generator_state(generator)
                with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream()):
                    terms = update(*inputs)
            for old, new in zip(inputs, (obs, act, lr), strict=True):
                old.copy_(new)
            graph.replay()
        if after_step:
            state = {"step": step, "optimizer": optimizer.state, "sampler": sampler.get_state()}
            after_step(step, terms, state | {"generator": generator.get_state()})
    model.eval().zero_grad()


# ==== Planning ==================================================================================
def cem(cost_fn, mean, std, *, samples=300, elites=30, iterations=30, generator=None) -> Tensor:
    """The cross-entropy method: minimise cost_fn over action sequences, for B tasks at once.

    mean, std: (B, H, A), the first search distribution. cost_fn: (B, N, H, A) -> (B, N). Returns
    the final mean. The random samples are shared across a batch, so planning together or one by one
    gives the same result up to rounding. ValueError if an elite's last cost is not finite."""
    if not 2 <= elites <= samples or iterations < 1:
        raise ValueError(f"expected 2 to {samples} elites, 1+ iterations, got {elites, iterations}")
    for _ in range(iterations):
        # 1. sample around the mean; the mean itself is the first sample
        noise = torch.randn(samples, *mean.shape[1:], generator=generator, device=mean.device)
        noise[0] = 0
        acts = mean[:, None] + std[:, None] * noise  # (B, N, H, A)
        # 2. keep the K cheapest
        costs = cost_fn(acts)
        best = costs.topk(elites, largest=False)  # (B, K)
        elite = torch.take_along_dim(acts, best.indices[:, :, None, None], dim=1)
        # 3. refit
        mean, std = elite.mean(1), elite.std(1)
    if not best.values.isfinite().all():  # once, as the check waits for a GPU
        raise ValueError("cem: expected finite costs of the elites, got inf or nan")
    return mean


@torch.no_grad()
def plan(model, obs, goal_obs, past=None, *, horizon=5, seed=0, **sizes) -> Tensor:
    """Env actions (B, horizon * k, m) that lead from frames to goal images, for B tasks at once.

    obs: the present (B, H, W, 3) uint8, or the last n <= P frames (B, n, H, W, 3), a block apart,
    with the env actions between them as `past` (B, (n-1) * k, m). goal_obs: (B, H, W, 3). Torch or
    numpy; ValueError if shapes do not fit. `sizes`: samples, elites, iterations. The cost is the
    squared distance of the imagined end to the goal's latent. The data's ranges bound actions."""
    assert not model.training, "plan: call model.eval() first"
    z, z_goal = model.encode(obs), model.encode(goal_obs)
    z = z[:, None] if z.ndim == 2 else z  # (B, n, D)
    m, past_blocks = len(model.act_mean) // model.block, z.shape[1] - 1
    past = z.new_zeros(len(z), 0, m) if past is None else torch.as_tensor(past).to(z)
    if horizon < 1 or z_goal.shape != z[:, 0].shape:
        got = f"latents {[*z_goal.shape]}, horizon {horizon}"
        raise ValueError(f"plan: expected {len(z)} goals (B, H, W, 3), a horizon of 1+, got {got}")
    if past_blocks >= model.history or past.shape != (len(z), past_blocks * model.block, m):
        need = f"at most {model.history} frames, a past (B, (frames - 1) * {model.block}, {m})"
        raise ValueError(f"plan: expected {need}, got {z.shape[1]}, {tuple(past.shape)}")
    past = model.standardise(past.reshape(len(z), past_blocks, m * model.block))
    pad = (0, 0, model.history - z.shape[1], 0)  # zeros where there is no past, as in training
    z, past = F.pad(z, pad)[:, None], F.pad(past, pad)[:, None]
    low, high = model.standardise(model.act_low), model.standardise(model.act_high)

    def cost(acts: Tensor) -> Tensor:  # (B, N, H, A) -> (B, N)
        z_now, past_now = (x.expand(-1, acts.shape[1], -1, -1) for x in (z, past))
        end = model.rollout(z_now, past_now, acts.clamp(low, high))[..., -1, :]
        return (end.float() - z_goal[:, None]).square().sum(-1)

    mean = torch.zeros(len(z), horizon, len(model.act_mean), device=z.device)
    generator = torch.Generator(z.device).manual_seed(seed)
    with torch.autocast(z.device.type, torch.bfloat16, enabled=model.bf16):
        acts = cem(cost, mean, torch.ones_like(mean), generator=generator, **sizes)
    acts = acts.clamp(low, high) * model.act_std + model.act_mean
    return acts.reshape(len(z), horizon * model.block, -1)


def evaluate_planning(model: WorldModel | None, data: Dataset, s: Settings) -> dict:
    """Plan in the environment, from frames of held-out episodes to the frames goal_offset later.

    A task is solved when the environment's criterion holds at the start or within 2 * goal_offset
    steps. Without a model actions are random. Returns arrays with one row for each task: `goals`;
    `solved`, the steps taken or -1; `states` and `actions`, recorded, later played, then NaN."""
    lead, budget = s.block * max(2, s.history - 1), 2 * s.goal_offset  # same tasks for P = 1, 2, 3
    rng = np.random.default_rng(s.seed)
    rows = lead + rng.permutation(data.windows("test", lead + s.goal_offset))[: s.tasks]
    goals, goal_obs = data.states[rows + s.goal_offset], data.frames[rows + s.goal_offset]
    at = (rows[:, None] + np.arange(-lead, budget + 1)).clip(max=len(data.states) - 1)
    states, actions = data.states[at], data.actions[at].numpy()  # column `lead` is a task's start
    states[:, lead + 1 :], actions[:, lead:] = np.nan, np.nan  # to be played below
    worlds, solved = [envs.make(s.env, s.variant, s.size) for _ in rows], np.full(len(rows), -1)
    for i, world in enumerate(worlds):
        _, info = world.reset(seed=i, options={"state": states[i, lead], "goal": goals[i]})
        states[i, lead], solved[i] = info["state"], (0 if info["success"] else -1)
    sizes = {name: getattr(s, name) for name in ("horizon", "samples", "elites", "iterations")}
    chunk, back, m = s.block * s.horizon, s.block * (s.history - 1), actions.shape[2]
    # 3,000 sequences fit the cache of a CPU; a GPU takes all tasks at once
    group_size = len(rows) if model and model.act_mean.is_cuda else max(1, 3000 // s.samples)
    for t in range(lead, lead + budget, chunk):
        unsolved, acts = np.flatnonzero(solved < 0), rng.uniform(-1, 1, (len(rows), chunk, m))
        groups = [unsolved[i : i + group_size] for i in range(0, len(unsolved), group_size)]
        for group in progress(groups if model else [], "plan"):  # else acts stay random
            seen = states[group, t - back : t + 1 : s.block]
            obs = np.array([[worlds[0].render_state(x) for x in task] for task in seen])
            past = actions[group, t - back : t]
            acts[group] = plan(model, obs, goal_obs[group], past, seed=t, **sizes).cpu()
        for i in unsolved:
            for j, action in enumerate(acts[i, : lead + budget - t], t):
                info = worlds[i].advance(action)
                actions[i, j], states[i, j + 1] = action, info["state"]
                if info["success"]:
                    solved[i] = j + 1 - lead
                    break
    return {"solved": solved, "goals": goals, "states": states, "actions": actions}


# ==== Probes: what a latent holds ===============================================================
def r2(prediction: Tensor, target: Tensor) -> float:
    """Coefficient of determination of predictions (n, j), the mean over the targets that vary."""
    residual = (prediction - target).square().sum(0)
    total = (target - target.mean(0)).square().sum(0)
    return float((1 - residual / total)[total > 1e-12 * target.square().sum(0)].mean())


def linear_probe(x: Tensor, y: Tensor, x_test: Tensor, ridge: float = 1e-3) -> Tensor:
    """Ridge regression on standardised inputs (n, D) and targets (n, j): predictions for x_test."""
    return x_test @ torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]).to(x), x.T @ y)


def mlp_probe(x: Tensor, y: Tensor, x_test: Tensor, *, epochs: int = 200) -> Tensor:
    """An MLP 256-128 (Adam 1e-3, batch 512, stopped early on a tenth): predictions for x_test."""
    x, y, generator = x.float(), y.float(), torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Linear(128, y.shape[1]))
    held, rest = torch.randperm(len(x), generator=generator).tensor_split([max(1, len(x) // 10)])
    optimizer, best_error = Optimizer(net.parameters(), muon=False, decay=0), math.inf
    for epoch in range(epochs):
        for part in rest[torch.randperm(len(rest), generator=generator)].split(512):
            net.zero_grad()
            F.mse_loss(net(x[part]), y[part]).backward()
            optimizer.step(1e-3)
        with torch.no_grad():
            error = F.mse_loss(net(x[held]), y[held]).item()
            if error < best_error:
                best, best_error, best_epoch = net(x_test.float()).double(), error, epoch
        if epoch - best_epoch == 12:
            break
    return best


def effective_dim(variances: Tensor) -> float:
    """Participation ratio (sum v)^2 / sum v^2 of variances v; n if n are equal, the others 0."""
    return float(variances.sum() ** 2 / variances.square().sum().clamp_min(1e-300))


# ==== Running it: the method ends here ==========================================================
PRESETS = {
    "sigreg": dict(lam=0.09),  # the original's
    "dotworld": dict(block=1, episode=50, width=128, steps=1500, batch=64, probe_epochs=15),
    "dotworld single": dict(steps=200, batch=32, samples=100, elites=10, iterations=10),
    "dotworld forward": dict(steps=3000),  # as many as it takes to collapse
    "dotworld combined": dict(steps=4000),
    "sprite": dict(block=1, episode=50, width=128, steps=1500, batch=64, probe_epochs=15),
    "sprite xyt": dict(frames=40_000, width=256, steps=4000),
    "tworoom": dict(frames=100_000, steps=1000),
    "reacher": dict(frames=200_000, steps=2000),
    "pusht": dict(frames=600_000),
    "cube": dict(frames=400_000, episode=200, size=96),
}


class InputError(ValueError):
    """Bad input. The message says what was expected and what came; `main` prints it as one line."""


def settings_for(**given) -> Settings:
    """PRESETS, overridden by `given`. The meta.json of a --data folder names the environment."""
    if given.get("data") and not {"env", "variant"} <= given.keys():
        path = Path(given["data"]) / "meta.json"
        meta = read_json(path) if path.exists() else {}
        given = {name: str(meta.get(name, "")) for name in ("env", "variant")} | given
    env, method = (given.get(name, getattr(Settings, name)) for name in ("env", "method"))
    variants = [*envs.ENVS[env].VARIANTS] if env in envs.ENVS else [""]
    variant = given.get("variant") or variants[0]
    preset = {}
    for key in (env, f"{env} {variant}", method, f"{env} {method}"):
        preset |= PRESETS.get(key, {})
    s = Settings(**preset | given | {"variant": variant})
    if env not in (*envs.ENVS, "") or variant not in variants or method not in METHODS:
        got = f"{env!r}, {variant!r}, {method!r}; the variants are {', '.join(variants)}"
        raise InputError(f"expected an environment, variant, method of this script, got {got}")
    least = {"lam": 0, "seed": 0, "lr": 0, "decay": 0, "window": 2, "elites": 2}
    for name, value in asdict(s).items():
        low = least.get(name, 1)
        if not isinstance(value, str) and not low <= value < math.inf:
            raise InputError(f"--{name.replace('_', '-')}: expected {low} <= x < inf, got {value}")
    if s.elites > s.samples or s.size % 16 or s.width % 8:
        got = f"elites {s.elites}, samples {s.samples}, size {s.size}, width {s.width}"
        raise InputError(f"expected elites <= samples, size % 16 = 0, width % 8 = 0, got {got}")
    if s.history >= s.window:
        raise InputError(f"expected --history < --window, got {s.history} and {s.window}")
    return s


# ==== Files =====================================================================================
@contextlib.contextmanager
def replacing(path: Path):
    """Yield a name in a new temporary folder beside `path`. On success it is moved to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tmp-") as folder:
        yield (temporary := Path(folder) / path.name)
        os.replace(temporary, path)


def write_json(path: Path, value: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON object, got: {error}") from error


class Lines:  # a file that turns the carriage returns of a progress bar into lines on stderr
    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)


def progress(items=None, label: str = "", **options):
    """A tqdm bar on a terminal; elsewhere a plain line every ten seconds."""
    if not sys.stderr.isatty():
        form = "{desc}: {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left{postfix}"
        options |= dict(mininterval=10, delay=10, file=Lines(), bar_format=form)
    return tqdm(items, label, leave=False, **options)


def create_arrays(folder: Path, rows: int, size: int, m: int, d: int) -> list[np.ndarray]:
    """The frames, actions and states of a new dataset folder, memory-mapped."""
    folder.mkdir()
    create = partial(np.lib.format.open_memmap, mode="w+")
    frames = create(folder / "frames.npy", dtype=np.uint8, shape=(rows, size, size, 3))
    actions = create(folder / "actions.npy", dtype=np.float32, shape=(rows, m))
    return [frames, actions, create(folder / "states.npy", dtype=np.float64, shape=(rows, d))]


def save_dataset(folder, frames, actions, episode_ends, states=None, size: int = 64) -> None:
    """Write a dataset folder from arrays, or from anything that slices (memmap, h5py), in chunks.

    frames (n, H, W, 3) uint8 are resized to `size`. Row t of actions (n, m) was taken after frame
    t; it may be NaN at the last frame of an episode. episode_ends (episodes,) are exclusive. states
    (n, d) are what the latent is probed for. Raises InputError."""
    folder, count = Path(folder), len(frames)
    states = np.zeros((count, 0)) if states is None else states
    if folder.exists():
        raise InputError(f"{folder}: expected a new folder, it exists; choose another name")
    shapes = np.shape(actions), np.shape(states)
    if any(len(x) != 2 or x[0] != count for x in shapes) or size < 16 or size % 16:
        got = f"actions {shapes[0]}, states {shapes[1]}, size {size}"
        raise InputError(f"{folder}: expected ({count}, m), ({count}, d), size % 16 = 0, got {got}")
    with replacing(folder) as new:
        arrays = create_arrays(new, count, size, shapes[0][1], shapes[1][1])
        for start in progress(range(0, count, 100), f"save {folder}"):
            rows = slice(start, start + 100)
            chunk = torch.as_tensor(np.array(frames[rows]))
            if chunk.dtype != torch.uint8 or chunk.ndim != 4 or chunk.shape[3] != 3:
                got = f"{chunk.dtype} {tuple(chunk.shape)}"
                raise InputError(f"{folder}: expected frames (n, H, W, 3) in uint8, got {got}")
            if chunk.shape[1:3] != (size, size):  # as WorldModel.encode does
                chunk = F.interpolate(chunk.permute(0, 3, 1, 2).float(), (size, size), mode="area")
                chunk = chunk.round().permute(0, 2, 3, 1)
            for array, part in zip(arrays, (chunk, actions[rows], states[rows]), strict=True):
                array[rows] = part
        np.save(new / "episode_ends.npy", np.asarray(episode_ends))
        open_dataset(new, folder)  # refuses what is not a whole dataset


def open_dataset(folder: str | Path, shown: str | Path = "") -> Dataset:
    """The dataset of a folder, memory-mapped. InputErrors call the folder `shown`, if given."""
    folder, shown, arrays = Path(folder), shown or folder, {}
    for name in ("frames", "actions", "episode_ends", "states"):
        try:
            arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "c")
        except Exception as error:  # whatever the file is, it is not an array
            if name != "states" or (folder / "states.npy").exists():
                raise InputError(f"{shown}/{name}.npy: expected an array, got: {error}") from error
            arrays[name] = np.zeros((len(arrays["frames"]), 0))
    frames, actions, ends, states = arrays.values()

    def expect(name: str, good: bool, expected: str) -> None:
        if not good:
            got = f"{arrays[name].dtype} {arrays[name].shape}"
            raise InputError(f"{shown}/{name}.npy: expected {expected}, got {got}")

    count, side = frames.shape[:2] if frames.ndim == 4 else (0, 0)
    good = frames.dtype == np.uint8 and frames.shape[2:] == (side, 3) and side % 16 == 0 < side
    expect("frames", good, "uint8 (n, S, S, 3), S a multiple of 16")
    good = ends.ndim == 1 and ends.dtype.kind in "iu" and len(ends) > 1 and ends[-1] == count
    good = good and np.diff(ends, prepend=0).min() > 0
    expect("episode_ends", good, f"exclusive ends of two or more episodes, the last {count}")
    for name in ("actions", "states"):
        good = arrays[name].ndim == 2 and arrays[name].dtype.kind in "fiu"
        expect(name, good and len(arrays[name]) == count, f"numbers ({count}, m or d)")
        bad = ~np.isfinite(arrays[name]).all(1)
        if name == "actions":  # the one at an episode's last frame is not used
            bad[ends - 1] = False
        expect(name, not bad.any(), f"finite numbers (row {bad.argmax()} is not)")
    actions, ends = np.asarray(actions, np.float32), np.asarray(ends, np.int64)
    return Dataset(frames, actions, ends, np.asarray(states, np.float64))


def collect(s: Settings, root: str | Path = "data") -> Path:
    """Collect episodes in parallel, or return the folder that has them. Its name hashes settings,
    versions and the source of the environment's class. Episode i is seeded by i."""
    world, count = envs.make(s.env, s.variant, s.size), max(2, round(s.frames / s.episode))
    rows, m, d = count * s.episode, len(world.action_space.low), len(world.state())
    sources = [c for c in type(world).__mro__ if issubclass(c, envs.PixelEnv)] + [envs.Canvas]
    meta = dict(env=s.env, variant=s.variant, size=s.size, episodes=count, episode=s.episode)
    meta["versions"] = [np.__version__, envs.mujoco.__version__, envs.pymunk.version]
    meta["source"] = hashlib.sha256("".join(map(inspect.getsource, sources)).encode()).hexdigest()
    key = hashlib.sha256(json.dumps(meta).encode()).hexdigest()[:8]
    path = Path(root) / f"{s.env}-{s.variant}-{s.size}px-{count}x{s.episode}-{key}"
    if path.exists():
        return path
    assert world.observation_space.contains(world.reset(seed=0)[0]), "render_state: expected uint8"
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(torch.get_num_threads(), context, start_worker)
    try:
        with replacing(path) as folder:
            create_arrays(folder, rows, s.size, m, d)
            job, chunk = partial(collect_episode, folder, s), max(1, min(8, count // 8))
            episodes = pool.map(job, range(count), chunksize=chunk)
            list(progress(episodes, f"collect {s.env}", total=count, unit=" episodes"))
            np.save(folder / "episode_ends.npy", np.arange(s.episode, rows + 1, s.episode))
            write_json(folder / "meta.json", meta)
    except OSError:
        if not path.exists():  # no other process has made it meanwhile
            raise
    finally:
        pool.shutdown(cancel_futures=True)
    return path


def start_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wait = multiprocessing.parent_process().join
    threading.Thread(target=lambda: (wait(), os._exit(1)), daemon=True).start()


def collect_episode(folder: Path, s: Settings, index: int) -> None:
    files = (folder / f"{name}.npy" for name in ("frames", "actions", "states"))
    frames, actions, states = (np.load(file, "r+") for file in files)
    world, rng = envs.make(s.env, s.variant, s.size), np.random.default_rng([0, index])
    obs, info = world.reset(seed=int(rng.integers(2**31)))
    policy = world.behavior(rng)
    for row in range(index * s.episode, (index + 1) * s.episode):
        frames[row], actions[row], states[row] = obs, np.clip(policy(world), -1, 1), info["state"]
        obs, _, _, _, info = world.step(actions[row])


# ==== Runs ======================================================================================
def build_model(s: Settings, action_dim: int, bf16: bool) -> WorldModel:
    sizes = {name: getattr(s, name) for name in ("block", "size", "width", "history", "networks")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        model = WorldModel(action_dim=action_dim, **sizes)
    model.bf16 = bf16
    return model


def save_checkpoint(run: Path, model: WorldModel, s: Settings, training: dict | None) -> None:
    """Weights, settings, and the state of training to go on from."""
    content = {"settings": asdict(s), "model": model.state_dict(), "training": training}
    content |= {"action_dim": len(model.act_mean) // s.block, "bf16": model.bf16}
    with replacing(run / "checkpoint.pt") as temporary:
        torch.save(content, temporary)


def load_checkpoint(run: str | Path, device="cpu", finished=False):
    """Model, settings, training state of a run or a file. `finished` refuses an unfinished one."""
    path = Path(run) / "checkpoint.pt" if Path(run).is_dir() else Path(run)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        s = Settings(**content["settings"])
        model = build_model(s, content["action_dim"], content["bf16"]).to(device)
        model.load_state_dict(content["model"])
        if finished and (not content["training"] or content["training"]["step"] < s.steps):
            raise ValueError("the run is not finished; go on with train --resume")
        return model.eval(), s, content["training"]
    except Exception as error:  # not a checkpoint, or one with the networks of another script
        raise InputError(f"{path}: expected a checkpoint to load, got {error!r:.200}") from error


def load(run: str | Path, device="cpu") -> WorldModel:
    """The trained model of a run folder, or of a checkpoint file, ready for `plan`."""
    return load_checkpoint(run, device, finished=True)[0]


class Recorder:
    """Called after each training step. Logs mean terms 100 times a run and saves once a minute."""

    SAVE_EVERY = 60.0  # seconds

    def __init__(self, run: Path, model: WorldModel, s: Settings, state: dict | None):
        self.run, self.model, self.s, self.recent = run, model, s, []
        self.rows = state["rows"] if state else []
        first, spent = (self.rows[-1][name] for name in ("step", "seconds")) if state else (0, 0.0)
        self.saved, self.start = time.perf_counter(), time.perf_counter() - spent
        self.bar = progress(label=f"train {s.method}", total=s.steps, initial=first)

    def __call__(self, step: int, terms: dict[str, Tensor], state: dict) -> None:
        self.recent.append(torch.stack([*terms.values()]).detach())
        self.bar.update()
        last, now = step == self.s.steps, time.perf_counter()
        if step % max(1, self.s.steps // 100) and not last:
            return
        means = torch.stack(self.recent).mean(0).tolist()
        if not math.isfinite(means[0]):
            raise InputError(f"the loss became {means[0]} by step {step}; use a smaller --lr")
        terms, self.recent = dict(zip(terms, means, strict=True)), []
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in terms.items()}, refresh=False)
        self.rows.append({"step": step, "seconds": now - self.start, **terms})
        table, names = [[*row.values()] for row in self.rows], ",".join(self.rows[0])
        with replacing(self.run / "log.csv") as temporary:
            np.savetxt(temporary, table, "%.6g", ",", header=names, comments="")
        if last or now - self.saved > self.SAVE_EVERY:
            save_checkpoint(self.run, self.model, self.s, state | {"rows": self.rows})
            self.saved = now


def run_train(s: Settings, run: Path, device: torch.device, resume: bool) -> None:
    """Collect the data, train, save and evaluate."""
    if run.exists() and not resume:
        raise InputError(f"{run}: it exists; use another --out, or --resume it")
    if not s.data:  # two stand-in episodes: bad settings are refused before a long collection
        check_data(Dataset([], [], [s.episode, 2 * s.episode]), s)
        s = replace(s, data=str(collect(s)))  # the run stays on this data
    data = open_dataset(s.data)
    s = replace(s, size=data.frames.shape[1])
    fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    model = build_model(s, data.actions.shape[1], fast).to(device)
    model, _, state = load_checkpoint(run / "checkpoint.pt", device) if resume else (model, s, None)
    check_data(data, s, model)
    if device.type == "cuda" and data.frames.numel() < torch.cuda.mem_get_info(device)[0] / 2:
        data.frames = data.frames.to(device)
    if not resume:
        with replacing(run) as new:  # fails if another process has made the folder meanwhile
            new.mkdir()
            write_json(new / "settings.json", asdict(s))
            save_checkpoint(new, model, s, None)
    kind, count = "bf16" if model.bf16 else "float32", sum(w.numel() for w in model.parameters())
    machine = f"CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else machine
    print(f"{run}: {machine}, {kind}, {count:,} parameters")
    print(f"{s.data}: {len(data.frames):,} frames, {data.frames.numel() / 1e6:,.0f} MB")
    if short := int((data.ends - data.starts <= s.block * (s.window - 1)).sum()):
        print(f"{short} of {len(data.ends)} episodes are shorter than a window and left out")
    recorder = Recorder(run, model, s, state)
    with recorder.bar:  # it closes before anything else is printed
        train(model, data, s, recorder, state)  # no step, if the run is finished
    write_json(run / "metrics.json", {"train": recorder.rows[-1], "machine": machine})
    print(f"trained {s.steps} steps in {recorder.rows[-1]['seconds']:.1f} s")
    evaluate(run, model, data, s)


def check_data(data: Dataset, s: Settings, model: WorldModel | None = None) -> None:
    sizes = *data.frames.shape[1:2], *data.actions.shape[1:]
    if model and sizes != (model.size, len(model.act_mean) // s.block):
        raise InputError(f"{s.data}: expected the data of the training, got (S, m) = {sizes}")
    planning = s.block * max(2, s.history - 1) + s.goal_offset if s.env else 0
    span = max(planning, s.block * max(s.window - 1, s.history))
    for split in data.episodes:
        longest = (data.ends - data.starts)[data.episodes[split]].max()
        if longest <= span:
            got = f"{longest} at most; reduce --goal-offset, --window, --block or --history"
            raise InputError(f"expected {split} episodes of more than {span} frames, got {got}")


# ==== Evaluation ================================================================================
def evaluate(run: Path, model: WorldModel, data: Dataset, s: Settings, name: str = "") -> None:
    """Probe and plan, print the results, and write them to metrics.json of the run folder."""
    check_data(data, s, model)
    world = envs.make(s.env, s.variant, s.size) if s.env else None
    sizes = data.states.shape[1], data.actions.shape[1]
    if world and sizes != (len(world.state()), len(world.action_space.low)):
        world = None  # states of something else cannot be restored
    entries = {f"state {i}": value[:, None] for i, value in enumerate(data.states.T)}
    targets = world.probe_targets(data.states) if world else entries
    probe, latent, arrays = evaluate_latent(model, data, targets, s)
    results = {"probe": probe, "latent": latent}
    print(f"{run.resolve().name + ', held-out R2':<32}{'linear':>8}{'MLP':>8}")
    for target, score in probe["linear"].items():
        note = " (not controlled)" if world and target not in world.controlled else ""
        print(f"  {target + note:<30}{score:8.4f}{probe['mlp'][target]:8.4f}")
    dim, spread = latent["effective_dim"], latent["spread"]
    note = " (collapsed: below 0.05)" if spread < 0.05 else ""
    inverse = f", held-out L_inv {latent['inverse']:.3g}" if "inverse" in latent else ""
    print(f"latent: effective dimension {dim:.2f}, spread {spread:.3g}{note}{inverse}")
    error = latent["rollout_error"][:5]
    print(f"squared error of rollouts of {len(error)} blocks / latent variance {error[-1]:.4f}")
    if world:
        results["planning"], plans = score_planning(model, data, s)
        arrays |= plans
    else:
        print("planning: off, the data has no states that an environment can restore")
    with replacing(run / f"evaluation{name}.npz") as temporary:
        np.savez_compressed(temporary, **arrays)
    path = run / f"metrics{name}.json"
    write_json(path, (read_json(path) if path.exists() else {}) | results)


def score_planning(model: WorldModel, data: Dataset, s: Settings) -> tuple[dict, dict]:
    """Success of planner and random actions in all tasks, and in those not solved at the start."""
    scores, plans = {}, evaluate_planning(model, data, s)
    solved = plans["solved"]
    random = evaluate_planning(None, data, s)["solved"] >= 0
    subsets = ("", np.full(len(solved), True)), ("_unsolved", solved != 0)
    for suffix, some in (pair for pair in subsets if pair[1].any()):
        n, (low, high) = int(some.sum()), interval95(solved[some] >= 0)
        hits, chance = (100 * float(np.mean(x[some])) for x in (solved >= 0, random))
        scores |= {("unsolved_tasks" if suffix else "tasks"): n, f"success{suffix}": hits}
        scores |= {f"random{suffix}": chance, f"interval95{suffix}": [low, high]}
        label = f"planning, {'not solved at the start' if suffix else 'all tasks'} (n = {n})"
        print(f"{label}: {hits:.1f}% [{low:.0f}, {high:.0f}], random policy {chance:.1f}%")
    return scores, plans


def interval95(hits: np.ndarray) -> list[float]:
    """Wilson's 95% interval of a success rate, in percent."""
    n, z, p = len(hits), 1.96, float(np.mean(hits))
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [100 * min(max((centre + x) / (1 + z * z / n), 0.0), 1.0) for x in (-half, half)]


def evaluate_latent(model: WorldModel, data: Dataset, targets: dict, s: Settings):
    """Probes, spectrum and rollouts on held-out episodes: two dicts of metrics, arrays to draw."""
    rng, p, counts = np.random.default_rng(0), s.history, {"train": 25_000, "test": 5_000}
    train, test = (np.sort(rng.permutation(data.windows(x, 0))[:n]) for x, n in counts.items())
    z, z_test = (encode_all(model, data.frames, rows) for rows in (train, test))
    (x, x_test), probe = standardise_by_train(z, z_test), {"linear": {}, "mlp": {}}
    targets = {k: y for k, y in targets.items() if not np.allclose(y[test], y[test[0]], 1e-6, 0)}
    for name, value in progress(targets.items(), "probe"):
        y, y_test = standardise_by_train(*(torch.from_numpy(value[rows]) for rows in (train, test)))
        probe["linear"][name] = r2(linear_probe(x, y, x_test), y_test)
        probe["mlp"][name] = r2(mlp_probe(x, y, x_test, epochs=s.probe_epochs), y_test)
    variances, axes = torch.linalg.eigh(torch.cov(z_test.T))
    variances, axes = variances.flip(0).clamp_min(0), axes.flip(1)[:, :2]
    lengths = (data.ends - data.starts)[data.episodes["test"]]
    steps = min(10, (int(lengths.max()) - 1) // s.block - p + 1)
    rows = rng.permutation(data.windows("test", s.block * (p - 1 + steps)))[:500]
    obs, act = data.batch(torch.from_numpy(rows), p + steps, s.block)
    obs = obs.flatten(0, 1)
    encoded = encode_all(model, obs, np.arange(len(obs))).unflatten(0, (-1, p + steps))
    act = model.standardise(act.to(model.act_mean.device))
    with torch.inference_mode():
        real = encoded.to(act)
        imagined = model.rollout(real[:, :p], act[:, : p - 1], act[:, p - 1 :])
        inverse = F.mse_loss(model.inverse_model(real[:, :-1], real[:, 1:]), act)
    imagined, encoded = imagined.double().cpu(), encoded[:, p - 1 :]
    error = (imagined - encoded[:, 1:]).square().mean((0, 2)) / z_test.var(0).mean()
    latent = {"effective_dim": effective_dim(variances), "spectrum": variances.tolist()}
    latent |= {"inverse": float(inverse)} if s.method == "smwm" else {}
    latent |= {"spread": float(z_test.var(0).mean().sqrt()), "rollout_error": error.tolist()}
    points = {"components": z_test, "encoded": encoded[:50], "imagined": imagined[:50]}
    arrays = {name: (value - z_test.mean(0)) @ axes for name, value in points.items()}
    arrays |= {f"target {name}": value[test] for name, value in targets.items()}
    return probe, latent, {name: np.asarray(value, np.float32) for name, value in arrays.items()}


@torch.inference_mode()
def encode_all(model: WorldModel, frames: Tensor, rows: np.ndarray) -> Tensor:
    """Rows (n,) of frames (..., S, S, 3) to latents (n, D), in double precision on the CPU."""
    parts = torch.as_tensor(rows).split(500)
    return torch.cat([model.encode(frames[part]).double().cpu() for part in parts])


def standardise_by_train(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """By the mean and deviation of `train`; entries constant up to rounding become 0."""
    std, mean = torch.std_mean(train, 0)
    std = torch.where(std > 1e-6 * mean.abs(), std, math.inf)
    return (train - mean) / std, (test - mean) / std


# ==== Figures ===================================================================================
def figures(runs: list[Path], folder: Path) -> None:
    """Draw runs side by side, and the plans of each, from saved results."""
    results = [load_results(run) for run in runs]
    pictures = {"latents": draw_latents(results)}
    for s, latent, arrays, _ in results:
        if "solved" in arrays and s.env in envs.ENVS:
            pictures[f"plans-{latent['run']}"] = draw_plans(s, arrays)
    for name, figure in pictures.items():
        with replacing(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=110)
        print(folder / f"{name}.png")


def load_results(run: Path) -> tuple[Settings, dict, dict, np.ndarray]:
    """The settings, the metrics, the arrays to draw and the log of a finished run."""
    try:
        arrays = dict(np.load(run / "evaluation.npz", allow_pickle=False))
        log = np.genfromtxt(run / "log.csv", delimiter=",", names=True)
        s, metrics = (read_json(run / f"{name}.json") for name in ("settings", "metrics"))
        return Settings(**s), metrics["latent"] | {"run": run.resolve().name}, arrays, log
    except Exception as error:  # whatever the files are, they are not those of a finished run
        raise InputError(f"{run}: expected a finished run, got: {error}") from error


def draw_latents(results: list):
    """The true state, and a column per run: latents in its colours, their spectrum, rollouts."""
    from matplotlib import pyplot  # imported here: training does not need it

    first, _, arrays, _ = results[0]
    world, names = envs.ENVS.get(first.env), [x for x in arrays if x.startswith("target ")]
    names = [x.removeprefix("target ") for x in names if all(x in own for _, _, own, _ in results)]
    shape, size = (len(names) + 2, len(results) + 1), (3 * len(results) + 3, 2.7 * len(names) + 5.4)
    figure, grid = pyplot.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    for name, row in zip(names, grid, strict=False):
        angle = world and name in world.angles
        place, colour = colours(arrays[f"target {name}"], angle)
        row[0].scatter(*place.T, 2, colour)
        row[0].set(title=f"{first.env}: {name}".strip(": "), aspect="equal")
        if world and not angle:
            row[0].invert_yaxis()  # y points down, as in most frames
        for axes, (_, _, own, _) in zip(row[1:], results, strict=True):
            axes.scatter(*own["components"].T, 2, colours(own[f"target {name}"], angle)[1])
    for column, (_, latent, own, log) in zip(grid.T[1:], results, strict=True):
        share = 100 * np.array(latent["spectrum"]) / sum(latent["spectrum"])
        text = f"effective dimension {latent['effective_dim']:.2f}"
        column[-2].bar(np.arange(len(share[:10])) + 1, share[:10])
        column[-2].set(xlabel="component", ylabel="% of variance", xticks=range(1, 11), title=text)
        for n, real in enumerate(own["encoded"][:5]):
            imagined = np.append(real[:1], own["imagined"][n], 0)
            column[-1].plot(*real.T, "-o", color=f"C{n}", ms=4)
            column[-1].plot(*imagined.T, "--x", color=f"C{n}", ms=4)
        column[-1].set_title("rollouts: o encoded, x imagined", fontsize=10)
        for axes in (*column[:-2], column[-1]):
            axes.set(xlabel=f"PC 1 ({share[0]:.0f}%)", ylabel=f"PC 2 ({share[1]:.0f}%)")
            axes.set_aspect("equal", "datalim")
        column[0].set_title(latent["run"], size=10)
        loss = "forward" if "forward" in log.dtype.names else "loss"
        for axes, term in ((grid[-2, 0], loss), (grid[-1, 0], "spread")):
            axes.loglog(log["step"], log[term], label=latent["run"])
            axes.set(xlabel="step", title="$L_{fwd}$" if term == "forward" else term)
            axes.legend(fontsize=8)
    return figure


def colours(value: np.ndarray, angle: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where to draw a quantity (n, j) in the plane (n, 2), and its colours (n, 3 or 4)."""
    from matplotlib import colormaps

    if angle:  # sines, then cosines
        sin, cos = np.split(value, 2, axis=1)
        angles = np.arctan2(sin, cos)
        place = angles[:, :2] if angles.shape[1] > 1 else np.concatenate([cos, sin], 1)
        return place, colormaps["twilight"](angles[:, 0] / (2 * np.pi) + 0.5)
    unit = (value - value.min(0)) / np.maximum(np.ptp(value, axis=0), 1e-12)
    if value.shape[1] == 1:
        return np.concatenate([value, value], 1), colormaps["viridis"](unit[:, 0])
    return value[:, :2], np.stack([unit[:, 0], 0.75 - unit[:, :2].mean(1) / 2, unit[:, 1]], 1)


def draw_plans(s: Settings, arrays: dict):
    """Up to two solved and two unsolved tasks: the executed frames, and the goal."""
    from matplotlib import pyplot

    solved, lead = arrays["solved"], arrays["states"].shape[1] - 1 - 2 * s.goal_offset
    tasks = [*np.flatnonzero(solved > 0)[:2], *np.flatnonzero(solved < 0)[:2]] or [0]
    world = envs.make(s.env, s.variant, 128)
    style = dict(squeeze=False, layout="constrained", subplot_kw=dict(xticks=[], yticks=[]))
    figure, grid = pyplot.subplots(len(tasks), 8, figsize=(10, 1.4 * len(tasks)), **style)
    for task, row in zip(tasks, grid, strict=True):
        end = solved[task] if solved[task] >= 0 else 2 * s.goal_offset
        steps = np.linspace(0, end, 7).round().astype(int)
        shown = {f"step {step}": arrays["states"][task, lead + step] for step in steps}
        shown["goal"] = arrays["goals"][task]
        for axes, (text, state) in zip(row, shown.items(), strict=False):
            axes.imshow(world.render_state(state))
            axes.set_title(text, fontsize=8)
        for axes in row[len(shown) :]:
            axes.axis("off")
        row[0].set_ylabel("solved" if solved[task] >= 0 else "not solved", fontsize=8)
    figure.suptitle(f"{s.env} {s.variant}, {s.method}, seed {s.seed}", fontsize=9)
    return figure


# ==== Command line ==============================================================================
def parse(argv: list[str]) -> argparse.Namespace:
    """The command line, made from Settings. Its help shows the defaults that would be used."""
    usage = "smwm.py train [--out|--resume RUN] | evaluate RUN ... | figures RUN ... [--out FOLDER]"
    peek = argparse.ArgumentParser(usage=usage, add_help=False, argument_default=argparse.SUPPRESS)
    for name in ("env", "variant", "method", "data"):
        peek.add_argument(f"--{name}")
    defaults = Settings()
    with contextlib.suppress(InputError, OSError):  # reported when the whole line is read
        defaults = settings_for(**vars(peek.parse_known_args(argv)[0]))
    parser = argparse.ArgumentParser(usage=usage)
    parser.add_argument("command", choices=("train", "evaluate", "figures"))
    parser.add_argument("runs", nargs="*", type=Path, help="finished runs", metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="", help="folder of a new run or of figures")
    parser.add_argument("--resume", type=Path, metavar="", help="a stopped run to continue")
    devices = [*(f"cuda:{i}" for i in range(torch.cuda.device_count())), "cpu"]
    parser.add_argument("--device", choices=devices, default=devices[0])
    known = {"env": [*envs.ENVS], "method": [*METHODS], "networks": [*NETWORKS]}
    groups = {name: parser.add_argument_group(name) for name in ("data", "training", "evaluation")}
    for x in fields(Settings):
        names = f": {', '.join(known[x.name])}" if x.name in known else ""
        text = f"{x.metadata['help']}{names} [{getattr(defaults, x.name)}]"
        option = dict(type=x.type, choices=known.get(x.name), default=argparse.SUPPRESS, help=text)
        name, group = f"--{x.name.replace('_', '-')}", groups[x.metadata["group"]]
        group.add_argument(name, metavar="", **option)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    with contextlib.suppress(AttributeError, TypeError):  # glibc: keep freed memory
        for option, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(option, value)
    args = parse(sys.argv[1:] if argv is None else argv)
    given = {x.name: getattr(args, x.name) for x in fields(Settings) if x.name in args}
    command, runs, training = args.command, args.runs, args.command == "train"
    try:
        new = training and not args.resume
        wrong = runs if training else (args.resume or not runs)
        if wrong or (args.out and not new and command != "figures"):
            raise InputError("expected train, evaluate RUN ... or figures RUN ...; see --help")
        for x in fields(Settings):
            free = new or (command == "evaluate" and x.metadata["group"] == "evaluation")
            if x.name in given and not free:
                raise InputError(f"--{x.name.replace('_', '-')}: not accepted here; drop it")
        if command == "figures":
            figures(runs, args.out or runs[0] / "figures")
        elif command == "evaluate":
            changed = "".join(f"-{name}{value}" for name, value in given.items())
            for run in runs:
                model, s, _ = load_checkpoint(run / "checkpoint.pt", args.device, finished=True)
                s = settings_for(**asdict(s) | given)
                evaluate(run, model, open_dataset(s.data), s, changed)
        else:
            s = settings_for(**asdict(load_checkpoint(args.resume)[1]) if args.resume else given)
            parts = (Path(s.data).name or s.env, given.get("variant"), s.method, f"s{s.seed}")
            run = args.resume or args.out or Path("runs", "-".join(filter(None, parts)))
            run_train(s, run, torch.device(args.device), bool(args.resume))
    except (InputError, OSError, BrokenExecutor, KeyboardInterrupt) as error:
        print(f"error: {str(error) or 'interrupted; --resume continues a run'}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
