"""Fine-tuning in a process of its own, which can be killed at a step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_TESTS = Path(__file__).parent.parent
_SCRIPT = """
import os, signal, sys
sys.path[:0] = [sys.argv[1]]
from small import coloured, small_backbone
from featcache.finetuning import steps
from featcache.finetuning.finetune import finetune
from featcache.finetuning.options import Options
import torch
torch.set_num_threads(1)
count, step, kill = 0, steps.Stepper.step, int(sys.argv[3])
def counted(self, *batch):
    global count
    count += 1
    if count == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *batch)
steps.Stepper.step = counted
finetune(coloured(), backbone=[small_backbone(), small_backbone("b", 4)], fusion="attention",
         settings={"attention.dim": 8},
         options=Options(epochs=3, freeze_epochs=1, batch_size=8, lr=1e-2), precision="fp32",
         device=sys.argv[4], workers=2, reports=sys.argv[2], cache=sys.argv[2] + "/cache",
         minutes=1e-9)
if kill < 0:
    sys.exit(count)
"""


def finetune_in_a_process(reports: Path, kill: int = 0, device: str = "cpu") -> int:
    """Train for 15 steps with a checkpoint at each, and die before step `kill`; the exit code.

    With a `kill` below 0 the exit code of a run that comes to its end is the steps that it took.
    """
    command = [sys.executable, "-c", _SCRIPT, str(_TESTS), str(reports), str(kill), device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, check=False).returncode
