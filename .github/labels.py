"""How well the encoder can read a state: python .github/labels.py RUN [STEPS]

An encoder like RUN's, and a linear layer on its latent, are trained on the labels that the probes
ask for, with the optimizer, the schedule and as many frames a step as RUN. R² on held-out episodes
bounds from below how much of the state the frames show and the encoder can hold.
"""

import math
import sys

import deeper  # noqa: F401, adds its networks and makes smwm importable
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import envs
import smwm


def main() -> None:
    trained, s, _ = smwm.load_checkpoint(sys.argv[1])
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else s.steps
    data = smwm.open_dataset(s.data)
    model = smwm.build_model(s, data.actions.shape[1], trained.bf16)
    targets = envs.make(s.env, s.variant, s.size).probe_targets(data.states)
    labels = np.concatenate([*targets.values()], 1)
    labels = torch.from_numpy((labels - labels.mean(0)) / labels.std(0)).float()
    readout = nn.Linear(s.width // 2, labels.shape[1])
    weights = [*model.encoder.parameters(), *readout.parameters()]
    dtype = torch.bfloat16 if model.bf16 else torch.float32
    optimizer = smwm.Optimizer(weights, muon=s.width > 128, decay=s.decay, dtype=dtype)
    rows, generator = data.windows("train", 0), torch.Generator().manual_seed(s.seed)
    model.train()
    for step in smwm.progress(range(1, steps + 1), "train on labels"):
        at = rows[torch.randint(len(rows), (s.batch * s.window,), generator=generator)]
        loss = F.mse_loss(readout(model.encode(data.frames.index_select(0, at))), labels[at])
        model.zero_grad()
        readout.zero_grad()
        loss.backward()
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        optimizer.step(s.lr * min(10 * step / steps, cosine))
    model.eval()
    rows = np.random.default_rng(0).permutation(data.windows("test", 0))[:5000]
    with torch.inference_mode():
        read = readout(smwm.encode_all(model, data.frames, rows).float()).double()
    true = labels[rows].double()
    parts = [value.shape[1] for value in targets.values()]
    for name, x, y in zip(targets, read.split(parts, 1), true.split(parts, 1), strict=True):
        print(f"{s.env}, {steps} steps on labels, {name}: R² {smwm.r2(x, y):.4f}")


if __name__ == "__main__":
    main()
