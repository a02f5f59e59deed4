"""The report of a run: complete, self-contained, and safe against whatever the folder holds."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxrl_gen import report, runs

MEMBERS, CHUNKS = 3, 12


def fill(folder, **result):
    """A run folder as a run leaves it, with returns that are known: member m returns 10 m + chunk."""
    folder.mkdir()
    rows = [
        {
            "chunk": i,
            "steps": 100 * (i + 1),
            "episode/return": [None if i == 0 else 10.0 * m + i for m in range(MEMBERS)],
            "actor/kl": [0.5] * MEMBERS,
            "time/seconds": 0.1 * i,
        }
        for i in range(CHUNKS)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps({"seeds": MEMBERS, "algo": {"lr": [1e-4, 3e-4], "gamma": 0.99}}))
    (folder / "versions.json").write_text(json.dumps({"jax": "0.10.2"}))
    (folder / "result.json").write_text(json.dumps(result))
    return folder


class Reader(HTMLParser):
    """What a browser would make of the page: its text, its tags, and everything that it would load or link to."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.loads, self.links = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            if name in {"src", "poster", "srcset", "data", "action"}:
                self.loads.append(value)
            if name in {"href", "xlink:href"}:
                self.links.append(value)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(folder):
    return Reader(report.write(folder).read_text(encoding="utf-8"))


def test_a_whole_run(tmp_path):
    folder = fill(tmp_path / "a-run")
    (folder / "video.mp4").write_bytes(b"not really a video")
    (folder / "policy.npz").write_bytes(b"weights")
    seen = page(folder)
    assert {"svg", "video", "table", "h1"} <= seen.tags and "script" not in seen.tags
    assert all(value.startswith("data:") for value in seen.loads) and len(seen.loads) == 1
    assert {"policy.npz", "metrics.jsonl", "config.json"} <= set(seen.links)
    for piece in ("algo.gamma 0.99", "algo.lr 0.0001, 0.0003", "jax 0.10.2", "actor/kl 0.5", "a-run"):
        assert piece in seen.text, piece
    # Members end at 11, 21 and 31; the interquartile mean of three numbers drops none.
    assert "last return 21 " in seen.text
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_loaded_from_anywhere(tmp_path):
    text = report.write(fill(tmp_path / "run")).read_text(encoding="utf-8")
    assert "Content-Security-Policy" in text and "default-src 'none'" in text
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"' <>]+", text)) <= namespaces
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_an_empty_folder_still_has_a_report_that_says_what_is_missing(tmp_path):
    seen = page(tmp_path)
    for name in ("config.json", "versions.json", "result.json", "metrics.jsonl"):
        assert f"{name} is missing" in seen.text
    assert "No video in this folder" in seen.text and "svg" not in seen.tags
    with pytest.raises(ValueError, match="records no episode/return"):
        report.curve(tmp_path)


def test_damaged_files_are_named_and_left_out(tmp_path):
    folder = fill(tmp_path / "run")
    (folder / "config.json").write_text("{")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"chunk": 12, "episode/ret')  # as kill -9 leaves it
    (folder / "versions.json").write_bytes(b"\xff\xfe\x00")
    seen = page(folder)
    assert "config.json cannot be read" in seen.text and "versions.json cannot be read" in seen.text
    assert "metrics.jsonl: 1 damaged line left out" in seen.text and "last return 21 " in seen.text


@pytest.mark.parametrize(
    "value", [None, 3, "text", [1, "two"], {"a": [None]}, {"iqm": "x", "runs": {}}, [{"score": "high"}] * MEMBERS]
)
def test_a_result_of_another_shape_is_no_error(tmp_path, value):
    names = ("score", "members", "best", "seconds", "peak_bytes", "traces", "command", "notes", "also", "decision_ms")
    seen = page(fill(tmp_path / "run", **dict.fromkeys(names, value)))
    assert "environment steps" in seen.text and "svg" in seen.tags


def test_what_evaluation_found_comes_first(tmp_path):
    score = {"what": "mean return of 8 episodes", "runs": 3, "iqm": 77.5, "low": 70.25, "high": 80.5}
    members = [{"algo.lr": lr, "seed": 5, "score": 70.0 + i, "worst": 1.5} for i, lr in enumerate([1e-4, 3e-4, 1e-3])]
    seen = page(fill(tmp_path / "run", score=score, members=members, best=2, seconds={"total": 12.0}))
    assert "score 77.5 mean return of 8 episodes, IQM of 3 members, 95 % interval 70.25 to 80.5" in seen.text
    assert "algo.lr seed last best evaluated worst" in seen.text
    assert "0.001 5 31 31 72 1.5" in seen.text  # member 2: what it is, training, evaluation
    assert "12 from start to report" in seen.text
    assert "algo.lr 0.0003" in seen.text  # a line of its own for every setting, named in the legend


