"""Draw the README's pictures into assets/: python .github/media.py [RUNS]

The curves are drawn from results/ and sweeps/ (see sweeps.sh), the other pictures from RUNS, the
folder with the runs dotworld-smwm-s0, dotworld-sigreg-s0, dotworld-forward-s0 and pusht-smwm-s1.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib import pyplot

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import envs  # noqa: E402
import smwm  # noqa: E402


def environments():
    """A contact sheet: each environment along an episode of its behaviour policy."""
    figure, grid = pyplot.subplots(len(envs.ENVS), 8, figsize=(9, 6.8), layout="constrained")
    for row, (name, cls) in zip(grid, envs.ENVS.items(), strict=True):
        world = cls(size=160)
        world.reset(seed=14)
        policy = world.behavior(np.random.default_rng(14))
        row[0].set_ylabel(name)
        for axes in row:
            axes.imshow(world.render_state(world.state()))
            axes.set(xticks=[], yticks=[])
            for _ in range(1 if name in ("dotworld", "sprite") else 8):
                world.advance(policy(world))
    return figure


def read(path: Path) -> dict | None:
    return json.loads((path / "metrics.json").read_text()) if path.exists() else None


def horizons():
    """Success against the distance of the goals: ours (lines) and published (dashed)."""
    published = json.loads((HERE / "published.json").read_text())["horizon"]
    names = ("tworoom", "reacher", "pusht", "cube")
    style = dict(sharey=True, layout="constrained")
    figure, grid = pyplot.subplots(1, len(names), figsize=(12, 2.8), **style)
    for axes, env in zip(grid, names, strict=True):
        ours = {method: {} for method in (*smwm.METHODS, "random")}
        for method in smwm.METHODS:
            for offset in published["offsets"][:-1]:
                row = f"{env}-{method}-s1"
                path = "results/" + row if offset == 25 else f"sweeps/{row}-goal{offset}"
                if metrics := read(HERE / path):
                    ours[method][offset] = metrics["planning"]["success"]
                    ours["random"][offset] = metrics["planning"]["random"]
        for n, (method, success) in enumerate(ours.items()):
            axes.plot([*success], [*success.values()], "-o", color=f"C{n}", ms=3, label=method)
            theirs = published[env][method][:-1]
            axes.plot(published["offsets"][:-1], theirs, "--", color=f"C{n}", lw=1)
        axes.set(title=env, xlabel="steps to the goal", xticks=published["offsets"][:-1])
    grid[0].set_ylabel("solved, %")
    grid[1].legend(fontsize=7, ncols=2, loc="center")
    figure.suptitle("Lines: ours, seed 1, 100 tasks a point. Dashed: published, seed 0", fontsize=9)
    return figure


def lams():
    """Success and the worst probe of what is controlled, against lam."""
    lams = ("0", "0.1", "1", "10", "100")
    names = {env: f"{env}-lam{{}}" for env in ("dotworld", "tworoom", "reacher")}
    names["pusht, 1,500 steps"] = "tune-pusht-smwm-lam{}-lr2e-3"
    figure, grid = pyplot.subplots(1, 4, figsize=(12, 2.8), sharey=True, layout="constrained")
    for axes, (title, name) in zip(grid, names.items(), strict=True):
        rows = {lam: read(HERE / "sweeps" / name.format(lam)) for lam in lams}
        rows = {lam: row for lam, row in rows.items() if row}
        success = [row["planning"]["success"] / 100 for row in rows.values()]
        axes.plot([*rows], success, "-o", label="solved")
        for kind, mark in (("linear", "-s"), ("mlp", "-^")):
            lowest = [min(row["probe"][kind].values()) for row in rows.values()]
            axes.plot([*rows], lowest, mark, ms=4, label=f"R², {kind} probe")
        spread = [row["latent"]["spread"] for row in rows.values()]
        axes.plot([*rows], spread, "--", color="grey", label="spread of the latent")
        axes.set(title=title, xlabel="λ", ylim=(-0.05, 1.8))
    grid[0].legend(fontsize=7)
    caption = "SMWM by the weight of the inverse term, seed 0, 100 tasks a point (Push-T 200). "
    caption += "R²: the lowest of the controlled quantities"
    figure.suptitle(caption, fontsize=9)
    return figure


def main() -> None:
    assets = HERE / "assets"
    lams().savefig(assets / "lams.png", dpi=110)
    if [*HERE.glob("sweeps/*-goal*")]:
        horizons().savefig(assets / "horizons.png", dpi=110)
    if len(sys.argv) == 1:
        return
    runs = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        smwm.figures([runs / f"dotworld-{method}-s0" for method in smwm.METHODS], Path(folder))
        shutil.move(Path(folder) / "latents.png", assets / "latents.png")
        smwm.figures([runs / "pusht-smwm-s1"], Path(folder))
        shutil.move(Path(folder) / "plans-pusht-smwm-s1.png", assets / "plans.png")
    environments().savefig(assets / "environments.png", dpi=110)


if __name__ == "__main__":
    main()
