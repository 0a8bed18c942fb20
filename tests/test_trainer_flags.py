"""Flags of TrainingArguments that train.py takes without spelling them out: those that cannot work are one line, before
anything is loaded or written."""

import json

import pytest

import train
from alignment.command_line import run


@pytest.fixture
def place(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Say {number}.", "input": "", "output": f"{number}."} for number in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


BASE = "--model_name_or_path tiny --data_path rows.json --output_dir out".split()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--push_to_hub", "argument --push_to_hub: the model is in --output_dir at the end"),
        ("--save_on_each_node True", "argument --save_on_each_node: the first process writes"),
        ("--use_liger_kernel True", "argument --use_liger_kernel: its forward pass"),
        ("--accelerator_config junk", "argument --accelerator_config: 'junk' is no JSON object, nor a file"),
        ('--accelerator_config {"junk":1}', "unexpected keyword argument 'junk'"),
        ("--fsdp_config junk", "argument --fsdp_config: 'junk' is no JSON object"),
        ("--fsdp_config [1]", "argument --fsdp_config: '[1]' is no JSON object"),
        ("--gradient_checkpointing_kwargs 1", "argument --gradient_checkpointing_kwargs: '1' is no JSON object"),
        ("--lr_scheduler_kwargs junk", "argument --lr_scheduler_kwargs: 'junk' is no JSON object"),
        ('--lr_scheduler_kwargs {"junk":1}', "--lr_scheduler_type cosine --lr_scheduler_kwargs {'junk': 1}: "),
        ("--lr_scheduler_type junk", "junk is not a valid SchedulerType"),
        ("--torch_compile_backend junk", "argument --torch_compile_backend: a compiled model cannot be saved here"),
        ("--torch_compile", "argument --torch_compile: a compiled model cannot be saved here"),
        ("--deepspeed absent.json", "argument --deepspeed: --fsdp is what shards here"),
        ("--report_to wandb", "--report_to wandb: transformers knows no such report, or it is not installed"),
        ("--optim junk", "junk is not a valid OptimizerNames"),
        ("--optim galore_adamw", "--optim galore_adamw: "),
        ("--optim adamw_torch_8bit", "--optim adamw_torch_8bit: "),
        ("--optim lomo", "--optim lomo: "),
        ("--optim_args junk", "--optim adamw_torch --optim_args junk: "),
        ("--adam_beta1 -1", "--optim adamw_torch: Invalid beta parameter"),
        ("--adam_beta1 nan", "argument --adam_beta1: nan is no finite number"),
        ("--adam_epsilon x", "argument --adam_epsilon/--adam-epsilon: invalid float value: 'x'"),
        ("--label_smoothing_factor 0.1", "argument --label_smoothing_factor: the papers' losses have none"),
        ("--auto_find_batch_size", "argument --auto_find_batch_size: a batch is what"),
        ("--neftune_noise_alpha -1", "--neftune_noise_alpha -1.0 is less than 0"),
        ("--eval_on_start", "--eval_on_start needs --eval_strategy and --eval_data_path"),
        ("--bf16 --fp16", "transformers refuses the arguments"),
        ("--resume_from_checkpoint junk", "--resume_from_checkpoint junk is no checkpoint"),
        ("--hub_strategy junk", "argument --hub_strategy/--hub-strategy: "),
        ("--load_best_model", "unknown argument --load_best_model; did you mean '--load_best_model_at_end'?"),
        ("--data_seed 1e3", "argument --data_seed/--data-seed: invalid int value: '1e3'"),
    ],
)
def test_what_cannot_work_is_one_line(place, words, said, capsys):
    before = sorted(place.rglob("*"))
    with pytest.raises(SystemExit) as exit:
        run(lambda: train.parse_args(BASE + words.split()), train.main)
    output = capsys.readouterr()
    assert exit.value.code == 2 and said in output.err and output.err.count("\n") == 1
    assert output.out == "" and sorted(place.rglob("*")) == before


def test_what_works_is_taken(place):
    """A mapping from a file, an optimiser's own arguments, a scheduler that needs its own."""
    (place / "config.json").write_text('{"split_batches": true}')
    words = "--accelerator_config config.json --optim adamw_torch --optim_args fused=False --max_grad_norm 0"
    words += ' --lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {"min_lr":0.1} --neftune_noise_alpha 5'
    found = train.training_arguments(train.parse_args([*BASE, *words.split(), "--push_to_hub", "False"]))
    assert found.accelerator_config.split_batches and found.lr_scheduler_kwargs == {"min_lr": 0.1}
