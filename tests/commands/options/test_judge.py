import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from rewarden import cli
from rewarden.cli import main
from rewarden.commands.options.judge import JudgeOptions, judge_report
from rewarden.commands.options.scoring import ScoringOptions
from rewarden.commands.score import Score, score
from rewarden.files import write_rows
from rewarden.hf.scoring.judges import GenerativeVerifier, PairwiseJudge, PointwiseJudge
from rewarden.hf.scoring.local_chat import LocalChat
from rewarden.judging.endpoint import ChatEndpoint
from rewarden.judging.templates import DEFAULTS

URL = "http://localhost:1/v1"


@pytest.mark.parametrize(
    ("kind", "judge"), [("verifier", GenerativeVerifier), ("pointwise", PointwiseJudge), ("pairwise", PairwiseJudge)]
)
def test_a_local_model(tiny, kind, judge):
    scorer = JudgeOptions(judge=str(tiny), judge_kind=kind).judge_scorer(
        ScoringOptions(layout="padded", batch_tokens=77)
    )
    assert type(scorer) is judge
    assert scorer.template == DEFAULTS[kind]
    assert isinstance(scorer.answerer, LocalChat)
    assert (scorer.answerer.model.layout, scorer.answerer.batch_tokens) == ("padded", 77)
    assert len(scorer(["hi"], [["ho", "hm"]])[0]) == 2


