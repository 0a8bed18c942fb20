"""A worker of test_training.py: train.py with FSDP on CPU processes, which torch can do and accelerate passes over.

torchrun --nproc_per_node=2 tests/fsdp_on_cpu.py <arguments of train.py>
"""

import faulthandler

from accelerate import Accelerator
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch.distributed.tensor import DTensor

import train
from alignment.command_line import is_first, run, say
from alignment.training import saving

faulthandler.dump_traceback_later(200, exit=True)  # a rank left waiting for the other says where
plain_init = AcceleratorState.__init__


def init(self, *args, fsdp_plugin=None, **kwargs):
    """What accelerate does with the plugin for MULTI_GPU, for MULTI_CPU."""
    plain_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # else it is forgotten at the next


def whole_state(trainer):
    say("sharded weights:", sum(isinstance(weight, DTensor) for weight in trainer.model.parameters()))
    say("accelerate says", trainer.accelerator.distributed_type, trainer.accelerator.is_fsdp2)
    return plain_state(trainer)


def no_sync(self, model):
    say("gradients are not reduced")
    return plain_no_sync(self, model)


def load_model(*args):
    model = plain_load(*args)
    if not is_first():
        print("the other rank loaded", sum(bool(weight.any()) for weight in model.parameters()), "weights", flush=True)
    return model


AcceleratorState.__init__ = init
plain_load, train.load_model = train.load_model, load_model
plain_no_sync, Accelerator.no_sync = Accelerator.no_sync, no_sync
plain_state, saving.whole_state = saving.whole_state, whole_state
train.can_shard = lambda: True
run(train.parse_args, train.main)
