"""Draw the README's pictures into assets/: python .github/media.py RUNS

RUNS is the folder with the runs dotworld-smwm-s0, dotworld-sigreg-s0, dotworld-forward-s0 and
pusht-smwm-s0.
"""

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
        world.reset(seed=3)
        policy = world.behavior(np.random.default_rng(3))
        row[0].set_ylabel(name)
        for axes in row:
            axes.imshow(world.render_state(world.state()))
            axes.set(xticks=[], yticks=[])
            for _ in range(1 if name in ("dotworld", "sprite") else 8):
                world.advance(policy(world))
    return figure


def main() -> None:
    runs, assets = Path(sys.argv[1]), HERE / "assets"
    with tempfile.TemporaryDirectory() as folder:
        smwm.figures([runs / f"dotworld-{method}-s0" for method in smwm.METHODS], Path(folder))
        shutil.move(Path(folder) / "latents.png", assets / "latents.png")
        smwm.figures([runs / "pusht-smwm-s0"], Path(folder))
        shutil.move(Path(folder) / "plans-pusht-smwm-s0.png", assets / "plans.png")
    environments().savefig(assets / "environments.png", dpi=110)


if __name__ == "__main__":
    main()
