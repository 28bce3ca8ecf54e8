import json
import logging
import math
from dataclasses import dataclass, field, replace
from itertools import permutations

import pytest

from rewarden.hf.scoring.judges import GenerativeVerifier, PairwiseJudge, PointwiseJudge
from rewarden.hf.scoring.local_chat import LocalChat
from rewarden.judging.answers import Answer, Question
from rewarden.judging.templates import PAIRWISE, POINTWISE, VERIFIER, Template


@dataclass
class Script:
    """Answers what a function of (prompt, *completions) says, and writes down what it was asked."""

    says: object
    asked: list = field(default_factory=list)

    @property
    def record(self):
        return {"model": "script"}

    def __call__(self, _template, groups, *, progress=None):
        self.asked += [question for group in groups for question in group]
        found = [[self.says(q.prompt, *q.completions) for q in group] for group in groups]
        for number in range(len(groups)):
            if progress is not None:
                progress(number)
        return found

    def lengths(self, texts):
        return [len(text.split()) for text in texts]


def logs(*values: float) -> tuple[float, ...]:
    return tuple(math.log(value) if value else -math.inf for value in values)


def said(*log_probs: float, **more) -> Answer:
    return Answer(max(range(len(log_probs)), key=log_probs.__getitem__), log_probs, **more)


def rewards(scores) -> list[list[float]]:
    return [[score.reward for score in group] for group in scores]


# --- Verifier -----------------------------------------------------------------------------------


def test_a_verifier_s_reward_is_the_log_odds():
    table = {"good": logs(0.6, 0.2), "bad one": logs(0.1, 0.8)}
    judge = GenerativeVerifier(Script(lambda _p, c: said(*table[c])))
    (found,) = judge(["q"], [["good", "bad one", "good"]])
    assert [each.reward for each in found] == pytest.approx([math.log(3), math.log(1 / 8), math.log(3)])
    assert [each.length for each in found] == [1, 2, 1]
    assert found[0].uncertainty is None and not found[0].is_truncated
    assert len(judge.answerer.asked) == 2  # identical completions are asked about once


def test_or_the_log_probability_of_yes():
    judge = GenerativeVerifier(Script(lambda _p, _c: said(*logs(0.6, 0.2))), reading="log_yes")
    assert rewards(judge(["q"], [["a"]])) == [[pytest.approx(math.log(0.6))]]
    assert judge.record["reading"] == "log_yes"


def test_what_is_not_listed_counts_as_the_least_that_is():
    script = Script(lambda _p, _c: said(*logs(0.9, 0), floor=math.log(0.01)))
    assert rewards(GenerativeVerifier(script)(["q"], [["a"]])) == [[pytest.approx(math.log(90))]]


def test_without_log_probabilities_yes_is_one_and_no_is_none(caplog):
    answers = {"y": Answer(0), "n": Answer(1), "?": Answer(None), "p": said(*logs(0.9, 0.1))}
    judge = GenerativeVerifier(Script(lambda _p, c: answers[c]))
    assert rewards(judge(["q"], [["y", "n", "?", "p"]])) == [[1, 0, 0.5, 1]]
    assert "no log-probabilities for 2 of 3 answers" in caplog.text
    assert "1 of 4 answers named none of Yes, No" in caplog.text
    assert judge.tally.report() | {"answered": None} == {
        "questions": 4, "unreadable": 1, "by_text": 2, "answered": None, "compared": 0, "contradictory": 0
    }  # fmt: skip


def test_a_chatty_answer_among_many_is_read_as_undecided():
    answers = {"y": Answer(0), "?": Answer(None), "p": said(*logs(0.9, 0.1)), "r": said(*logs(0.2, 0.4))}
    script = Script(lambda _p, c: answers[c])
    found = rewards(GenerativeVerifier(script)(["q"], [list("y?pr")]))
    assert found == [[0, 0, pytest.approx(math.log(9)), pytest.approx(-math.log(2))]]
    found = rewards(GenerativeVerifier(script, reading="log_yes")(["q"], [list("y?p")]))
    assert found == [[pytest.approx(math.log(0.5))] * 2 + [pytest.approx(math.log(0.9))]]


# --- Pointwise ----------------------------------------------------------------------------------


def test_a_pointwise_judge_s_reward_is_the_expected_rating():
    template = Template("pointwise", "", "{prompt}{completion}", ("1", "2", "5"))
    answers = {"a": said(*logs(0.1, 0, 0.3)), "b": Answer(1), "c": Answer(None)}
    judge = PointwiseJudge(Script(lambda _p, c: answers[c]), template)
    ((a, b, c),) = judge(["q"], [["a", "b", "c"]])
    assert (a.reward, a.uncertainty) == pytest.approx((4, math.sqrt(0.25 * 9 + 0.75 * 1)))
    assert (b.reward, b.uncertainty) == (2, None)
    assert (c.reward, c.uncertainty) == (3, None)  # the middle of the scale
    assert judge.tally.unreadable == 1


