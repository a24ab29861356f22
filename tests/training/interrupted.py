"""Run the command and let something happen to it in the middle of a step.

Usage: interrupted.py EVENT STEP RANK ARGUMENT ..., where EVENT is the name of a signal
or ``full-disk``.
"""

import os
import resource
import signal
import sys

from subquad.cli import main
from subquad.training.lm import Trainer

event, step, rank = sys.argv[1], int(sys.argv[2]), sys.argv[3]
train_step = Trainer._train_step


def interrupted(trainer, model):
    train_step(trainer, model)
    if trainer.step == step and os.environ.get("RANK", "0") == rank:
        if event == "full-disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        else:
            os.kill(os.getpid(), signal.Signals[event])


Trainer._train_step = interrupted
sys.exit(main(sys.argv[4:]))
