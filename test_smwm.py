"""Each test checks a claim of the method, of an environment or of the command line: pytest -q."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import math
import multiprocessing
import os
import re
import resource
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
from torch._subclasses.fake_tensor import FakeTensorMode

import envs
import smwm

# Settings of a run of a second or two.
TINY = "--frames 400 --episode 40 --steps 6 --batch 8 --probe-epochs 2 --tasks 4 --samples 8"
TINY += " --elites 4 --iterations 2"


def run(*args: str, code: int = 0, capsys=None) -> str:
    """Run the command line in this process; returns what it printed on stderr."""
    assert smwm.main([word for arg in args for word in str(arg).split()]) == code
    return capsys.readouterr().err if capsys else ""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(function, *args) -> multiprocessing.Process:
    """A process that calls function(*args) in this folder; imports are done once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gymnasium", "mujoco", "pymunk", "torch._dynamo"])
    process = context.Process(target=_run_in, args=(os.getcwd(), function, *args))
    process.start()
    return process


def _run_in(folder: str, function, *args) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.exit(function(*args))


@pytest.fixture(scope="session")
def dots(tmp_path_factory):
    """A small dot world dataset for the tests that only read."""
    return smwm.collect(
        "dotworld", "single", frames=2000, episode=40, root=tmp_path_factory.mktemp("data")
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The main job: `python smwm.py train --env dotworld` in an empty folder, no other option."""
    here = tmp_path_factory.mktemp("main")
    command = [sys.executable, Path(smwm.__file__).resolve(), "train", "--env", "dotworld"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return here / "runs/dotworld-smwm-s0"


# -- the method ------------------------------------------------------------------------------------


class ByHand(nn.Module):
    """Latents are given as they are, g(z, a) = z + a, h(z, z') = z' - z."""

    def encode(self, obs):
        return obs

    def contexts(self, z, act):
        return z

    def predict(self, context, act):
        return context + act

    def infer_action(self, z, z_next):
        return z_next - z


def test_loss_by_hand():
    """One window of three latents in two dimensions, z = (0,0), (1,0), (1,3), a = (1,2), (0,1).

    g predicts (1,2) and (1,1): the errors (0,2) and (0,-2) give L_fwd = (0+4+0+4)/4 = 2.
    h infers (1,0) and (0,3): the errors (0,-2) and (0,2) give L_inv = 2.  L = 2 + 10 * 2 = 22.
    """
    z = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]]])
    act = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    loss, parts = smwm.smwm(ByHand(), z, act, lam=10.0)
    assert (loss.item(), parts["forward_loss"].item(), parts["inverse_loss"].item()) == (22, 2, 2)
    assert smwm.forward(ByHand(), z, act)[0].item() == 2


@pytest.mark.parametrize("term", ["forward_loss", "inverse_loss"])
def test_gradient_reaches_the_encoder_from_both_frames(term):
    """The target is not detached: each term moves the latents of both frames of a transition."""
    z = torch.randn(3, 2, 8, requires_grad=True)
    model = smwm.WorldModel(act_dim=2, dim=8, channels=4, hidden=16, width=16, depth=1)
    model.encode = lambda obs: obs
    _, parts = smwm.smwm(model, z, torch.randn(3, 1, 2))
    (gradient,) = torch.autograd.grad(parts[term], z)
    assert (gradient.abs().sum((0, 2)) > 1e-4).all()


def test_sigreg_statistic():
    """Of latents that are all 0, phi = 1, and the statistic over the whole line is
    n * integral (1 - exp(-t^2/2))^2 exp(-t^2/2) dt = n sqrt(2 pi) (1 - 2/sqrt(2) + 1/sqrt(3)).
    Of Gaussian latents it is of the order of 1, not of n."""
    n, act = 4096, torch.zeros(4096, 1, 4)
    exact = n * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    _, parts = smwm.sigreg(ByHand(), torch.zeros(n, 2, 4), act)
    assert parts["sigreg_loss"].item() == pytest.approx(exact, rel=0.02)
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(n, 2, 4, generator=generator)
    assert smwm.sigreg(ByHand(), gaussian, act, generator=generator)[1]["sigreg_loss"] < 2


def test_inverse_term_alone_prevents_collapse(dots):
    """The same network, data and steps, side by side: without L_inv the latent is a constant."""
    data, results = smwm.Dataset(dots), {}
    for method in ("smwm", "sigreg", "forward"):
        s = smwm.settings_for(method=method, steps=80, batch=16)
        model = smwm.build_model(s, 2)
        smwm.train(model, data, s)
        rows = [data.windows(split, 0) for split in ("train", "test")]
        z, z_test = (smwm.encode_all(model, data.frames, part) for part in rows)
        x, x_test = smwm.standardise(z, z_test)
        y, y_test = smwm.standardise(*(data.states[part] for part in rows))
        results[method] = smwm.r2(smwm.linear_probe(x, y, x_test), y_test), z_test.std(0).mean()
    assert results["smwm"][0] > 0.99 and results["smwm"][1] > 0.3, results
    assert results["forward"][1] < 0.02 * results["smwm"][1], results
    assert results["sigreg"][1] > 0.3, results


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_muon_is_that_of_torch(shape):
    """In bfloat16 the same as torch.optim.Muon, bit for bit; in float32 near it. What makes it
    Muon: the singular values of an update are about equal, however unequal the gradient's are."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(shape, generator=generator)
    weights, rates = [nn.Parameter(first.clone()) for _ in range(3)], dict(lr=0.1, weight_decay=0.1)
    optimizers = (
        torch.optim.Muon(weights[:1], adjust_lr_fn="match_rms_adamw", **rates),
        smwm.Muon(weights[1:2], dtype=torch.bfloat16, **rates),
        smwm.Muon(weights[2:], **rates),
    )
    for _ in range(4):
        grad = torch.randn(shape, generator=generator)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = grad.clone()
            optimizer.step()
    assert torch.equal(weights[0], weights[1])
    moved = (weights[2] - first).norm()
    assert 0 < (weights[2] - weights[0]).norm() < 0.02 * moved
    uneven = first * torch.logspace(0, -2, shape[1])
    values = torch.linalg.svdvals(smwm.orthogonal(uneven))
    assert values.min() > 0.5 and values.max() < 1.3


def test_muon_takes_the_matrices():
    """AdamW has what Muon has not: together they update every weight, each one once."""
    model = smwm.build_model(smwm.settings_for(), 2)
    for name, count in (("adamw", 1), ("muon", 2)):
        optimizers = smwm.make_optimizers(model, smwm.settings_for(optimizer=name))
        groups = [w for o in optimizers for group in o.param_groups for w in group["params"]]
        assert len(optimizers) == count and len(groups) == len({*groups}) == len(
            [*model.parameters()]
        )
    assert {w.ndim for w in optimizers[1].param_groups[0]["params"]} == {2}


def test_main_job(trained):
    """The published claims on dot world, by the command in the README."""
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["probe"]["linear"]["dot 1"] > 0.999
    assert round(metrics["latent"]["effective_dim"]) == 2
    assert metrics["latent"]["rollout_error"][4] < 0.02
    assert metrics["planning"]["tasks"] == 100
    assert metrics["planning"]["success"] == 100 and metrics["planning"]["random"] < 40
    assert {p.name for p in trained.iterdir()} >= {"checkpoint.pt", "settings.json", "log.csv"}


@pytest.mark.parametrize("entries", [1, 2, 3, 4, 5])
def test_latent_is_drawn_with_any_quantity(folder, entries):
    """Of one entry to five, those that start with a cosine and a sine (as Pendulum's) too."""
    angle = np.linspace(0, 6, 50)
    values = np.stack([np.cos(angle), np.sin(angle), angle, -angle, angle**2], 1)[:, :entries]
    np.savez(folder / "latents.npz", components=np.zeros((50, 4)), **{"target it": values})
    smwm.write_json(folder / "metrics.json", {"latent": {"spectrum": [1.0], "effective_dim": 1}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smwm.figure_latent(folder).savefig(folder / "latent.png")


@pytest.mark.parametrize(
    "options",
    [
        "--dim 1 --probe-train 2 --probe-test 2 --steps 10",  # torch's schedule makes 0 / 0 of 10
        "--block 5 --budget 3",  # less than a block
        "--variant sprite-none --tasks 1",  # all solved at the start
        "--block 2 --tasks 2 --search components --whiten 0.5",
    ],
)
def test_odd_settings_give_a_whole_run(folder, options):
    run(f"train {TINY} {options} --out odd")
    assert smwm.load_metrics(folder / "odd").keys() == {
        "train", "machine", "probe", "latent", "planning"
    }  # fmt: skip
    for draw, _ in smwm.FIGURES.values():
        assert draw(folder / "odd").axes
    smwm.animate_plan(folder / "odd", folder / "plan.gif")
    assert "| smwm" in smwm.report([folder / "odd"])


def test_figures_come_from_saved_results(trained, folder, capsys):
    run(f"figures {trained}")
    run("figures")
    assert (folder / "runs/environments.png").stat().st_size > 10_000
    for name in smwm.FIGURES:
        assert (trained / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_separate_commands_repeat_the_metrics(folder):
    """`probe` and `plan` on the checkpoint give what `train` wrote, to the last digit."""
    run(f"train {TINY} --out tiny")
    before = smwm.load_metrics(folder / "tiny")
    run("probe tiny")
    run("plan tiny")
    after = smwm.load_metrics(folder / "tiny")
    for metrics in (before, after):
        assert metrics["planning"].pop("seconds_per_plan") > 0
    assert before == after


def test_same_seed_same_metrics(folder, capsys):
    results = []
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(f"train {TINY} --seed {seed} --out {out}")
        metrics = json.loads((folder / out / "metrics.json").read_text())
        for part, name in (
            ("train", "seconds"),
            ("train", "frames_per_second"),
            ("planning", "seconds_per_plan"),
        ):
            metrics[part].pop(name)
        results.append(metrics)
    assert results[0] == results[1] != results[2]


def test_history_is_the_last_latents_and_blocks():
    """With h = 3: (z1, a1, z2, a2, z3), zero where there is no past, the same whether made from a
    whole window, step by step, or by `observe` from frames and past actions."""
    model = smwm.WorldModel(act_dim=2, dim=8, channels=4, hidden=16, width=16, depth=1, history=3)
    model.eval()
    obs = torch.randint(256, (5, 4, 64, 64, 3), dtype=torch.uint8)
    act = torch.randn(5, 3, 2)
    z = model.encode(obs)
    contexts = model.contexts(z, act)
    assert contexts.shape == (5, 4, 3 * 8 + 2 * 2)
    assert (contexts[:, 0, :-8] == 0).all() and (contexts[:, 1, :10] == 0).all()
    parts = [z[:, 1], act[:, 1], z[:, 2], act[:, 2], z[:, 3]]
    assert torch.equal(contexts[:, 3], torch.cat(parts, -1))
    model.act_mean.fill_(0.5)
    model.act_std.fill_(2.0)
    now = model.observe(obs[:, 1:], 2 * act[:, 1:] + 0.5)
    assert torch.allclose(now, contexts[:, 3], atol=1e-5)
    first = model.predict(contexts[:, 3], act[:, 0])
    second = model.predict(model.advance(contexts[:, 3], act[:, 0], first), act[:, 1])
    imagined = model.rollout(contexts[:, 3], act[:, :2])
    assert torch.allclose(imagined, torch.stack([z[:, 3], first, second], 1), atol=1e-5)


@pytest.mark.parametrize("size", [16, 48, 64, 96])
@pytest.mark.parametrize("refine", [0, 1])
def test_encoder_sees_every_corner(size, refine):
    """4 x 4 features whatever the size; the outermost pixels are seen; white counts as nothing."""
    options = dict(size=size, refine=refine, channels=4, hidden=8, dim=5)
    encoder = smwm.Encoder(**options).eval()
    obs = torch.full((5, size, size, 3), 255, dtype=torch.uint8)
    for n, corner in enumerate(itertools.product((0, -1), repeat=2), 1):
        obs[n, corner[0], corner[1]] = 0
    x = smwm.darkness(obs)
    assert x[0].abs().max() == 0 and x[1].sum() == 3 and x[1, :, 0, 0].min() == 1
    assert encoder.body(x).shape == (5, 16, 4, 4)
    z = encoder(obs)
    assert z.shape == (5, 5) and (torch.cdist(z, z) + torch.eye(5) > 0).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_encoder_keeps_the_precision_of_its_training(dots, precision):
    """Whatever surrounds it: its batch norms know the rounding that they were trained with."""
    data, s = smwm.Dataset(dots), smwm.settings_for(steps=5, precision=precision)
    model = smwm.build_model(s, 2)
    smwm.train(model, data, s)
    with torch.inference_mode():
        z = model.encode(data.frames[:50])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.encode(data.frames[:50]), z)
        model.bf16 = not model.bf16
        other = model.encode(data.frames[:50])
    assert z.dtype == torch.float32 and not torch.equal(z, other)


@pytest.mark.parametrize("obs", [torch.rand(2, 64, 64, 3), torch.ones(2, 3, 64, 64).byte()])
def test_encode_refuses_what_is_no_image(obs):
    with pytest.raises(ValueError, match="expected a batch of .64, 64, 3. uint8 images, got torch"):
        smwm.WorldModel(act_dim=2).encode(obs)


def test_paper_architecture():
    """`--encoder vit` has the published size, at 64 and at 224 px, and trains, imagines, plans."""
    for size in (64, 224):
        s = smwm.settings_for(env="pusht", encoder="vit", size=size, history=2)
        model = smwm.build_model(s, 10)
        assert 15e6 < sum(p.numel() for p in model.parameters()) < 18.5e6
    s = dataclasses.replace(s, size=64)
    model = smwm.build_model(s, 10)
    obs = torch.randint(256, (3, 3, 64, 64, 3), dtype=torch.uint8)
    loss, _ = smwm.smwm(model, obs, torch.randn(3, 2, 10))
    loss.backward()
    for name in ("encoder.cls", "forward_model.blocks.5.modulation.1.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0
    acts = smwm.plan(
        model.eval(), obs[:, :2], obs[:, 2], past=torch.zeros(3, 1, 10), samples=8, elites=2,
        iterations=1, horizon=2,
    )  # fmt: skip
    assert acts.shape == (3, 2, 10) and acts.isfinite().all()


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_devices_agree(trained, dots, monkeypatch, device):
    """The same weights give the same loss, latents and imagination on every device there is, and
    plans, whose noise each device draws its own way, that reach the goal in imagination."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    data, results = smwm.Dataset(dots), []
    rows = data.windows("test", 3)[:64]
    for place in ("cpu", device):
        model, s = smwm.load_checkpoint(trained / "checkpoint.pt", place)
        model.bf16 = False
        obs, act = (x.to(place) for x in data.batch(rows, 4, 1))
        with torch.no_grad():
            loss, _ = smwm.smwm(model, obs, act)
            now, z_goal = model.observe(obs[:, 0]), model.encode(obs[:, 3])
            imagined = model.rollout(now, act)
            sizes = dict(samples=100, elites=10, iterations=10)
            acts = smwm.plan(model, obs[:, 0], obs[:, 3], precision="fp32", **sizes)
            ends = model.rollout(now, (acts - model.act_mean) / model.act_std)[:, -1]
        left = (ends - z_goal).square().sum() / (now - z_goal).square().sum()
        z = smwm.encode_all(model, data.frames[:100])
        assert acts.device == z_goal.device == torch.empty(0, device=place).device and left < 0.01
        results.append((loss.cpu(), z, imagined.cpu()))
    (loss, z, imagined), (loss2, z2, imagined2) = results
    assert torch.allclose(loss, loss2, rtol=1e-3) and torch.allclose(z, z2, atol=1e-3)
    assert torch.allclose(imagined, imagined2, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"encoder": "vit", "method": "sigreg"}])
def test_nothing_is_left_on_another_device(monkeypatch, options):
    """Without a GPU: a training step and a plan on a device whose tensors have shapes alone; a
    tensor that was made on the CPU and not moved there is an error."""
    s = smwm.settings_for(env="cube", size=64, batch=2, samples=8, elites=2, **options)
    for network in (smwm.ViT, smwm.TransformerForwardModel):  # one layer is as good as many
        monkeypatch.setitem(network.__init__.__kwdefaults__, "depth", 1)
    model = smwm.build_model(s, 10).to("meta")

    class Generator(torch.Generator):  # no device "meta" has one
        def __new__(cls, device="cpu"):
            return super().__new__(cls)

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        obs, z = torch.empty(2, 4, 64, 64, 3, dtype=torch.uint8), torch.empty(200, s.dim)
        metric, past = smwm.whiten(z, 0.5).to("meta"), torch.empty(2, 2, 10)
        objective = smwm.Objective(model, s, torch.Generator("meta"))
        objective(obs.to("meta"), torch.empty(2, 3, 10, device="meta"))[0].backward()
        assert all(w.grad.device.type == "meta" for w in model.encoder.parameters())
        maps = dict(metric=metric, axes=torch.empty(10, 10, device="meta"))
        acts = smwm.plan(model, obs[:, :3], obs[:, 3], past=past, iterations=2, **maps)
        assert acts.device.type == "meta" and acts.shape == (2, 5, 10)
        with pytest.raises(RuntimeError, match="device"):
            model.predict(torch.empty(2, model.context_dim), acts[:, 0])


# -- resume, and several processes -----------------------------------------------------------------


def weights(path: Path) -> dict:
    return torch.load(path / "checkpoint.pt", weights_only=True)["model"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


LONGER = TINY.replace("--steps 6", "--steps 40") + " --threads 1 --log-every 7"


@pytest.mark.parametrize("option", ["", "--method sigreg", "--optimizer muon --hidden 64"])
def test_resumed_training_is_bit_identical(folder, capsys, monkeypatch, option):
    """Cut off after a checkpoint within a logging interval, resumed, and compared: weights, log
    and metrics of the uninterrupted run."""
    run(f"train {LONGER} {option} --out whole")
    with monkeypatch.context() as patch:
        patch.setattr(smwm, "SAVE_EVERY", 0.0)
        patch.setattr(smwm, "save_checkpoint", cut_after(smwm.save_checkpoint, 17))
        run(f"train {LONGER} {option} --out cut", code=130)
    assert "training" in torch.load(folder / "cut/checkpoint.pt", weights_only=True)
    assert "begun with other --steps" in run(
        f"train {LONGER} {option} --out cut --resume --steps 41", code=2, capsys=capsys
    )
    checkpoint = folder / "cut/checkpoint.pt"
    kept = checkpoint.read_bytes()
    content = torch.load(checkpoint, weights_only=True)
    content["training"]["optimizer 0"]["param_groups"][0]["params"].pop()  # as of other code
    torch.save(content, checkpoint)
    message = run(f"train {LONGER} {option} --out cut --resume", code=2, capsys=capsys)
    assert "--resume: expected the state of this training, got: loaded state dict" in message
    checkpoint.write_bytes(kept)
    run(f"train {LONGER} {option} --out cut --resume")
    assert same(weights(folder / "whole"), weights(folder / "cut"))
    logs = [
        [line.split(",")[:1] + line.split(",")[2:] for line in open(folder / name / "log.csv")]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]
    metrics = [smwm.load_metrics(folder / name)["probe"] for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]


def cut_after(function, count: int):
    def wrapped(*args):
        nonlocal count
        function(*args)
        count -= 1
        if count == 0:
            raise KeyboardInterrupt

    return wrapped


def test_killed_at_any_moment_and_resumed(folder):
    """kill -9 in collection and at several moments of training: each time the same command with
    --resume goes on, nothing half-written is taken for whole, and the weights are those of an
    uninterrupted run."""
    options = "train --frames 4000 --steps 80 --batch 16 --probe-epochs 1 --tasks 2 --samples 8"
    options += " --elites 4 --threads 1 --probe-train 500 --probe-test 200"

    def start_training(*more: str):
        return start(_train_with_checkpoints, *options.split(), "--resume", *more)

    def kill_when(process, condition) -> None:
        while process.exitcode is None and not condition():
            time.sleep(0.005)
        assert process.exitcode is None, process.exitcode
        process.kill()
        process.join()

    rng = np.random.default_rng()
    victim = start_training("--out", "cut")
    kill_when(victim, lambda: [*folder.glob("data/.*.tmp/frames.npy")])
    assert not [*folder.glob("data/dotworld*")]  # only under its temporary name
    assert smwm.load_settings(folder / "cut").steps == 80  # what --resume alone goes on with
    whole = start_training("--out", "whole")
    step, log = 0, folder / "cut/log.csv"
    for _ in range(2):
        victim, step = start_training("--out", "cut"), step + int(rng.integers(2, 35))
        kill_when(
            victim, lambda n=step // 10: log.exists() and len(log.read_text().split()) > n + 1
        )
        smwm.load_checkpoint(folder / "cut/checkpoint.pt")
    for process in (start_training("--out", "cut"), whole):
        process.join()
        assert process.exitcode == 0
    assert all("planning" in smwm.load_metrics(folder / out) for out in ("cut", "whole"))
    assert not [*folder.glob("**/.*.tmp")] and len([*folder.glob("data/*")]) == 1
    assert same(weights(folder / "whole"), weights(folder / "cut"))
    assert len((folder / "cut/log.csv").read_text().split()) == 9


def _train_with_checkpoints(*args: str) -> int:
    smwm.SAVE_EVERY = 0.02  # seconds
    return smwm.main([*args])


def test_data_is_made_once_by_two_processes_at_a_time(folder):
    """Two seeds started together find the folder taken and wait; then one collects, and the other
    finds the data made."""

    def read(kind: str) -> list[str]:
        files = (folder / f"{name}.{kind}" for name in "ab")
        return [file.read_text() if file.exists() else "" for file in files]

    with smwm.in_turn(folder / "data"):
        both = [start(_collect_and_tell, name) for name in "ab"]
        while all(process.exitcode is None for process in both) and not all(
            "waiting" in told for told in read("err")
        ):
            time.sleep(0.01)
    for process in both:
        process.join()
        assert process.exitcode == 0, read("err")
    assert all("waiting" in told for told in read("err"))
    assert sorted("collect dotworld" in told for told in read("err")) == [False, True]
    assert len({*read("out")}) == 1 and "400 frames" in read("out")[0]


def _collect_and_tell(name: str) -> int:
    with open(f"{name}.out", "w") as out, open(f"{name}.err", "w", buffering=1) as err:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return smwm.main(["collect", "--frames", "400"])


def test_two_processes_train_as_one(folder, capsys):
    """torchrun with two CPU processes: the loss curve of one process with the same global batch, up
    to the batch norms' statistics, which each process takes of its half; one process writes."""
    options = "train --frames 2000 --steps 20 --batch 64 --probe-epochs 1 --tasks 2 --samples 8"
    options += " --lr 1e-3 --precision fp32 --log-every 5"
    options += " --elites 4 --threads 1 --probe-train 500 --probe-test 200 --out"
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node=2".split()
    command = [sys.executable, *torchrun, Path(smwm.__file__).resolve(), *options.split(), "two"]
    two = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run(f"{options} one")
    out, error = two.communicate()
    assert two.returncode == 0, error
    assert capsys.readouterr().out.count("trained") == out.count("trained") == 1
    curves = [np.loadtxt(folder / n / "log.csv", delimiter=",", skiprows=1) for n in ("one", "two")]
    assert curves[0].shape == curves[1].shape == (4, 7)
    assert np.allclose(curves[0][:, 3:], curves[1][:, 3:], rtol=0.15), curves


def test_pieces_work_where_they_are_copied():
    """The sections Model and Losses, and the planner, in a file that imports torch alone."""
    source = Path(smwm.__file__).read_text()
    start, end = source.index("# Model\n"), source.index("# ----", source.index("METHODS = {"))
    names = {"torch": torch, "Tensor": torch.Tensor, "nn": nn, "F": nn.functional}
    copy = names | {"partial": functools.partial}
    exec(source[start:end], copy)
    exec(inspect.getsource(smwm.cem) + inspect.getsource(smwm.plan), copy)
    obs = torch.randint(256, (2, 2, 64, 64, 3), dtype=torch.uint8)
    model = copy["WorldModel"](act_dim=2)
    loss, _ = copy["smwm"](model, obs, torch.randn(2, 1, 2))
    acts = copy["plan"](model.eval(), obs[:, 0], obs[:, 1], samples=8, elites=2, iterations=2)
    assert loss.isfinite() and acts.shape == (2, 5, 2)


# -- planning --------------------------------------------------------------------------------------


def test_cem_finds_the_optimum_of_a_quadratic():
    target = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))

    def cost(acts):
        return (acts - target[:, None]).square().sum((2, 3))

    zeros = torch.zeros_like(target)
    found = smwm.cem(cost, zeros, zeros + 1, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(found, target, atol=1e-3)


def test_planning_a_batch_equals_one_by_one(trained, dots):
    model, _ = smwm.load_checkpoint(trained / "checkpoint.pt")
    frames = smwm.Dataset(dots).frames
    obs, goal = frames[:6], frames[6:12]
    batched = smwm.plan(model, obs, goal, samples=50, elites=5, iterations=5)
    looped = [
        smwm.plan(model, o[None], g[None], samples=50, elites=5, iterations=5)
        for o, g in zip(obs, goal, strict=True)
    ]
    assert torch.allclose(batched, torch.cat(looped), atol=1e-4)
    grouped = smwm.plan(model, obs, goal, samples=50, elites=5, iterations=5, rows=100)
    assert torch.allclose(batched, grouped, atol=1e-4)
    assert batched.abs().max() <= 1


def test_whitening():
    """Latents with standard deviations 10, 5, 1 along known axes: to the power 1 every axis counts
    the same (but for the floor), to the power 0.5 by its deviation, and 0 is the plain distance."""
    generator, deviations = torch.Generator().manual_seed(0), torch.tensor([10.0, 5.0, 1.0])
    axes = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    z = 7 + torch.randn(20_000, 3, generator=generator) * deviations @ axes.T
    relative = (deviations / 10) ** 2
    for power in (0.0, 0.5, 1.0):
        unit = (axes.T @ smwm.whiten(z, power)).square().sum(1)  # of a step along each axis
        assert torch.allclose(unit, (relative + 0.01) ** -power, rtol=0.03), (power, unit)
    assert smwm.whiten(torch.ones(5, 3), 0.5).isfinite().all()
    collapsed = torch.randn(5, 1000, 128, generator=generator) * torch.logspace(-4, -30, 128)
    for z in collapsed:  # the decomposition fails for most of these in float32
        assert smwm.whiten(z, 0.5).isfinite().all()


def test_plan_goes_by_the_metric():
    """Where the metric sees the first entry alone, the plan reaches the goal in it alone."""
    model = smwm.WorldModel(act_dim=2, dim=2, channels=4, hidden=8, width=8, depth=1).eval()
    model.encode = lambda obs: obs.flatten(1)[:, :2].float()
    model.predict = lambda context, act: context + act
    obs, goal = torch.zeros(1, 2), torch.tensor([[1.0, -1.0]])
    sizes = dict(horizon=2, samples=100, elites=10, iterations=20)
    both = smwm.plan(model, obs, goal, **sizes).sum(1)
    first = smwm.plan(model, obs, goal, metric=torch.tensor([[1.0, 0], [0, 0]]), **sizes).sum(1)
    assert torch.allclose(both, goal, atol=0.05)
    assert (first - goal)[0, 0].abs() < 0.05 < (first - goal)[0, 1].abs()


def test_plan_searches_along_the_axes():
    """Where the only axis moves both entries alike, so does the plan."""
    model = smwm.WorldModel(act_dim=2, dim=2, channels=4, hidden=8, width=8, depth=1).eval()
    model.encode = lambda obs: obs.flatten(1)[:, :2].float()
    model.predict = lambda context, act: context + act
    goal, axes = torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 1], [0, 0]])
    sizes = dict(horizon=2, samples=100, elites=10, iterations=20)
    acts = smwm.plan(model, torch.zeros(1, 2), goal, axes=axes, **sizes)
    assert torch.equal(acts[..., 0], acts[..., 1])
    assert torch.allclose(acts.sum(1), torch.full((1, 2), 0.5), atol=0.05)


@pytest.mark.parametrize("entries", [1, 4])
def test_action_axes_have_the_covariance_of_the_data(entries):
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(1000, entries, generator=generator).cumsum(1)  # entries go together
    axes, cov = smwm.action_axes(acts), acts.T @ acts / len(acts)
    assert torch.allclose(axes.T @ axes, cov, atol=1e-4)  # of x @ axes, for x of unit covariance
    assert torch.allclose(axes @ axes.T, torch.diag(torch.linalg.eigvalsh(cov)), atol=1e-4)


def test_imagined_rollout_is_repeated_prediction():
    model = smwm.WorldModel(act_dim=2, dim=8, channels=4, hidden=16, width=16, depth=1)
    z, acts = torch.randn(3, 8), torch.randn(3, 4, 2)
    latents = model.rollout(z, acts)
    assert latents.shape == (3, 5, 8) and torch.equal(latents[:, 0], z)
    for t in range(4):
        assert torch.allclose(
            latents[:, t + 1], model.predict(latents[:, t], acts[:, t]), atol=1e-6
        )


def test_tasks_solved_at_the_start_are_told_apart(dots):
    """A task whose start is its goal counts among all tasks, not among the unsolved ones: a goal
    of 1 step on is solved at the start where the dot moved by less than 2 px in that step."""
    data, s = smwm.Dataset(dots), smwm.settings_for(tasks=200, budget=5, goal_offset=1)

    def stay(obs, past, active, step):
        return np.zeros((len(active), 5, 2))

    states, goals, solved = smwm.run_tasks(stay, data, s, "stay")
    rows = smwm.planning_tasks(data, s)
    start, goal = data.states[rows].numpy(), data.states[rows + 1].numpy()
    assert (states == start[:, None]).all() and (goals == goal).all()
    near = np.linalg.norm(start - goal, axis=1) <= 2
    assert near.any() and (solved == np.where(near, 0, -1)).all()


def test_wilson_interval():
    """Ten of ten: the lower end is n / (n + z^2) = 10 / 13.8416 = 72.25%."""
    low, high = smwm.interval95(np.ones(10))
    assert low == pytest.approx(72.25, abs=0.01) and high == 100
    assert smwm.interval95(np.zeros(10))[0] == 0


# -- probes ----------------------------------------------------------------------------------------


def test_probes_read_what_is_there_and_nothing_else():
    """y = x_1^2 is invisible to the linear probe, read by the MLP; noise is read by neither."""
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    for y, linear, mlp in ((x @ torch.ones(3, 1), 1, 1), (x[:, :1] ** 2, 0, 1), (noise, 0, 0)):
        y, y_test = smwm.standardise(y[:3000], y[3000:])
        assert smwm.r2(smwm.linear_probe(x[:3000], y, x[3000:]), y_test) == pytest.approx(
            linear, abs=0.03
        )
        read = smwm.mlp_probe(x[:3000], y, x[3000:], epochs=60)
        assert smwm.r2(read, y_test) == pytest.approx(mlp, abs=0.06)


def test_r2_by_hand():
    """The mean: 1 - (1 + 0 + 1) / (1 + 0 + 1) = 0. What is right: 1, two off: 1 - 3 * 4 / 2 = -5. A
    constant, which has no variance to explain, does not count."""
    target = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    assert smwm.r2(torch.tensor([[2.0, 4.0]] * 3), target) == pytest.approx(0)
    two_off = torch.stack([target[:, 0], target[:, 0] + 2], 1)
    both = torch.stack([target[:, 0], target[:, 0]], 1)
    assert smwm.r2(two_off, both) == pytest.approx((1 + (1 - 12 / 2)) / 2)


def test_standardise_centres_constants():
    """An entry that is constant in training, but for rounding, is not blown up where it differs."""
    train, test = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)).unbind()
    train[:, 1:], test[:, 1:] = 0.123, 0.124  # as of a collapsed latent
    train[0, 2] += 1e-8
    x, x_test = smwm.standardise(train.double(), test.double())
    assert x[:, 0].std() == pytest.approx(1) and x.mean(0).abs().max() < 1e-6
    assert torch.allclose(x_test[:, 1:], torch.tensor(0.001).double(), atol=1e-6)