def test_an_endpoint(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    scorer = JudgeOptions(
        judge=URL, judge_model="m", api_key_env="MY_KEY", judge_extra='{"seed": 1}', judge_workers=3
    ).judge_scorer(ScoringOptions())
    assert scorer.answerer == ChatEndpoint(URL, "m", api_key_env="MY_KEY", workers=3, extra={"seed": 1})
    assert "secret" not in repr(scorer) + json.dumps(scorer.record)
    assert (
        JudgeOptions(judge=URL, judge_model="m").judge_scorer(ScoringOptions()).answerer.api_key_env == "OPENAI_API_KEY"
    )
    assert (
        JudgeOptions(judge=URL, judge_model="m", api_key_env="").judge_scorer(ScoringOptions()).answerer.api_key_env
        == ""
    )


def test_wording_and_reading_of_one_s_own(tmp_path):
    path = tmp_path / "template.toml"
    path.write_text('user = "{prompt}{completion}"\n')
    options = JudgeOptions(judge=URL, judge_model="m", template=path, judge_reading="log_yes")
    scorer = options.judge_scorer(ScoringOptions())
    assert (scorer.template.user, scorer.reading) == ("{prompt}{completion}", "log_yes")
    assert JudgeOptions(judge=URL, judge_model="m").judge_scorer(ScoringOptions()).reading == "log_odds"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge_kind": "pairwise"}, "got --judge-kind without --judge"),
        ({"template": "t.toml"}, "got --template without --judge"),
        ({"api_key_env": ""}, "got --api-key-env without --judge"),
        ({"judge": "folder", "judge_model": "m"}, "got --judge-model with the local model folder"),
        ({"judge": "folder", "judge_workers": 2}, "got --judge-workers with the local model"),
        ({"judge": URL}, "without --judge-model"),
        (
            {"judge": URL, "judge_model": "m", "judge_kind": "pairwise", "judge_reading": "log_yes"},
            "--judge-reading belongs",
        ),
        ({"judge": URL, "judge_model": "m", "api_key_env": "NOT_SET_AT_ALL"}, "--api-key-env NOT_SET_AT_ALL"),
        ({"judge": URL, "judge_model": "m", "judge_extra": "{"}, "--judge-extra is no JSON"),
        ({"judge": URL, "judge_model": "m", "judge_extra": "[1]"}, r"--judge-extra is \[1\]"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        JudgeOptions(**options).check_judge()


def test_options_that_fit_pass():
    JudgeOptions().check_judge()
    JudgeOptions(judge="folder", judge_kind="pairwise").check_judge()
    JudgeOptions(judge=URL, judge_model="m", judge_kind="pointwise").check_judge()
    with pytest.raises(ValueError, match="got no --judge"):
        JudgeOptions().judge_scorer(ScoringOptions())


@pytest.mark.parametrize(
    ("judge", "unused"),
    [
        ("folder", {"shaping": "worst"}),
        ("folder", {"raw": True}),
        (URL, {"standardise": True}),
        (URL, {"layout": "tree"}),
        (URL, {"batch_tokens": 9}),
    ],
)
def test_options_of_trained_models_are_refused(judge, unused):
    options = JudgeOptions(judge=judge, judge_model="m" if judge == URL else None)
    name = next(iter(unused)).replace("_", "-")
    with pytest.raises(ValueError, match=f"got --{name} with --judge {judge}"):
        options.judge_scorer(ScoringOptions(**unused))


def test_from_the_options_to_scores_over_http(monkeypatch):
    """The judge prefers what has more letters, whatever the order."""
    monkeypatch.setenv("no_proxy", "*")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            first, second = (text.split(f"[Answer {k}]\n")[1].split("\n[End")[0] for k in "AB")
            said = "A" if len(first) > len(second) else "B" if len(first) < len(second) else "Tie"
            content = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        scorer = JudgeOptions(judge=url, judge_model="m", judge_kind="pairwise", api_key_env="").judge_scorer(
            ScoringOptions()
        )
        found = scorer(["q", "r"], [["xx", "x", "xxx"], ["same", "size"]])
        server.shutdown()
        thread.join()
    assert [[score.reward for score in group] for group in found] == [[2, 1, 3], [1.5, 1.5]]
    assert judge_report(scorer)["questions"] == 8
    assert judge_report(scorer) == scorer.tally.report()


# --- In the command -----------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completions": ["a", "b b", "a"]}) + "\n" for p in ("hi", "ho")))
    return path


@pytest.mark.parametrize(("kind", "questions"), [("verifier", 4), ("pointwise", 4), ("pairwise", 4)])
def test_a_judge_scores_a_file(tiny, rows, tmp_path, capsys, kind, questions):
    output = tmp_path / "out.jsonl"
    words = ["--judge", str(tiny), "--judge-kind", kind, "--input", str(rows), "--output", str(output), "--json"]
    assert cli.main(["score", *words]) == 0
    assert json.loads(capsys.readouterr().out)["judge"]["questions"] == questions
    for line in output.read_text().splitlines():
        first, second, third = json.loads(line)["rewards"]
        assert first == third
        assert kind != "pairwise" or first + second + third == 6


def test_a_judge_stands_alone(tiny, rows, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "rewarden"}')
    for more in ({"model": tmp_path / "model"}, {"endogenous": str(tiny)}):
        args = Score(input=rows, output=tmp_path / "o.jsonl", judge=str(tiny), **more)
        with pytest.raises(ValueError, match="got --judge beside"):
            score(args)


def test_options_of_a_judge_without_one_are_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="without --judge"):
        score(Score(input=rows, output=tmp_path / "o.jsonl", judge_kind="pairwise"))


@pytest.fixture
def failing(monkeypatch):
    """A server that answers, and refuses from its `limit`th request on: (address, state)."""
    monkeypatch.setenv("no_proxy", "*")
    state = {"limit": 3, "asked": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            state["asked"] += 1
            has_credit = state["asked"] <= state["limit"]
            content = json.dumps({"choices": [{"message": {"content": "Yes"}}]} if has_credit else {"error": "credit"})
            self.send_response(200 if has_credit else 403)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1", state
        server.shutdown()
        thread.join()


def test_score_keeps_answers_and_goes_on(failing, tmp_path, capsys):
    url, state = failing
    write_rows(tmp_path / "in.jsonl", [{"prompt": f"p{n}", "completion": "c"} for n in range(6)])
    command = f"score --judge {url} --judge-model m --api-key-env= --judge-workers 1 --input {tmp_path}/in.jsonl "
    command += f"--output {tmp_path}/out.jsonl"
    kept = tmp_path / "out.jsonl.judge-answers.jsonl"
    assert main(command.split()) == 2
    assert f"3 answers are kept in {kept}; the same command goes on from there" in capsys.readouterr().err
    assert len(kept.read_text().splitlines()) == 3
    state["limit"] = 100
    assert main(command.split()) == 0
    assert "6 questions to the judge, 3 answered by what was kept" in capsys.readouterr().out
    assert state["asked"] == 4 + 3  # the one that was refused is asked again
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 6
    assert not kept.exists()


def test_evaluate_keeps_answers_and_goes_on(failing, tmp_path, capsys):
    url, state = failing
    write_rows(tmp_path / "in.jsonl", [{"prompt": f"p{n}", "chosen": "c", "rejected": "d"} for n in range(3)])
    command = f"evaluate --judge {url} --judge-model m --api-key-env= --judge-workers 1 --pairs {tmp_path}/in.jsonl "
    command += f"--output {tmp_path}/out"
    kept = tmp_path / "out" / "rewards" / "judge-answers.jsonl"
    assert main(command.split()) == 2
    assert f"3 answers are kept in {kept}" in capsys.readouterr().err
    state["limit"] = 100
    assert main(command.split()) == 0
    assert state["asked"] == 4 + 3
    assert not kept.exists()
    assert (tmp_path / "out" / "results.json").exists()
