"""A reader visits at most 8 functions for a training step, and 8 for evaluating the planner."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import smwm  # noqa: E402


def visited(function) -> set[str]:
    """The functions of smwm.py that a call visits, without nested ones."""
    codes = set()
    sys.setprofile(lambda frame, event, arg: codes.add(frame.f_code))
    function()
    sys.setprofile(None)
    codes = {code.co_qualname for code in codes if code.co_filename == smwm.__file__}
    return {name for name in codes if "<" not in name}


s = smwm.settings_for(frames=2000, steps=3, batch=8, tasks=2, samples=8, elites=2, iterations=2)
with tempfile.TemporaryDirectory() as folder:
    data = smwm.open_dataset(smwm.collect(s, folder))
    model = smwm.build_model(s, 2, False)
    steps = visited(lambda: smwm.train(model, data, s))
    plans = visited(lambda: smwm.evaluate_planning(model, data, s))
steps -= {"train", "WorldModel.fit_actions", "Dataset.windows", "Optimizer.__init__"}  # once
plans -= {"evaluate_planning", "progress", "Lines.write"}
if "smwm_loss" not in steps or len(steps) > 8 or "cem" not in plans or len(plans) > 8:
    sys.exit(f"functions that a reader visits: {sorted(steps)}, {sorted(plans)}")