def test_effective_dimension():
    """Two equal variances among five: (1+1)^2 / (1+1) = 2; with one a hundred times less: 2.02."""
    assert smwm.effective_dim(torch.tensor([1.0, 1, 0, 0, 0])) == 2
    assert smwm.effective_dim(torch.tensor([1.0, 1, 0.01, 0, 0])) == pytest.approx(2.02, abs=1e-3)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))[0]
    z = torch.randn(20_000, 5) * torch.tensor([3.0, 2, 1, 0, 0]) @ rotation
    spectrum, directions = smwm.principal_components(z)
    assert torch.allclose(spectrum.sqrt(), torch.tensor([3.0, 2, 1, 0, 0]).double(), atol=0.05)
    assert torch.allclose(
        (directions[:, 0] * rotation[0].double()).sum().abs(), torch.ones(()).double(), atol=1e-3
    )


# -- data ------------------------------------------------------------------------------------------


def test_dataset_rows_are_transitions(dots):
    """In every window of both splits the dot moved by 16 px times the actions in between; frames
    and states agree; the splits share no episode."""
    data, world = smwm.Dataset(dots), envs.DotWorld()
    seen = []
    for split in ("train", "test"):
        rows = data.windows(split, 6)
        obs, act = data.batch(rows, 3, 3)
        assert obs.shape[1:] == (3, 64, 64, 3) and act.shape[1:] == (2, 6)
        moved = 16 * act.unflatten(-1, (3, 2)).sum(2).double()
        assert torch.allclose(data.states[rows + 3] - data.states[rows], moved[:, 0], atol=1e-4)
        assert torch.allclose(data.states[rows + 6] - data.states[rows + 3], moved[:, 1], atol=1e-4)
        row = int(rows[5])
        assert (world.render_state(data.states[row].numpy()) == obs[5, 0].numpy()).all()
        seen.append(set((data.windows(split, 0) // 40).tolist()))
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 50


def test_collection_is_deterministic_and_cached(dots, tmp_path, monkeypatch):
    """The same bytes with one process as with several; a second call finds the first's folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    again = smwm.collect("dotworld", "single", frames=2000, episode=40, root=tmp_path)
    assert again.name == dots.name
    for name in ("frames", "actions", "states", "episode_ends"):
        assert (again / f"{name}.npy").read_bytes() == (dots / f"{name}.npy").read_bytes()
    stamp = (again / "frames.npy").stat().st_mtime_ns
    assert smwm.collect("dotworld", "single", frames=2000, episode=40, root=tmp_path) == again
    assert (again / "frames.npy").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "stop, error", [("interrupt", KeyboardInterrupt), ("die", smwm.InputError)]
)
def test_interrupted_collection_leaves_nothing(tmp_path, monkeypatch, stop, error):
    if stop == "interrupt":
        monkeypatch.setattr(smwm, "progress", interrupted)
    else:
        monkeypatch.setattr(smwm, "_collect_episode", die)
    with pytest.raises(error):
        smwm.collect("dotworld", "single", frames=400, episode=40, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def interrupted(*args):
    raise KeyboardInterrupt


def die(*args):
    os._exit(1)


def foreign(folder: Path, kind: str, frames: np.ndarray, ends: np.ndarray) -> Path:
    """A dataset as other people have it: 1 action entry, NaN at the episodes' ends, 3 states."""
    rng, rows = np.random.default_rng(0), len(frames)
    actions, states = rng.normal(size=(rows, 1)), rng.normal(size=(rows, 3))
    actions[ends - 1] = np.nan
    path = folder / f"mine.{kind}"
    if kind == "npz":
        np.savez(path, frames=frames, actions=actions, episode_ends=ends, states=states)
        return path
    if kind == "folder":
        path.mkdir()
        actions[ends - 1] = 0
        arrays = dict(frames=frames, actions=actions, episode_ends=ends)
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
        return path
    import h5py

    with h5py.File(path := folder / "mine.h5", "w") as file:
        file["pixels"], file["action"] = frames, actions
        file["proprio"], file["state"] = states[:, :1], states
        file["reward"] = np.zeros(rows)  # nothing to read
        file["note"] = np.array([b"text"] * rows)
        lengths = np.diff(ends, prepend=0)
        if kind == "h5":
            file["ep_len"], file["ep_offset"] = lengths, ends - lengths
        else:
            file["episode_idx"] = np.repeat(np.arange(len(ends)), lengths)
    return path


H5PY = importlib.util.find_spec("h5py") is not None  # optional; .ci/run installs it


@pytest.mark.parametrize("kind", ["npz", "folder"] + ["h5", "h5 by index"] * H5PY)
def test_own_data(folder, capsys, kind):
    """Frames of 96 x 128 in episodes of 50 and 70: read, resized once, trained on and probed; what
    cannot be is off, and says so."""
    frames = np.random.default_rng(1).integers(0, 255, (600, 96, 128, 3)).astype(np.uint8)
    path = foreign(
        folder, kind, frames, np.array([50, 120, 170, 240, 290, 360, 410, 480, 530, 600])
    )
    run(f"train {TINY} --data {path} --out new")
    said = capsys.readouterr()
    assert "planning: off" in said.out and "Traceback" not in said.err
    probed = smwm.load_metrics(folder / "new")["probe"]["linear"].keys()
    expected = {"npz": {"states"}, "folder": set()}.get(kind, {"proprio", "state"})
    assert probed == expected and (("probes: off" in said.out) == (kind == "folder"))
    assert smwm.figure_latent(folder / "new").axes
    (made,) = (folder / "data").iterdir()
    data = smwm.Dataset(made)
    assert data.size == 64 and data.ends.tolist()[:2] == [50, 120]
    assert data.actions.isfinite().all() and (data.actions[49] == 0).all()
    block = frames[7, :3, :2].astype(float)  # an output pixel is the mean of 1.5 x 2 input pixels
    mean = (block[0] + block[1] / 2).mean(0) / 1.5
    assert np.abs(data.frames[7, 0, 0].numpy() - mean).max() <= 0.51
    stamp = (made / "frames.npy").stat().st_mtime_ns
    run(f"train {TINY} --data {path} --out again")
    assert (made / "frames.npy").stat().st_mtime_ns == stamp


def test_data_larger_than_memory(folder):
    """180 MB of frames, of each kind: read, trained on and probed where a process may have 175 MB
    more than it has after the imports."""
    rows, ends = 15_000, np.arange(100, 15_001, 100)
    frames = np.lib.format.open_memmap(folder / "zeros.npy", "w+", np.uint8, (rows, 64, 64, 3))
    for kind in ["npz", "folder"] + ["h5"] * H5PY:
        process = start(_train_in_little_memory, foreign(folder, kind, frames, ends), kind)
        process.join()
        assert process.exitcode == 0 and "latent" in smwm.load_metrics(folder / kind)


def _train_in_little_memory(path: Path, out: str) -> int:
    if H5PY:
        import h5py  # noqa: F401, imports count before the limit
    used = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + 175_000_000,) * 2)
    with pytest.raises(MemoryError):
        bytearray(184_000_000)
    options = f"train {TINY} --threads 1 --probe-train 500 --probe-test 200 --channels 8"
    return smwm.main([*options.split(), "--data", str(path), "--out", out])


def test_hdf5_without_h5py_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (folder / "mine.h5").write_bytes(b"any")
    error = run(f"train {TINY} --data mine.h5", code=2, capsys=capsys)
    assert "pip install h5py" in error.splitlines()[-1]


BAD_FILES = {
    "truncated": lambda p: os.truncate(p, p.stat().st_size // 2),
    "foreign": lambda p: p.write_text("hello"),
    "no frames": lambda p: np.savez(p, actions=np.zeros((9, 1)), episode_ends=np.array([9])),
    "float frames": lambda p: rewrite(p, frames=lambda a: a / 255),
    "no episodes": lambda p: rewrite(p, episode_ends=lambda a: a[:0]),
    "actions short": lambda p: rewrite(p, actions=lambda a: a[:-1]),
    "NaN": lambda p: rewrite(p, states=lambda a: a * np.nan),
    "one episode": lambda p: rewrite(p, episode_ends=lambda a: a[-1:]),
    "ends short": lambda p: rewrite(p, episode_ends=lambda a: a - 1),
    "malicious": lambda p: rewrite(p, states=lambda a: np.array([Malicious()] * 120, object)),
    "malicious frames": lambda p: rewrite(p, frames=lambda a: np.array([Malicious()], object)),
}


def rewrite(path: Path, **changes) -> None:
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {name: change(arrays[name]) for name, change in changes.items()})


@pytest.mark.parametrize("fault", BAD_FILES)
def test_bad_file_ends_in_one_line(folder, capsys, fault):
    frames = np.zeros((120, 32, 32, 3), np.uint8)
    path = foreign(folder, "npz", frames, np.array([60, 120]))
    BAD_FILES[fault](path)
    error = run(f"train {TINY} --data {path} --out new", code=2, capsys=capsys).splitlines()[-1]
    assert error.startswith(f"error: {path}") and "expected" in error
    assert {p.name for p in folder.rglob("*")} <= {"mine.npz", "data"}  # and nothing executed


def test_a_block_longer_than_the_episodes_ends_in_one_line(folder, capsys):
    path = foreign(folder, "npz", np.zeros((120, 64, 64, 3), np.uint8), np.arange(4, 121, 4))
    error = run(f"train {TINY} --data {path} --out new", code=2, capsys=capsys).splitlines()[-1]
    assert "expected train episodes of more than 15 frames, the longest of 30 has 4" in error


class Drift(gym.Env):
    """A foreign environment: a square moved by the action, in its own pixels; ends at random."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Dict(place=gym.spaces.Box(0, 90, (2,), np.float32))
    action_space = gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 4]))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(0, 90, 2).astype(np.float32)
        return {"place": self.place}, {"heat": self.place.sum(), "name": "drift"}

    def step(self, action):
        assert self.action_space.contains(action)
        self.place = np.clip(self.place + action - [0, 2], 0, 90).astype(np.float32)
        over = bool(self.np_random.random() < 0.02)
        return {"place": self.place}, 0.0, over, False, {"heat": self.place.sum(), "name": "drift"}

    def render(self):
        frame = np.full((120, 100, 3), 255, np.uint8)
        x, y = self.place.astype(int)
        frame[y : y + 12, x : x + 10] = (200, 0, 0)
        return frame


class Unseen(Drift):
    """What it draws with is not installed."""

    def render(self):
        raise gym.error.DependencyNotInstalled("pip install paint")


def test_any_gymnasium_environment(folder, capsys):
    """Collected with random actions, trained, probed by its observation and info, planned in by
    latent distance, drawn; episodes end where the environment ends them."""
    gym.register("Drift-v0", Drift)
    options = f"{TINY.replace('400', '1000')} --block 2 --episode 100"
    run(f"train {options} --env gymnasium:Drift-v0")
    out, metrics = (
        capsys.readouterr().out,
        smwm.load_metrics(folder / "runs/gymnasium-Drift-v0-smwm-s0"),
    )
    assert metrics["probe"]["linear"].keys() == {"observation", "heat"}
    assert metrics["planning"].keys() >= {"distance", "random_distance"}
    assert "latent distance to the goal" in out
    (path,) = (folder / "data").iterdir()
    data = smwm.Dataset(path)
    assert len(data.ends) > 10 and data.actions.abs().max() <= 1
    place, actions = data.states[:, :2].numpy(), data.actions.numpy()
    moved = np.clip(place[:-1] + 2 * actions[:-1], 0, 90) - place[1:]
    inner = np.setdiff1d(np.arange(len(moved)), data.ends - 1)
    assert np.abs(moved[inner]).max() < 1e-4
    run("figures runs/gymnasium-Drift-v0-smwm-s0")
    gym.register("Unseen-v0", Unseen)
    for name, words in (
        ("CartPole-v1", "bounded continuous actions"),
        ("Nope-v7", "Nope"),
        ("Unseen-v0", "gives no picture here: pip install paint"),
    ):
        error = run(f"train {TINY} --env gymnasium:{name}", code=2, capsys=capsys)
        assert words in error.splitlines()[-1] and "gymnasium:" in error


# -- environments ----------------------------------------------------------------------------------

VARIANTS = [(env, variant) for env, cls in envs.ENVS.items() for variant in cls.VARIANTS]


@pytest.mark.parametrize("env", envs.ENVS)
def test_gymnasium_check_env(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(f"smwm/{envs.ENVS[env].__name__}-v0", render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("env, variant", VARIANTS)
def test_restored_state_gives_the_same_trajectory(env, variant):
    """To the last bit, also for Cube in a grasp and for random dots; Push-T: within 0.5 units."""
    world, other = smwm.make_env(env, variant, 32), smwm.make_env(env, variant, 32)
    other.reset(seed=2)
    for seed in range(3):
        world.reset(seed=seed)
        policy = world.behavior(np.random.default_rng(seed))
        for _ in range(25):
            world.advance(policy(world))
        saved = world.state()
        other.set_state(saved)
        assert (other.state() == saved).all()
        assert (other.render_state(saved) == world.render_state(saved)).all()
        for _ in range(25):
            action = policy(world)
            ours, theirs = world.advance(action)["state"], other.advance(action)["state"]
            if env == "pusht":
                assert np.abs(ours - theirs)[:4].max() < 0.5
            else:
                assert (ours == theirs).all()


@pytest.mark.parametrize("env, variant", VARIANTS)
def test_goal_is_reached_at_the_goal_and_probes_are_finite(env, variant):
    world = smwm.make_env(env, variant, 32)
    states = np.stack([world.reset(seed=seed)[1]["state"] for seed in range(5)])
    assert all(world.is_success(state, state) for state in states)
    targets = world.probe_targets(states)
    assert all(len(v) == 5 and v.ndim == 2 and np.isfinite(v).all() for v in targets.values())
    assert set(world.controlled) <= set(targets)
    _, info = world.reset(options={"state": states[0], "goal": states[0]})
    assert info["success"]


@pytest.mark.parametrize("env", envs.ENVS)
def test_collection_repeats_for_every_environment(env, tmp_path):
    paths = [smwm.collect(env, s.variant, frames=40, episode=20, root=tmp_path / n) for n in "ab"
             for s in [smwm.settings_for(env=env)]]  # fmt: skip
    for name in ("frames", "actions", "states"):
        first, second = ((path / f"{name}.npy").read_bytes() for path in paths)
        assert first == second


def test_reacher_is_the_control_suites():
    """dm_control 1.0.50's suite/reacher.xml, stepped by mujoco 4.0.0 with the same controls: equal
    to the last bit, the wrist at its limit among them."""
    world = envs.Reacher(size=16)
    world.reset(options={"state": [0.5, -1.0, 0, 0, 0, 0]})
    points = {
        99: [2.868279819650522, 2.809784177621687, 0.8279547267027635, 3.95478238824409],
        199: [5.328890163669101, 2.81578308999913, 0.6737939237518848, 0.501712354347192],
    }
    for t in range(200):
        state = world.advance(np.array([(t % 7 - 2) / 4, (t % 5 - 1) / 2]))["state"]
        if t in points:
            assert state[:4].tolist() == points[t]


def test_pusht_is_the_published_simulator():
    """stable-worldmodel 0.1.1's Push-T with pymunk 7.3.1, same start and actions, the block pushed:
    all seven published entries equal to the last bit."""
    world = envs.PushT(size=16)
    world.reset(options={"state": [140.0, 330.0, 256.0, 256.0, 0.6, 0.0, 0.0]})
    assert world.state()[:7].tolist() == [140.0, 330.0, 256.0, 255.99999999999997, 0.6, 0.0, 0.0]
    points = {
        24: [235.25564433603427, 206.98785694689406, 301.19048695034877, 250.9019869813708,
             1.171019491224357, 46.7664757224519, -139.6944938478682],
        49: [381.8902952735237, 325.8459095870542, 323.23229257215206, 379.05590909245365,
             2.388082068439956, -94.7566862746601, 139.69449384786782],
        99: [624.6039761795397, 325.84590958705434, 317.104718278424, 384.04447597813976,
             2.4546965800919747, -46.14757971184984, 139.69449384786782],
    }  # fmt: skip
    for t in range(100):
        action = np.array([(t % 7 - 2) / 8, (-1) ** (t // 25) * (t % 5 - 1) / -8])
        state = world.advance(action)["state"]
        if t in points:
            assert state[:7].tolist() == points[t]


@pytest.mark.parametrize(
    "start, action, end",
    [
        ([60, 49], [1, 0.25], [185.0, 80.25]),  # through the door
        ([60, 100], [1, 0.125], [99.5, 115.625]),  # stopped by the wall
        ([180, 60], [-0.7, -0.05], [92.5, 53.75]),  # and back
    ],
)
def test_tworoom_follows_the_published_rule(start, action, end):
    """stable-worldmodel 0.1.1's TwoRoom, 25 steps of the same action."""
    world = envs.TwoRoom(size=16)
    world.reset(options={"state": start})
    for _ in range(25):
        state = world.advance(np.array(action))["state"]
    assert np.abs(state - end).max() < 1e-5


def test_cube_holds_what_it_grasps():
    """A gripped cube lifted to z = 0.3 m is still there after 50 steps; opened, it falls."""
    world = envs.Cube(size=16)
    world.reset(seed=0)
    cube = world.state()[:3]
    yaw = 2 * np.arctan2(world.state()[6], world.state()[3])

    def go(target, close, steps):
        for _ in range(steps):
            state = world.state()
            turn = math.remainder(yaw - state[10], math.pi / 2)
            action = np.append((target - state[7:10]) / 0.05, [turn / 0.3, close])
            world.advance(np.clip(action, -1, 1))

    go(cube + [0, 0, 0.1], -1, 25)
    go(cube, -1, 10)
    go(cube, 1, 4)
    up = np.array([*cube[:2], 0.3])
    go(up, 1, 12)
    for _ in range(50):
        go(up, 1, 1)
        assert np.abs(world.state()[:3] - up).max() < 0.02
    go(up, -1, 20)
    assert world.state()[2] < 0.05


def test_behaviour_data_teaches():
    """Over 25 steps Push-T's block moves more than 20 units in half of the windows and turns more
    than 20 degrees in a fifth; the cube moves more than 4 cm in half and is held in a quarter
    of the frames; half of the rooms' episodes pass the door; the arm's wrist meets all of its
    range."""
    states = {}
    for env, episodes in (("pusht", 100), ("cube", 16), ("tworoom", 40), ("reacher", 40)):
        world = smwm.make_env(env, "default", 16)
        states[env] = []
        for seed in range(episodes):
            world.reset(seed=seed)
            policy = world.behavior(np.random.default_rng(seed))
            states[env].append([world.advance(policy(world))["state"] for _ in range(100)])
        states[env] = np.array(states[env])
    before, after = states["pusht"][:, :-25], states["pusht"][:, 25:]
    assert (np.linalg.norm((after - before)[..., 2:4], axis=-1) > 20).mean() > 0.5
    turn = np.remainder((after - before)[..., 4] + np.pi, 2 * np.pi) - np.pi
    assert (np.abs(turn) > np.radians(20)).mean() > 0.2
    moved = np.linalg.norm((states["cube"][:, 25:] - states["cube"][:, :-25])[..., :3], axis=-1)
    assert (moved > 0.04).mean() > 0.5 and states["cube"][..., 2].max() > 0.15
    assert (states["cube"][..., 2] > 0.03).mean() > 0.25
    rooms = states["tworoom"][..., 0] < 112
    assert (rooms.any(1) & ~rooms.all(1)).mean() > 0.4
    assert np.histogram(states["reacher"][..., 1], 8, (-2.8, 2.8))[0].min() > 40


def test_dotworld_moves_exactly():
    """16 px a unit; cut at the border (2 px and 62 px); a blocked move does not happen."""
    world = envs.DotWorld(independent=2)
    world.reset(options={"state": [10.0, 20.0, 40.0, 40.0]})
    world.step([0.5, -0.25, 1.0, 1.0])
    assert world.state().tolist() == [18, 16, 56, 56]
    world.step([-1.0, 0.0, 1.0, 1.0])
    assert world.state().tolist() == [2, 16, 62, 62]
    world.reset(options={"state": [10.0, 20.0, 26.0, 22.0]})
    world.step([1.0, 0.0, 0.0, 0.0])  # to (26, 20), 2 px from the other, less than two radii
    assert world.state().tolist() == [10, 20, 26, 22]
    pair = envs.DotWorld(independent=0, coupled=1)
    pair.reset(options={"state": [10.0, 10.0, 20.0, 30.0]})
    pair.step([-1.0, 0.5])  # the first dot stops at the border, the pair keeps its shape
    assert pair.state().tolist() == [2, 18, 12, 38]


def test_distractors_move_without_the_action():
    world = envs.DotWorld(random=1, static=1)
    start = world.reset(seed=0)[1]["state"]
    states = np.array([world.step([0, 0])[4]["state"] for _ in range(20)])
    assert (states[:, :2] == start[:2]).all() and (states[:, 4:6] == start[4:6]).all()
    assert np.ptp(states[:, 2:4], axis=0).min() > 10


# First characters of the sha256 of the frame of `reset(seed=0)`, at 64 and at 224 pixels.
PICTURES = {
    ("dotworld", "single"): ("99bbcd3b7508", "c7f17ac31d5e"),
    ("dotworld", "combined"): ("7c08368734a2", "3115b9f7659e"),
    ("dotworld", "sprite-xyt"): ("d5486bf6172a", "ec4432db6539"),
    ("tworoom", "default"): ("8e720e209297", "5f94955b2aac"),
    ("reacher", "default"): ("767f93f633a8", "c26605d33929"),
    ("pusht", "default"): ("ba422902ef27", "272c09d6e405"),
    ("cube", "default"): ("996fe4e83db1", "3340c6577afa"),
}


@pytest.mark.parametrize("env, variant", PICTURES)
def test_golden_pictures(env, variant):
    found = []
    for size in (64, 224):
        frame, _ = smwm.make_env(env, variant, size).reset(seed=0)
        found.append(hashlib.sha256(frame.tobytes()).hexdigest()[:12])
    assert tuple(found) == PICTURES[env, variant]


def test_cube_casts_rays_where_they_matter():
    """The pixels taken for bare table are: casting a ray for each gives the same picture."""
    world, every = envs.Cube(size=64), envs.Cube(size=64)
    every._near = lambda: np.ones((64, 64), bool)
    for seed in range(20):
        world.reset(seed=seed)
        policy = world.behavior(np.random.default_rng(seed))
        for _ in range(25):
            world.advance(policy(world))
        frame = world.render_state(world.state())
        assert world._near().mean() < 0.5 and (frame == every.render_state(world.state())).all()


def test_picture_is_true_to_the_state():
    """The darkness of a dot sums to its area, and its centre of mass is its position."""
    world = envs.DotWorld(size=128)
    ink = 1 - world.render_state(np.array([20.3, 41.8]))[..., 1] / 255.0
    y, x = np.mgrid[:128, :128] / 2 + 0.25
    assert (ink * x).sum() / ink.sum() == pytest.approx(20.3, abs=0.02)
    assert (ink * y).sum() / ink.sum() == pytest.approx(41.8, abs=0.02)
    red = 1 - envs.DotWorld.COLORS[0][1] / 255
    assert ink.sum() / red / 4 == pytest.approx(math.pi * 2**2, rel=0.03)


def test_docstring_numbers_are_the_codes():
    """Every number that a docstring repeats, from the constant it repeats."""
    dots, rooms, arm, push, cube = envs.ENVS.values()
    said = {
        dots: [
            f"radius {dots.RADIUS:.0f} px",
            f"{dots.CANVAS:.0f} x {dots.CANVAS:.0f} canvas",
            f"units of {dots.REACH:.0f} px",
            f"within {dots.GOAL_DISTANCE:.0f} px",
            f"within {dots.GOAL_ANGLE} rad",
            f"{dots.SPRITE_REACH:.0f} px and {dots.TURN} rad",
            f"on its own: {dots.REACH:.0f} px and pi rad",
            f"one arrow of {dots.SPRITE_RADIUS:.0f} px",
            f"[{dots.RADIUS:.0f}, {dots.CANVAS - dots.RADIUS:.0f}] px",
            f"[{dots.SPRITE_RADIUS:.0f}, {dots.CANVAS - dots.SPRITE_RADIUS:.0f}] px",
        ],
        rooms: [
            f"{rooms.WORLD:.0f} x {rooms.WORLD:.0f} units",
            f"the speed, {rooms.SPEED:.0f} units",
            f"radius {rooms.RADIUS:.0f}",
            f"border ({rooms.BORDER:.0f} wide)",
            f"below {rooms.GOAL_DISTANCE:.0f} units",
            f"x = {rooms.WALL:.0f}, {rooms.THICKNESS:.0f} thick",
            f"y = {rooms.DOOR:.0f} with half-size {rooms.DOOR_HALF:.0f}",
            f"stops {rooms.PUSHBACK} units",
        ],
        push: [
            f"{push.WORLD:.0f} x {push.WORLD:.0f} units",
            f"k_p {push.K_P}, k_v {push.K_V}",
            f"{push.SUBSTEPS} physics steps of {push.DT} s",
            f"units of {push.ACTION} ",
            f"within {push.GOAL_DISTANCE:.0f} units",
            f"within pi/{math.pi / push.GOAL_ANGLE:.0f}",
        ],
        arm: [
            f"{arm.LINK} m and {arm.LINK} m",
            f"drawn {arm.DRAWN:.2f} m",
            f"radius {arm.RADIUS} m",
            f"{arm.WORLD} x {arm.WORLD} m",
            f"within {arm.GOAL_ANGLE} rad",
        ],
        cube: [
            f"control {cube.SUBSTEPS * 0.002} s",
            f"units of {cube.SCALE[0]} m",
            f"units of {cube.SCALE[3]} rad",
            f"half-size {cube.CUBE} m",
            f"within {cube.GOAL_DISTANCE} m",
            *(f"{axis} [{cube.LOW[i]:g}, {cube.HIGH[i]:g}]" for i, axis in enumerate("xyz")),
            f"x uniform in [{cube.CUBE_LOW[0]:g}, {cube.CUBE_HIGH[0]:g}] m",
            f"looking down at {math.degrees(cube.PITCH):.0f} degrees",
        ],
    }
    for cls, phrases in said.items():
        for phrase in phrases:
            assert phrase in " ".join(cls.__doc__.split()), (cls.__name__, phrase)
        order = re.findall("## (.*)", cls.__doc__)
        assert order == ["Description", "Action Space", "Observation Space", "Rewards"] + [
            "Starting State",
            "Episode End",
            "Arguments",
        ]
        assert f"`size={cls().size}`" in cls.__doc__


@pytest.mark.parametrize("env", envs.ENVS)
@pytest.mark.parametrize(
    "call, words",
    [
        (lambda w: w.step(np.zeros(9)), "action: expected shape"),
        (lambda w: w.step(np.full(w.action_space.shape, np.nan)), "action: expected finite"),
        (lambda w: w.set_state(np.zeros(99)), "state: expected shape"),
        (
            lambda w: w.reset(options={"state": np.full(w.state().shape, np.nan)}),
            "state: expected finite",
        ),
        (lambda w: w.reset(options={"goal": np.zeros(99)}), "goal: expected shape"),
        (lambda w: w.reset(options={"gaol": 1}), "gaol"),
        (lambda w: type(w)(size=0), "size: expected"),
        (lambda w: type(w)(render_mode="human"), "render_mode: expected"),
    ],
)
def test_environments_refuse_bad_input(env, call, words):
    world = envs.ENVS[env]()
    world.reset(seed=0)
    with pytest.raises(ValueError, match=words):
        call(world)


# -- command line and files ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, words",
    [
        ("--env moonworld", "--env: expected one of dotworld, tworoom"),
        ("--method magic", "--method: expected one of smwm, sigreg, forward"),
        ("--optimizer sgd", "--optimizer: expected one of adamw, muon"),
        ("--variant dotted", "--variant: expected one of single"),
        ("--batch 0", "--batch: expected a number of at least 1, got 0"),
        ("--lr nan", "--lr: expected a number"),
        ("--size 60", "--size: expected a multiple of 16"),
        ("--elites 400", "--elites: expected 2 to --samples"),
        ("--probe-train 1", "--probe-train: expected a number of at least 2, got 1"),
        ("--sequence 60", "expected train episodes of more than 59 frames"),
        ("--goal-offset 60", "expected test episodes of more than 62 frames"),  # before training
        ("--device cuda:9", "--device cuda:9: not usable here"),
        ("--data nowhere", "nowhere: expected a dataset, found nothing"),
        ("--out /proc/run", "/proc/run"),
        ("--lr 1e30 --steps 40", "the loss became nan"),
    ],
)
def test_bad_settings_end_in_one_line(folder, capsys, args, words):
    out = "" if "--out" in args else "--out new"
    error = run(f"train {TINY} {out} {args}", code=2, capsys=capsys)
    line = [part for part in error.splitlines() if part.startswith("error: ")]
    assert len(line) == 1 and words in line[0] and "Traceback" not in error
    assert not (folder / "new").exists() or (folder / "new/log.csv").exists()


