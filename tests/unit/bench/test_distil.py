from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from fakes.embedder import WordEmbedder
from nightfill.bench.distil import distil_json, measure
from nightfill.bench.qa import Document, QaFile
from nightfill.cli.root import root

if TYPE_CHECKING:
    from pathlib import Path

THINGS = (
    "liver", "kidney", "heart", "lung", "stomach", "brain", "muscle", "nerve", "artery", "bone", "skin", "retina",
    "spleen", "tendon", "thyroid",
)  # fmt: skip
FACTS = [f"{thing} drugs were found to reduce mortality by {n}%." for n, thing in enumerate(THINGS, 10)]
FILLER = [f"Some other words stand here in line {n} and nothing at all comes of them." for n in range(100)]


def article() -> Document:
    """Facts among filler; each is asked for."""
    sentences = list(FILLER)
    for place, fact in enumerate(FACTS):
        sentences.insert(7 * place, fact)
    text = " ".join(sentences)
    return Document(text, tuple(((text.index(fact), text.index(fact) + len(fact) - 1),) for fact in FACTS))


def test_what_is_asked_for_is_kept_more_often_than_by_chance() -> None:
    document = article()
    file = QaFile(format="answers", documents=(document, document))
    seen: list[int] = []
    (found,) = measure(file, [6.0], WordEmbedder().embed, seeds=5, progress=seen.append)
    assert seen == [1, 2]
    assert found.ours.spans > 1.5 * found.random.spans
    assert found.random.spans == pytest.approx(1 / 6, abs=0.1)
    assert found.first.spans == pytest.approx(1 / 6, abs=0.1)
    assert found.ratio_to_random == pytest.approx(found.ours.spans / found.random.spans)
    assert found.interval[0] <= found.ratio_to_random <= found.interval[1]
    assert 0 < found.bytes_kept <= 1 / 6


def test_an_answer_is_kept_whole_or_lost() -> None:
    text = "One fact was found here. " + " ".join(FILLER)
    beyond = Document(text, (((0, len(text)),),))
    (found,) = measure(QaFile(format="answers", documents=(beyond,)), [4.0], WordEmbedder().embed, seeds=2)
    assert found.ours.spans == 0
    assert found.ours.text > 0.1


def test_a_turn_is_kept_when_half_of_it_is_and_peoples_words_are_counted() -> None:
    turns = [f"{who}: Yeah okay ." for who in ("Ann", "Bob") * 30]
    turns[8] = "Ann: The remote control should have rubber buttons ."
    turns[40] = "Bob: I think the remote control should have rubber buttons too ."
    text = "\n".join(turns)
    start = text.index(turns[8])
    document = Document(text, (((start, start + len(turns[8])),),), ("They want rubber buttons and a castle.",))

    def never(_: object) -> Any:
        raise AssertionError("transcripts need no vectors")

    (found,) = measure(QaFile(format="evidence", documents=(document,)), [4.0], never, seeds=3)
    assert found.ours.spans == 1
    assert found.ours.words == 1, "of the words that the text has"
    assert found.method == "extractive"


def test_json_has_the_keys_that_results_are_compared_by() -> None:
    (found,) = measure(QaFile(format="answers", documents=(article(),)), [8.0], WordEmbedder().embed, seeds=2)
    shown = distil_json(found)
    assert {"ratio", "method", "kept", "random_kept", "first_kept", "ratio_to_random"} <= shown.keys()
    assert json.loads(json.dumps(shown)) == shown
    assert shown["ratio"] == 8


def test_the_command_reads_a_file_measures_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nightfill.answers.embed.load_embedder", lambda _folder: WordEmbedder())
    document = article()
    questions = [
        {"q": "?", "a": [document.text[low:high]], "answer_start": [low]} for ((low, high),) in document.needed
    ]
    file, chart = tmp_path / "qa.jsonl", tmp_path / "chart.png"
    file.write_text(json.dumps({"document": document.text, "questions": questions}), encoding="utf-8")
    common = ["--data-dir", str(tmp_path), "bench", "distil", str(file), "--seeds", "2", "--ratio", "6"]
    table = CliRunner().invoke(root, [*common, "--chart", str(chart)], catch_exceptions=False)
    assert table.exit_code == 0, table.output
    assert "answers kept: 1 documents, 15 questions" in table.output
    assert chart.read_bytes().startswith(b"\x89PNG")
    shown = CliRunner().invoke(root, [*common, "--json"], catch_exceptions=False)
    (row,) = json.loads(shown.stdout)["retention"]
    assert row["kept"] > row["random_kept"]
    refused = CliRunner().invoke(root, [*common[:4], str(tmp_path / "none")])
    assert refused.exit_code == 2
