"""AdamW for all weights: SMWM=.github/adamw.py .github/row.sh NAME SETTING ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import smwm  # noqa: E402


class AdamW(smwm.Optimizer):
    def __init__(self, weights, *, muon: bool, **options):
        super().__init__(weights, muon=False, **options)


smwm.Optimizer = AdamW
if __name__ == "__main__":
    sys.exit(smwm.main())
