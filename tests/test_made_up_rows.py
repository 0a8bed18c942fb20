"""scripts/made_up_rows.py: every reader takes its file."""

from alignment.judging import read_judgments
from alignment.training.static_hhh import read_comparisons
from alignment.training_data import read_examples, usable
from scripts import made_up_rows


def make(folder, *more):
    made_up_rows.main(made_up_rows.parse_args([str(folder), *more]))
    return {path.stem: path for path in folder.iterdir()}


def test_every_reader_takes_its_file(tmp_path, capsys):
    """Seven rows, of which rows 0 and 5 are satisfactory."""
    made = make(tmp_path / "rows", "--num_rows", "7")
    assert "7 rows each" in capsys.readouterr().out
    for objective, name in (("sft", "sft"), ("reward", "pairs"), ("dpo", "pairs"), ("orpo", "pairs")):
        assert len(usable(read_examples(str(made[name]), objective))[0]) == 7
    hhh = read_comparisons(made["hhh"])
    assert [pair.chosen[-1] + pair.rejected[-1] for pair in hhh] == ["!?"] * 7
    judged = read_judgments(str(made["judged"]))
    assert [row for row, found in enumerate(judged) if found["judgment"] is None] == [0, 5]
    assert (hhh[3].prompt, hhh[3].chosen) == (
        f"\n\nHuman: {judged[3]['instruction']}\n\nAssistant:",
        judged[3]["output"],
    )


def test_seeded(tmp_path):
    first, same, other = (
        make(tmp_path / name, "--num_rows", "3", "--seed", seed) for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    for name, path in first.items():
        assert path.read_bytes() == same[name].read_bytes() != other[name].read_bytes()
