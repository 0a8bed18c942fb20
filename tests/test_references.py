"""DPO's references on several nodes: the first process's disk decides, whatever another finds on its own."""

from types import SimpleNamespace

import pytest
import torch

from alignment.command_line import UserError
from alignment.training import references
from alignment.training.batches import Sample
from alignment.training.references import References

ITEMS = [(Sample(row, [5, 6, 2], 1), Sample(row, [5, 2], 1)) for row in range(3)]
COMPUTED, TOLD = torch.full((3, 2), -1.0), torch.full((3, 2), -2.0)


@pytest.fixture
def rank(tmp_path, monkeypatch):
    """A second process, whose first has the file or has not; `own` says the same of its own disk."""

    def make(first_has: bool, own_has: bool):
        calls = []
        trainer = SimpleNamespace(
            train_dataset=SimpleNamespace(items=ITEMS),
            eval_dataset=None,
            references={},
            args=SimpleNamespace(device="cpu"),
            pair_logps=lambda name: calls.append(name) or COMPUTED,
        )
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setattr(references, "broadcast_object_list", lambda objects: [first_has])
        monkeypatch.setattr(references, "broadcast", lambda tensor: TOLD)
        made = References(trainer, tmp_path, "weights")
        if own_has:
            torch.save(torch.zeros(3, 2), made.paths["train"])
        return made, trainer, calls

    return make


@pytest.mark.parametrize("own_has", [False, True])
def test_the_first_process_has_them_and_tells(rank, own_has):
    made, trainer, calls = rank(True, own_has)
    made.on_train_begin(None, SimpleNamespace(global_step=3), None)
    assert calls == [] and torch.equal(trainer.references["train"], TOLD)


@pytest.mark.parametrize("own_has", [False, True])
def test_the_first_process_lacks_them_and_all_compute(rank, own_has, tmp_path):
    made, trainer, calls = rank(False, own_has)
    made.on_train_begin(None, SimpleNamespace(global_step=0), None)
    assert calls == ["train"] and torch.equal(trainer.references["train"], COMPUTED)
    assert len(list(tmp_path.iterdir())) == own_has  # it writes nothing itself
    with pytest.raises(UserError, match="cannot resume: .* is missing"):
        made.on_train_begin(None, SimpleNamespace(global_step=2), None)
