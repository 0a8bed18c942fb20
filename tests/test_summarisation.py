"""ROUGE by hand, where the package rouge_score gives the same; how rows find their references; and what is refused."""

import json

import pytest

from alignment.command_line import UserError
from eval import summarisation
from eval.summarisation import rouge


def test_rouge_by_hand():
    """Five words of ours, six of the reference: "the", "cat", "on" and one "mat" are in both, 4/5, 4/6, 8/11. Of the
    bigrams "the cat" alone, 1/4 and 1/5. The longest common subsequence is "the cat on mat"."""
    found = rouge("The cat, on mat mat.", "the CAT sat on the mat")
    assert found["rouge1"] == pytest.approx([4 / 5, 4 / 6, 8 / 11])
    assert found["rouge2"] == pytest.approx([1 / 4, 1 / 5, 2 / 9])
    assert found["rougeL"] == found["rougeLsum"] == pytest.approx([4 / 5, 4 / 6, 8 / 11])


def test_lines_are_sentences_of_lsum_alone():
    """The lines in the other order: as one text only two of four words are in order, line by line all. Of "w1 ... w5"
    against "w1 w2 f g h" and "w1 w3 h w5 i" (Lin 2004) the union holds w1 w2 w3 w5, 4 of 5."""
    found = rouge("c d\na b", "a b\nc d")
    assert found["rougeL"] == [0.5, 0.5, 0.5] and found["rougeLsum"] == [1, 1, 1]
    assert rouge("w1 w2 f g h\nw1 w3 h w5 i", "w1 w2 w3 w4 w5")["rougeLsum"][1] == pytest.approx(4 / 5)


def test_a_word_is_counted_no_oftener_than_both_have_it():
    """One "a" of ours is in the subsequences of both lines of the reference, and hits once: 1/1 and 1/2."""
    assert rouge("a", "a\na")["rougeLsum"] == pytest.approx([1, 1 / 2, 2 / 3])


def test_of_subsequences_that_are_as_long_the_packages_is_taken():
    """Of "b a" and "a b" both words are a longest common subsequence; the walk back finds "a", which the second line
    has too: one hit of three and of two words."""
    assert rouge("b a\na", "a b")["rougeLsum"] == pytest.approx([1 / 3, 1 / 2, 2 / 5])


@pytest.mark.parametrize("summary", ["", "...", "é"])
def test_a_summary_without_words_scores_nothing(summary):
    assert set(map(tuple, rouge(summary, "a b").values())) == {(0, 0, 0)}


def of_rows(tmp_path, summaries, references, *more):
    for name, rows in (("ours.json", summaries), ("refs.json", references)):
        (tmp_path / name).write_text(json.dumps(rows))
    words = ["--data_path", "ours.json", "--reference_path", "refs.json", "--output_file", "out/rouge.json"]
    words = [str(tmp_path / word) if word.endswith(".json") else word for word in words]
    summarisation.main(summarisation.parse_args([*words, *more]))
    return json.loads((tmp_path / "out" / "rouge.json").read_text())


def test_rows_find_their_references(tmp_path, capsys):
    """By instruction and input, in any order; the mean of F1 8/11 and 0 is 36.36%; what did not come is left out."""
    asked = [{"instruction": "Sum up.", "input": text} for text in ("long", "longer", "none")]
    references = [asked[1] | {"summary": "x y"}, asked[2] | {"summary": "z"}]
    references.append(asked[0] | {"summary": "the cat sat on the mat"})
    ours = [asked[0] | {"output": "The cat, on mat mat."}, asked[1] | {"output": ""}]
    ours.append(asked[2] | {"output": None})
    found = of_rows(tmp_path, ours, references, "--reference_key", "summary")
    assert found["results"]["rouge1"]["f1"] == pytest.approx(4 / 11) and found["items"][1] is None
    shown = capsys.readouterr().out
    assert "ROUGE-1" in shown and "36.36 [0.00, 72.73]" in shown and "2 summaries, 1 empty, 1 none came" in shown
    assert of_rows(tmp_path, ours, references, "--reference_key", "summary") == found
    assert "nothing to do" in capsys.readouterr().out


ONE = {"instruction": "Sum up.", "output": "a"}
OTHER = {"instruction": "Tell.", "output": "b"}


@pytest.mark.parametrize(
    "ours, references, told",
    [
        ([OTHER], [ONE], "do not match: 1 of the 1 questions have no answer .*; 1 of its rows belong to none"),
        ([ONE], [ONE, OTHER], "1 of the 2 questions have no answer"),
        ([ONE, ONE], [ONE], "1 of its rows belong to one that has another"),
        ([ONE], [ONE, ONE], "rows 0 and 1 have the same id, or ask the same"),
        ([ONE | {"output": 3}], [ONE], "row 0 has no text under 'output'"),
        ([ONE | {"output": None}], [ONE], "none of 1 came"),
        ([ONE], [ONE | {"output": "!"}], "row 0: output is no text with a word in it"),
        ([ONE], [{"instruction": "x", "outputs": "b"}], "no 'output'; did you mean 'outputs'"),
    ],
)
def test_rows_that_do_not_match(tmp_path, ours, references, told):
    with pytest.raises(UserError, match=told):
        of_rows(tmp_path, ours, references)
    assert not (tmp_path / "out").exists()