def test_how_it_was_evaluated_and_what_other_policies_did(tmp_path):
    ddim = {"score": {"runs": 3, "iqm": 0.75, "low": 0.5, "high": 1.0}, "decision_ms": 0.25}
    members = [{"seed": i, "score": 1.0, "worst": 0.0} for i in range(MEMBERS)]
    folder = fill(tmp_path / "run", members=members, also={"ddim": ddim}, decision_ms=2.5)
    assert "evaluated with the deterministic policy, and its worst episode" in page(folder).text
    (folder / "config.json").write_text(json.dumps({"static": {"seeds": 3}, "options": {"eval_sample": True}}))
    seen = page(folder)
    assert "evaluated with actions drawn as in training, and its worst episode" in seen.text
    assert "ddim 0.75 (IQM of 3 members, 95 % interval 0.5 to 1), 0.25 ms a decision" in seen.text
    assert "decision of one lane, milliseconds 2.5" in seen.text


def test_a_folder_that_is_not_there(tmp_path):
    for function in (report.write, report.curve, runs.read):
        with pytest.raises(FileNotFoundError, match="is not a run folder"):
            function(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "</svg><b>"]
)
def test_names_and_values_are_escaped(tmp_path, evil):
    folder = fill(tmp_path / "run", name=evil, notes=[evil], **{evil: evil})
    (folder / "config.json").write_text(json.dumps({evil: evil}))
    (folder / "versions.json").write_text(json.dumps({evil: [evil]}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"chunk": CHUNKS, "steps": 2000, evil: [1.0] * MEMBERS}) + "\n")
    (folder / evil.replace("/", "∕")).write_text("a file with such a name")
    seen = page(folder)
    assert not {"script", "img"} & seen.tags and seen.loads == []
    assert evil in seen.text  # as text, not as a tag or a template
    assert not any("onerror" in link for link in seen.links if not link.startswith("%"))


def test_no_path_leads_out_of_the_folder(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    folder = fill(tmp_path / "run")
    (folder / "video.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "policy").symlink_to(tmp_path, target_is_directory=True)
    seen = page(folder)
    assert "No video in this folder" in seen.text and "secret" not in seen.text
    assert not any(link.startswith(("..", "/", "policy")) for link in seen.links)
    for name in ("../secret.mp4", str(tmp_path / "secret.mp4"), "a/../../secret.mp4", "video.mp4", "\0"):
        assert runs.inside(folder, name) is None
    assert runs.inside(folder, "config.json") == (folder / "config.json").resolve()


def test_a_chunk_run_twice_counts_once_and_the_later_row_wins(tmp_path):
    folder = fill(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"chunk": 5, "steps": 600, "episode/return": [-1.0, -2.0, -3.0]}) + "\n")
    steps, values = runs.series(runs.read(folder), "episode/return")
    assert steps.tolist() == [100.0 * (i + 1) for i in range(CHUNKS)]
    assert values.shape == (CHUNKS, MEMBERS) and values[5].tolist() == [-1.0, -2.0, -3.0]
    assert np.isnan(values[0]).all()  # no episode ended in the first chunk
    assert runs.series(runs.read(folder), "no/such") == ()


def test_the_mean_over_members_and_its_interval():
    values = np.array([[1.0, 2.0, 6.0], [np.nan, 5.0, 5.0], [np.nan, np.nan, 4.0], [np.nan] * 3])
    mean, low, high = runs.over_members(values)
    np.testing.assert_allclose(mean, [3.0, 5.0, 4.0, np.nan])
    assert 1.0 <= low[0] < 3.0 < high[0] <= 6.0
    np.testing.assert_allclose([low[1], high[1]], [5.0, 5.0])
    assert np.isnan([low[2], high[2], low[3], high[3]]).all()


def test_a_single_seed_and_a_run_of_one_chunk(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"chunk": 0, "steps": 64, "episode/return": 3.5}\n')
    seen = page(tmp_path)
    assert "last return 3.5" in seen.text and "svg" in seen.tags


def test_the_spark_line_leaves_gaps_where_nothing_is_known():
    assert report.spark(np.array([np.nan, np.nan])) == ""
    path = report.spark(np.array([0.0, 1.0, np.nan, 1.0]))
    assert path.count("M") == 2 and path.count("L") == 1
    assert re.fullmatch(r"[ML0-9. -]+", path)


WRITTEN = {
    "–": [None, float("nan")],
    "inf": [float("inf")],
    "0": [0.0, 0],
    "1\u2009234\u2009567": [1234567],
    "98\u2009765": [98765.4],
    "0.1234": [0.12344],
    "0.0003": [3e-4],
    "-2.5": [-2.5],
    "True": [True],
    "text": ["text"],
}


@pytest.mark.parametrize(("text", "x"), [(text, x) for text, numbers in WRITTEN.items() for x in numbers])
def test_numbers_as_people_write_them(text, x):
    assert report.number(x) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB")])
def test_sizes_as_people_write_them(count, text):
    assert report.size(count) == text


def test_the_configuration_by_what_a_change_of_it_means(tmp_path):
    folder = fill(tmp_path / "run")
    floats = {"algo.lr": 0.25, "algo.gamma": 0.5, "config.lr": 0.125, "config.gamma": 0.5}
    config = {"static": {"seeds": 3}, "floats": floats, "options": {"keep": 7}}
    (folder / "config.json").write_text(json.dumps(config))
    text = page(folder).text
    assert "shapes the program seeds 3" in text and "how it was run keep 7" in text
    assert "algo.lr 0.25 algo.gamma 0.5 config.lr 0.125" in text and "config.gamma" not in text
