"""scripts/data_card.py: what a folder of data says of itself."""

import json

import pytest

import synthetic_feedback
from alignment.command_line import REPOSITORY, UserError
from scripts import data_card

SIMULATED = ["--backend", "simulated", "--model_name_or_path"]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "almost"
    shown = str(REPOSITORY / "assets" / "HHH_prompt.txt")
    made.mkdir()
    (made / "prompts.txt").write_text("How do I mend a kettle?\nWhy do ferries float?\n")
    for writer in ("better?quality=1", "worse?quality=0.2"):
        words = ["--mode", "rg", *SIMULATED, writer, "--prompt_file_path", shown, "--n_shot", "1"]
        synthetic_feedback.main(synthetic_feedback.parse_args([*words, "--output_dir", str(made)]))
    words = ["--mode", "cs", "--rubric", "better-HHH-1shot", "worse-HHH-1shot", "--output_dir", str(made)]
    synthetic_feedback.main(synthetic_feedback.parse_args(words))
    return made


def go(folder):
    data_card.main(data_card.parse_args([str(folder)]))
    return (folder / "README.md").read_text()


def test_a_folder_tells_what_its_files_hold_and_what_made_them(folder):
    text = go(folder)
    rows = json.loads((folder / "comparison.json").read_text())
    assert f"| `comparison.json` | {len(rows)} rows of prompt, chosen, rejected, meta |" in text
    assert "python synthetic_feedback.py --mode cs" in text and "--rubric better-HHH-1shot worse-HHH-1shot" in text
    assert "- from HHH_prompt.txt (sha256 " in text and str(folder.parent) not in text
    assert go(folder) == text


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("README.md", "# Mine\n", "is somebody else's"),
        ("comparison.json", "[]\n", "was changed since its run card was written"),
    ],
)
def test_nothing_is_said_of_what_is_not_as_it_was_made(folder, name, content, said):
    (folder / name).write_text(content)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=said):
        go(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_a_card_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no file with a run card"):
        go(tmp_path)