def test_a_run_is_never_overwritten_silently(folder, capsys):
    run(f"train {TINY} --out one")
    before = (folder / "one/checkpoint.pt").read_bytes()
    assert "one: exists already" in run(f"train {TINY} --seed 1 --out one", code=2, capsys=capsys)
    run(f"train {TINY} --goal-offset 99 --out one --overwrite", code=2)  # which cannot be run
    assert (folder / "one/checkpoint.pt").read_bytes() == before
    run(f"train {TINY} --seed 1 --out one --overwrite")
    assert (folder / "one/checkpoint.pt").read_bytes() != before
    (folder / "mine").mkdir()
    (folder / "mine/thesis.txt").write_text("years of work")
    assert "not a run folder" in run(f"train {TINY} --out mine --overwrite", code=2, capsys=capsys)
    assert (folder / "mine/thesis.txt").exists()


def test_interrupted_training_is_not_taken_for_whole(folder, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(smwm, "train", interrupted)
        assert "interrupted" in run(f"train {TINY} --out cut", code=130, capsys=capsys)
    assert "let training finish" in run("probe cut", code=2, capsys=capsys)


def test_report_has_every_run_and_the_published_values(folder, capsys):
    """Seeds share a row, mean ± standard error; the README's tables are the report's output."""
    for seed in (0, 1):
        run(f"train {TINY} --env tworoom --episode 60 --seed {seed}")
    runs = sorted((folder / "runs").iterdir())
    table = smwm.report(runs)
    scores = [smwm.load_metrics(path)["planning"]["success"] for path in runs]
    error = np.std(scores, ddof=1) / math.sqrt(2)
    (row,) = [line for line in table.splitlines() if line.startswith("| tworoom | smwm")]
    assert f"| 2 | {np.mean(scores):.1f} ± {error:.1f} |" in row and "| 100 |" in row
    capsys.readouterr()
    run(f"report {runs[0]} {runs[1]}")
    assert capsys.readouterr().out.strip() == table
    smwm.write_json(runs[0] / "metrics.json", {"probe": {}})  # probed while it trains
    (folder / "runs/environments.png").touch()
    assert "left out" in run(f"report {runs[0]} {runs[1]} runs/environments.png", capsys=capsys)
    assert "expected a finished run" in run(f"report {runs[0]}", code=2, capsys=capsys)
    assert "no-run: expected a run folder" in run("report no-run", code=2, capsys=capsys)


def test_readme_tables_are_the_reports_output():
    here = Path(smwm.__file__).parent
    kept = sorted((here / ".github/results").iterdir())
    said = (here / "README.md").read_text()
    for table in smwm.report(kept).split("\n\n"):
        assert table in said


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def damage(name: str, value):
    def apply(path: Path) -> None:
        array = np.load(path / f"{name}.npy")
        np.save(path / f"{name}.npy", value(array) if callable(value) else value)

    return apply


def with_nan(array: np.ndarray) -> np.ndarray:
    array[7, 0] = np.nan
    return array


BAD_DATA = {
    "NaN action": (damage("actions", with_nan), "actions.npy: expected finite numbers, row 7"),
    "NaN state": (damage("states", with_nan), "states.npy: expected finite numbers, row 7"),
    "float frames": (damage("frames", lambda a: a / 255), "frames.npy: expected uint8"),
    "no frames": (damage("frames", lambda a: a[:0]), "frames.npy: expected uint8 (F, S, S, 3)"),
    "flat frames": (damage("frames", lambda a: a.ravel()), "frames.npy: expected uint8"),
    "one number": (damage("frames", lambda a: a.max()), "frames.npy: expected uint8"),
    "ends a number": (damage("episode_ends", np.int64(400)), "episode_ends.npy: expected"),
    "actions short": (
        damage("actions", lambda a: a[:-3]),
        "actions.npy: expected numbers (400, n)",
    ),
    "no episodes": (damage("episode_ends", np.zeros(0, np.int64)), "episode_ends.npy: expected"),
    "ends fall": (damage("episode_ends", np.array([300, 200, 400])), "episode_ends.npy: expected"),
    "truncated": (
        lambda p: os.truncate(p / "frames.npy", 10_000),
        "expected a dataset folder, got",
    ),
    "no file": (lambda p: (p / "actions.npy").unlink(), "actions.npy"),
    "one episode": (damage("episode_ends", np.array([400])), "expected two episodes or more"),
    "text": (damage("actions", lambda a: a.astype(str)), "actions.npy: expected numbers"),
    "foreign": (lambda p: (p / "frames.npy").write_text("hello"), "expected a dataset folder, got"),
    "bad meta": (lambda p: (p / "meta.json").write_text("{"), "expected a dataset folder, got"),
    "malicious": (
        lambda p: np.save(p / "states.npy", np.array([Malicious()], object), allow_pickle=True),
        "expected a dataset folder, got",
    ),
}


@pytest.mark.parametrize("fault", BAD_DATA)
def test_bad_dataset_ends_in_one_line(folder, capsys, fault):
    path = smwm.collect("dotworld", "single", frames=400, episode=40)
    apply, words = BAD_DATA[fault]
    apply(path)
    error = run(f"train {TINY} --out new", code=2, capsys=capsys)
    assert words in error.splitlines()[-1] and str(path) in error and "Traceback" not in error
    assert not (folder / "executed").exists()


BAD_CHECKPOINTS = [
    "truncated",
    "foreign",
    "malicious",
    "other model",
    "version",
    "NaN",
    "not there",
]


@pytest.mark.parametrize("fault", BAD_CHECKPOINTS)
def test_bad_checkpoint_ends_in_one_line(folder, capsys, fault):
    run(f"train {TINY} --out one")
    path = folder / "one/checkpoint.pt"
    if fault == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif fault == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif fault == "malicious":
        torch.save({"smwm": 3, "settings": Malicious()}, path)
    elif fault == "other model":
        content = torch.load(path, weights_only=True)
        content["settings"]["dim"] = 7
        torch.save(content, path)
    elif fault == "version":
        torch.save(torch.load(path, weights_only=True) | {"smwm": 2}, path)
    elif fault == "NaN":
        content = torch.load(path, weights_only=True)
        content["model"]["act_mean"][0] = math.nan
        torch.save(content, path)
    else:
        path.unlink()
    error = run("plan one", code=2, capsys=capsys)
    assert "one/checkpoint.pt: expected" in error.splitlines()[-1] and "Traceback" not in error
    assert not (folder / "executed").exists()


def test_bad_results_end_in_one_line(trained, folder, capsys):
    """What a run left, cut short or garbled: each in turn."""
    readers = {
        "settings.json": smwm.load_settings,
        "metrics.json": smwm.load_metrics,
        "latents.npz": lambda run: smwm.load_arrays(run / "latents.npz"),
        "plans.npz": lambda run: smwm.load_arrays(run / "plans.npz"),
    }
    for name, read in readers.items():
        whole = (trained / name).read_bytes()
        for part in (b"", whole[: len(whole) // 2], whole[:-40] + b"x" * 20):
            (folder / name).write_bytes(part)
            with pytest.raises(smwm.InputError, match=f"{folder}.*: expected"):
                read(folder)
    (folder / "settings.json").write_bytes((trained / "settings.json").read_bytes())
    assert "latents.npz: expected" in run(f"figures {folder}", code=2, capsys=capsys)


def test_full_disk_leaves_the_checkpoint_usable(folder, capsys):
    """A quota on the size of files (RLIMIT_FSIZE) stands for a disk that fills up while a
    checkpoint is written: one line, and the checkpoint before it loads."""
    run(f"train {TINY} --out one")
    before = (folder / "one/checkpoint.pt").read_bytes()
    model, s = smwm.load_checkpoint(folder / "one/checkpoint.pt")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError):
            smwm.save_checkpoint(folder / "one/checkpoint.pt", model, s)
        error = run(f"train {TINY} --out two", code=2, capsys=capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "one/checkpoint.pt").read_bytes() == before
    assert error.splitlines()[-1].startswith("error: ") and "Traceback" not in error
    assert not [*folder.glob("**/.*.tmp")]
    run(f"train {TINY} --out two --resume")


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    s = smwm.settings_for()
    smwm.save_checkpoint(path, smwm.build_model(s, 2), s)
    before = path.read_bytes()

    def full(content, temporary):
        temporary.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        smwm.save_checkpoint(path, smwm.build_model(s, 2), s)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("command", ["train", "collect", "probe", "plan", "figures", "bench"])
def test_help_fits_a_screen_and_says_every_default(command, capsys):
    with pytest.raises(SystemExit):
        smwm.main(
            [command, "--env", "dotworld", "--help"] if command == "train" else [command, "--help"]
        )
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 50 and max(map(len, text.splitlines())) <= 100
    if command == "train":
        s = dataclasses.asdict(smwm.settings_for())
        for name in ("steps", "lr", "lam", "samples", "block"):
            assert re.search(rf"--{name} .*\[{re.escape(str(s[name]))}\]", text), name


@pytest.mark.parametrize("sections", [("Model", "Losses"), ("Planning",)])
def test_sections_can_be_copied_alone(sections):
    """Model and losses, and the planner, run with nothing but torch around them."""
    source = Path(smwm.__file__).read_text()
    parts = re.split(r"# -{90,}\n# (\w+).*\n# -{90,}\n", source)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    names = {
        "torch": torch,
        "nn": nn,
        "Tensor": torch.Tensor,
        "F": nn.functional,
        "partial": smwm.partial,
    }
    exec(
        "from __future__ import annotations\n" + "\n".join(found[name] for name in sections), names
    )
    if "Model" in sections:
        model = names["WorldModel"](act_dim=2, channels=4, dim=8)
        obs = torch.randint(0, 255, (4, 2, 64, 64, 3), dtype=torch.uint8)
        names["smwm"](model, obs, torch.randn(4, 1, 2))[0].backward()
    else:
        zeros = torch.zeros(1, 2, 3)
        best = names["cem"](lambda acts: (acts - 1).square().sum((2, 3)), zeros, zeros + 1)
        assert torch.allclose(best, zeros + 1, atol=1e-2)