def test_the_middle_of_ten():
    assert rewards(PointwiseJudge(Script(lambda _p, _c: Answer(None)))(["q"], [["a"]])) == [[5.5]]


# --- Pairwise -----------------------------------------------------------------------------------


def by_value(p: str, first: str, second: str) -> Answer:
    """The longer is better, without regard to the order."""
    return Answer(2 if len(first) == len(second) else int(len(first) < len(second)))


def test_ranks_of_a_judge_that_is_sure():
    judge = PairwiseJudge(Script(by_value))
    found = judge(["q"], [["xx", "x", "xxxx", "xxx"]])
    assert rewards(found) == [[2, 1, 4, 3]]
    assert len(judge.answerer.asked) == 12  # every ordered pair
    assert {q.completions for q in judge.answerer.asked} == set(permutations(["xx", "x", "xxxx", "xxx"], 2))
    assert judge.tally.report() | {"answered": None} == {
        "questions": 12, "unreadable": 0, "by_text": 12, "answered": None, "compared": 6, "contradictory": 0
    }  # fmt: skip


def test_ranks_where_some_are_equal():
    assert rewards(PairwiseJudge(Script(by_value))(["q"], [["aa", "b", "cc", "d", "eee"]])) == [[3.5, 1.5, 3.5, 1.5, 5]]


@pytest.mark.parametrize("place", [0, 1])
def test_a_judge_that_goes_by_the_place_decides_nothing(place):
    judge = PairwiseJudge(Script(lambda _p, _a, _b: Answer(place)))
    assert rewards(judge(["q"], [["a", "b", "c"]])) == [[2, 2, 2]]
    assert (judge.tally.compared, judge.tally.contradictory) == (3, 3)


def test_the_order_of_the_candidates_does_not_matter():
    def judged(p, first, second):
        """Neither transitive nor symmetric, and different for every ordered pair."""
        return Answer((3 * ord(first) + 5 * ord(second)) % 7 % 3)

    base = dict(zip("abcd", rewards(PairwiseJudge(Script(judged))(["q"], [list("abcd")]))[0], strict=True))
    assert len(set(base.values())) > 1
    for order in permutations("abcd"):
        assert rewards(PairwiseJudge(Script(judged))(["q"], [list(order)])) == [[base[each] for each in order]]


def test_identical_completions_share_a_rank_and_count_as_opponents():
    judge = PairwiseJudge(Script(by_value))
    assert rewards(judge(["q"], [["x", "xx", "x"]])) == [[1.5, 3, 1.5]]
    assert len(judge.answerer.asked) == 2
    assert rewards(judge(["q"], [["x", "x"]])) == [[1.5, 1.5]]


def test_unreadable_answers_are_ties():
    judge = PairwiseJudge(Script(lambda _p, _a, _b: Answer(None)))
    assert rewards(judge(["q"], [["a", "b"]])) == [[1.5, 1.5]]
    assert (judge.tally.unreadable, judge.tally.contradictory) == (2, 0)


def test_a_completion_alone_cannot_be_compared(caplog):
    judge = PairwiseJudge(Script(by_value))
    assert rewards(judge(["q", "r"], [["x"], ["x", "xx"]])) == [[1], [1, 2]]
    assert "1 of 2 prompts have one completion" in caplog.text
    with pytest.raises(ValueError, match="got 2 prompts with one completion each"):
        judge(["q", "r"], [["x"], ["xx"]])


def test_a_completion_is_cut_when_it_was_in_any_question():
    judge = PairwiseJudge(Script(lambda _p, a, b: Answer(0, is_truncated={a, b} == {"long", "longer"})))
    ((long, short, longer),) = judge(["q"], [["long", "short", "longer"]])
    assert (long.is_truncated, short.is_truncated, longer.is_truncated) == (True, False, True)


def test_one_decided_order_is_enough():
    judge = PairwiseJudge(Script(lambda _p, a, b: Answer(1 if (a, b) == ("a", "b") else None)))
    assert rewards(judge(["q"], [["a", "b"]])) == [[1, 2]]


# --- All ----------------------------------------------------------------------------------------

JUDGES = {
    "verifier": GenerativeVerifier(Script(lambda _p, c: said(*logs(0.5, 0.25), is_truncated=c == "long"))),
    "pointwise": PointwiseJudge(Script(lambda _p, c: said(*logs(*[0.1] * 10), is_truncated=c == "long"))),
    "pairwise": PairwiseJudge(Script(lambda _p, a, b: Answer(0, is_truncated="long" in (a, b)))),
}


