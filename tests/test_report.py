"""report_blame.py: the page's data, its escaping, and what it refuses. Looked at in a browser by hand."""

import json
import re

import pytest
from conftest import make_tokenizer

from alignment.command_line import UserError
from scripts import report_blame

HOSTILE = "</script><img src=x onerror=alert(1)>"
ROWS = [
    {
        "id": 3,
        "instruction": "Say <b>hi</b>.",
        "input": "",
        "output": f"It is déjà vu. {HOSTILE}",
        "judgment": f'It says "déjà vu", and {HOSTILE}.',
    },
    {"id": 4, "instruction": "Say hi.", "input": "", "output": "Hi.", "judgment": None},
]


def report(tmp_path, model_folder, rows, *more):
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    output = tmp_path / "out.html"
    words = ["--base_model", model_folder, "--data_path", tmp_path / "rows.json", "--output_file", output, *more]
    report_blame.main(report_blame.parse_args([str(word) for word in words]))
    html = output.read_text()
    return html, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1])


def test_page_holds_the_flawed_rows_and_no_markup_of_theirs(tmp_path, model_folder):
    html, data = report(tmp_path, model_folder, ROWS)
    assert [row["row"] for row in data["rows"]] == [3] and data["threshold"] == 1.1
    row = data["rows"][0]
    assert "".join(row["tokens"]) == ROWS[0]["output"] + "</s>"
    assert len(row["tokens"]) == len(row["margins"]) == len(row["plain"]) == len(row["quoted"])
    assert "".join(piece for piece, hit in zip(row["tokens"], row["quoted"], strict=True) if hit) == "déjà vu"
    assert [piece for piece, found in row["judgment"] if found] == ["déjà vu"]
    assert "<img" not in html and html.count("</script>") == 2
    assert "innerHTML =" not in html and "http://" not in html.replace("http://www.w3.org/2000/svg", "")


def test_calibrated_threshold_blames_the_share(tmp_path, model_folder, llama, capsys):
    llama.lm_head.weight.data.mul_(40)
    llama.save_pretrained(model_folder)
    _, data = report(tmp_path, model_folder, ROWS, "--calibrate_threshold", 0.2)
    margins = data["rows"][0]["margins"]
    import math

    blamed = sum(margin > math.log(data["threshold"]) for margin in margins)
    assert blamed / len(margins) == pytest.approx(0.2, abs=1.5 / len(margins))
    assert f"--threshold {data['threshold']:.6g}" in capsys.readouterr().out


def test_pieces_of_characters_in_several_tokens():
    """é is two bytes and 漢 three: the last token brings the character, and nothing is lost."""
    tokenizer = make_tokenizer()
    text = "aé漢b"
    pieces = report_blame.pieces_of(tokenizer, tokenizer(text)["input_ids"])
    assert pieces == ["a", "", "é", "", "", "漢", "b"]


def test_touched():
    """Characters 1 and 2: the end of ab, the beginning of cd, and the empty piece between, which is a byte of c."""
    assert report_blame.touched(["ab", "", "cd", "e"], [(1, 3)]) == [True, True, True, False]


def test_nothing_to_report(tmp_path, model_folder):
    with pytest.raises(UserError, match="every judgment is null"):
        report(tmp_path, model_folder, ROWS[1:])
    assert not (tmp_path / "out.html").exists()


def test_a_model_that_gives_no_numbers(tmp_path, model_folder, llama):
    llama.lm_head.weight.data.fill_(float("nan"))
    llama.save_pretrained(model_folder)
    with pytest.raises(UserError, match="one of its numbers is NaN"):
        report(tmp_path, model_folder, ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.json", "tiny"]


def test_a_second_run_finds_its_page_and_another_threshold_makes_another(tmp_path, model_folder, capsys):
    report(tmp_path, model_folder, ROWS)
    capsys.readouterr()
    report(tmp_path, model_folder, ROWS)
    assert "already made of this, finished; nothing to do" in capsys.readouterr().out
    assert report(tmp_path, model_folder, ROWS, "--threshold", 1.5)[1]["threshold"] == 1.5


def test_adapter_of_another_base(tmp_path, model_folder):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')
    with pytest.raises(UserError, match="was trained on org/other"):
        report(tmp_path, model_folder, ROWS, "--peft_model_path", tmp_path / "adapter")
    assert not (tmp_path / "out.html").exists()
