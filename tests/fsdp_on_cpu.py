"""A worker of test_training.py: train.py with FSDP on CPU processes, which torch can do and accelerate passes over.

torchrun --nproc_per_node=2 tests/fsdp_on_cpu.py <arguments of train.py>
"""

import faulthandler

from accelerate.state import AcceleratorState, DistributedType
from torch.distributed.tensor import DTensor

import train
from alignment.command_line import run, say
from alignment.training import saving

faulthandler.dump_traceback_later(100, exit=True)  # a rank left waiting for the other says where
plain_init = AcceleratorState.__init__


def init(self, *args, fsdp_plugin=None, **kwargs):
    """What accelerate does with the plugin for MULTI_GPU, for MULTI_CPU."""
    plain_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin


def whole_state(trainer):
    say("sharded weights:", sum(isinstance(weight, DTensor) for weight in trainer.model.parameters()))
    return plain_state(trainer)


AcceleratorState.__init__ = init
plain_state, saving.whole_state = saving.whole_state, whole_state
train.can_shard = lambda: True
run(train.parse_args, train.main)