@pytest.mark.parametrize("kind", JUDGES)
def test_shapes_progress_lengths_and_cuts(kind):
    ticks = []
    completions = [["long", "b c d"], ["x"], ["y y", "z", "y y"]]
    found = JUDGES[kind](["p", None, [{"role": "user", "content": "t"}]], completions, progress=ticks.append)
    assert [[score.length for score in group] for group in found] == [[1, 3], [1], [2, 1, 2]]
    cut = [[score.is_truncated for score in group] for group in found]
    assert cut == [[True, kind == "pairwise"], [False], [False] * 3]
    assert sum(ticks) == 6
    assert JUDGES[kind]([], []) == []


@pytest.mark.parametrize("kind", JUDGES)
@pytest.mark.parametrize(("prompts", "completions"), [(["a"], []), (["a"], [[]])])
def test_mismatched_lengths_are_refused(kind, prompts, completions):
    with pytest.raises(ValueError, match=f"got 1 prompts and {len(completions)} lists"):
        JUDGES[kind](prompts, completions)


def test_turns_are_shown_as_text():
    judge = GenerativeVerifier(Script(lambda _p, _c: said(*logs(0.5, 0.25))))
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "so"},
    ]
    judge([turns], [[[{"role": "assistant", "content": "well"}]]])
    assert judge.answerer.asked == [("User: hi\n\nAssistant: ho\n\nUser: so", ("well",))]


@pytest.mark.parametrize(
    ("kind", "name", "template"),
    [
        ("verifier", "GenerativeVerifier", VERIFIER),
        ("pointwise", "PointwiseJudge", POINTWISE),
        ("pairwise", "PairwiseJudge", PAIRWISE),
    ],
)
def test_the_record_says_who_judged_and_how(kind, name, template):
    record = json.loads(json.dumps(JUDGES[kind].record))
    assert (record["method"], record["model"]) == (name, "script")
    assert record["template"] == template.record


@pytest.mark.parametrize(
    ("make", "template"), [(GenerativeVerifier, PAIRWISE), (PointwiseJudge, VERIFIER), (PairwiseJudge, POINTWISE)]
)
def test_a_template_of_another_kind_is_refused(make, template):
    with pytest.raises(ValueError, match=f"got a template of a {template.kind} judge"):
        make(Script(None), template)


def test_a_judge_that_would_say_something_else_is_named(caplog):
    judge = GenerativeVerifier(Script(lambda _p, _c: said(*logs(0.02, 0.01))))
    judge(["q"], [["a", "b"]])
    assert "gives Yes, No only 3.0% of its probability" in caplog.text
    assert judge.tally.report()["answered"] == pytest.approx(0.03)
    caplog.clear()
    GenerativeVerifier(Script(lambda _p, _c: said(*logs(0.6, 0.3))))(["q"], [["a"]])
    assert caplog.text == ""


def test_counts_add_up_over_calls():
    judge = GenerativeVerifier(Script(lambda _p, _c: said(*logs(0.6, 0.3))))
    for _ in range(2):
        judge(["q"], [["a", "b"]])
    assert judge.tally.questions == 4
    assert judge.tally.report()["answered"] == pytest.approx(0.9)
    assert replace(judge).record == judge.record


def test_all_three_with_a_local_model(write_backbone, caplog):
    caplog.set_level(logging.ERROR)
    chat = LocalChat.load(write_backbone("llama", language_model=True))
    prompts, completions = ["What?", "hi"], [["a cat", "a dog", "a cat"], ["ho"]]
    verified = GenerativeVerifier(chat)(prompts, completions)
    (((yes, no),),) = [[each.log_probs for each in group] for group in chat(VERIFIER, [[Question("hi", ("ho",))]])]
    assert verified[1][0].reward == pytest.approx(yes - no, abs=1e-4)
    assert verified[0][0] == verified[0][2]
    assert verified[0][0].reward != verified[0][1].reward
    for score in (each for group in PointwiseJudge(chat)(prompts, completions) for each in group):
        assert 1 <= score.reward <= 10
        assert 0 < score.uncertainty <= 4.5
    for group in PairwiseJudge(chat)(prompts, completions):
        assert sum(score.reward for score in group) == len(group) * (len(group) + 1) / 2
    assert [score.length for score in verified[0]] == chat.lengths(completions[0])


def test_fields_that_a_judge_is_not_shown_are_refused():
    judge = PointwiseJudge(Script(lambda _p, _c: Answer(None)))
    turn = {"role": "assistant", "content": "a", "reasoning_content": "because"}
    with pytest.raises(ValueError, match='prompt 2: messages have "reasoning_content"; expected what a judge is shown'):
        judge(["q", [{"role": "user", "content": "q"}]], [["a"], [[turn]]])
