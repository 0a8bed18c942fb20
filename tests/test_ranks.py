"""What several processes do together, with torch.distributed played by the test."""

import shlex
from datetime import timedelta

import pytest
import torch.distributed as distributed
from torch.distributed.run import get_args_parser

import finetune_unlikelihood
import train
import train_rl
from alignment import command_line
from alignment.command_line import REPOSITORY, UserError
from alignment.training import ranks


@pytest.fixture
def several(monkeypatch):
    """One of two processes, by its rank. What it asks of torch.distributed is noted, and answered by `answers`."""
    asked, answers = [], {}
    ranks.patient_group.cache_clear()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "new_group", lambda **settings: asked.append(settings) or "group")

    def play(name):
        def call(*args):
            asked.append((name, args[-1]))
            return answers[name](*args) if name in answers else None

        monkeypatch.setattr(distributed, name, call)

    for name in ("barrier", "broadcast_object_list", "all_gather_object"):
        play(name)
    yield asked, answers
    ranks.patient_group.cache_clear()


def test_ranks_wait_for_the_first_longer_than_nccl_would(several, monkeypatch):
    """Over gloo, for a day, in one group; where another has ended meanwhile it has said why, and these say nothing."""
    asked, answers = several
    ranks.meet()
    ranks.meet()
    assert asked == [{"backend": "gloo", "timeout": timedelta(days=1)}, ("barrier", "group"), ("barrier", "group")]

    def closed(*_):
        raise RuntimeError("Connection closed by peer")

    answers["barrier"] = closed
    with pytest.raises(UserError, match="another process has ended"):
        ranks.meet()
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    ranks.meet()


def test_the_first_makes_it_for_all(several, monkeypatch):
    asked, answers = several
    monkeypatch.setenv("RANK", "0")
    assert ranks.from_first(lambda: "made") == "made"
    monkeypatch.setenv("RANK", "1")
    answers["broadcast_object_list"] = lambda found, *_: found.__setitem__(0, "told")
    assert ranks.from_first(lambda: pytest.fail("it is not the first")) == "told"
    assert asked.count(("broadcast_object_list", "group")) == 2


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("is_seen", [True, False])
def test_a_folder_that_a_node_does_not_see(several, tmp_path, monkeypatch, rank, is_seen):
    """Told by every process, as the first one prints it, with the host; and the first leaves nothing of it."""
    _, answers = several
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(ranks, "UNSEEN_FOR", 0.1)
    hosts = [(True, "n1"), (is_seen, "n2")]
    own = tmp_path / ("there" if rank == "1" and not is_seen else "here")
    answers["broadcast_object_list"] = lambda found, *_: found.__setitem__(
        0, found[0] or (tmp_path / "here" / ".x.seen")
    )
    mine = []

    def gather(found, value, _):
        mine.append(value[0])
        found[:] = hosts

    answers["all_gather_object"] = gather
    if rank == "1":
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / ".x.seen").touch()
    if is_seen:
        ranks.check_seen(own / "out")
    else:
        with pytest.raises(UserError, match=r"^process 1 on n2 does not see .* of n1; give an --output_dir"):
            ranks.check_seen(own / "out")
    assert mine == [hosts[int(rank)][0]]
    assert len(list((tmp_path / "here").iterdir())) == int(rank)  # the first takes its own away


def test_recipes_for_several_nodes_parse():
    """torchrun's own flags, and what is sent to Slurm, on the page that shows them."""
    page = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    lines = page.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith(("torchrun --nnodes", "sbatch "))]
    assert [command[0] for command in commands] == ["torchrun", "sbatch", "sbatch", "sbatch"]
    told = get_args_parser().parse_args(commands[0][1:])
    assert (told.nnodes, told.nproc_per_node, told.rdzv_backend, told.training_script) == ("2", "8", "c10d", "train.py")
    scripts = {"train.py": train, "train_rl.py": train_rl, "finetune_unlikelihood.py": finetune_unlikelihood}
    sent = [command[command.index("scripts/slurm_train.sh") + 1 :] for command in commands[1:]]
    for name, *words in [[told.training_script, *told.training_script_args], *sent]:
        assert str(scripts[name].parse_args(words).output_dir).startswith("outputs/")
    assert {words[0] for words in sent} == set(scripts)


@pytest.mark.parametrize(
    ("rank", "local", "said"), [("0", "0", "a: error: b"), ("8", "0", "process 8 on "), ("9", "1", "")]
)
def test_a_fault_of_one_node_alone_is_said(monkeypatch, capsys, rank, local, said):
    """By the first of all, or after it had time to by the first of another node: a model may be missing there alone."""
    waited = []
    monkeypatch.setattr(command_line.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local)
    with pytest.raises(SystemExit) as exit:
        command_line.refuse("a: error: b")
    printed = capsys.readouterr().err
    assert exit.value.code == 2 and printed.startswith(said) and printed.endswith("a: error: b\n" if said else "")
    assert bool(waited) == (rank != "0") and (said or not printed)
