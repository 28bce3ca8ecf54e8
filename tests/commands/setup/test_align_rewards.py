from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator

from rewarden import monitors
from rewarden.align.policy import Policy
from rewarden.align.prompts import Prompt
from rewarden.align.reference_responses import Responses
from rewarden.align.rewards.detector import DetectedSource
from rewarden.align.rewards.sources import FunctionSource, ModelSource, Scores
from rewarden.commands.options.align import Align
from rewarden.commands.options.align_checks import check
from rewarden.commands.setup import align_rewards, align_run
from rewarden.core import RewardOutput
from rewarden.methods.bayesian_ensemble import BayesianEnsemble
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.monitors.mahalanobis import fit_reference, mahalanobis
from rewarden.monitors.monitor import Monitor, Report

from ..policy_runs import ascii_share, options, policy, reward_model  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def models(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:  # noqa: F811
    folder = tmp_path_factory.mktemp("models")
    kinds = {"plain": BradleyTerry(), "inform": InfoBottleneck(latent_size=3), "brme": BayesianEnsemble(size=3)}
    return {name: reward_model(policy, folder / name, method) for name, method in kinds.items()}


def scorers_of(args: Align, function: object = None) -> align_rewards.Scorers:
    return align_run.load_scorers(args, check(args, given_reward=function is not None), function, None)


def loaded(**changes: object) -> object:
    return scorers_of(options("p", Path("o"), **changes))


def test_everything_that_is_asked(models: dict[str, str]) -> None:
    found = loaded(reward=models["plain"], detector=models["inform"], gold=models["brme"], held_out=2)
    assert isinstance(found.source, DetectedSource) and isinstance(found.source.source, ModelSource)
    assert found.reward_model is found.source.source.scorer
    assert found.source.record["method"] == "BradleyTerry"
    assert found.source.detector.record["method"] == "InfoBottleneck"
    assert found.gold.record["method"] == "BayesianEnsemble"
    assert found.endogenous is None
    given = scorers_of(options("p", Path("o"), reward_timeout=3.0), ascii_share)
    assert given.reward_model is None
    assert given.source == FunctionSource(ascii_share, "ascii_share", 3.0)


@pytest.mark.parametrize("shaping", ["worst", "mean", "uwo", "lcb", "mix"])
@pytest.mark.parametrize("kind", ["plain", "function"])
def test_a_shaping_needs_members_before_anything_is_sampled(kind: str, shaping: str, models: dict[str, str]) -> None:
    wish = {"shaping": shaping} | ({"nominal_weight": 0.5} if shaping == "mix" else {})
    function = ascii_share if kind == "function" else None
    args = options("p", Path("o"), reward=models["plain"], **wish)
    with pytest.raises(ValueError, match=f"--shaping {shaping} and --reward .* needs a method with members"):
        scorers_of(args, function)
    loaded(reward=models["brme"], **wish)
    loaded(reward=f"{models['plain']}+{models['inform']}", **wish)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector": "brme"}, "--detector .*no latents to watch"),
        ({"ibl_weight": 0.1}, "--ibl-weight needs latents, and .*info-bottleneck"),
        ({"stop_on": "mop", "reference_responses": None}, "--stop-on mop needs latents, and .*info-bottleneck"),
        ({"stop_on": "csi"}, "--stop-on csi needs latents, and .*--detector"),
    ],
)
def test_latents_are_needed(changes: dict, message: str, models: dict[str, str]) -> None:
    changes = {name: models.get(value, value) for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        loaded(reward=models["plain"], **changes)
    if "detector" not in changes:
        loaded(reward=models["plain"], **changes | {"detector": models["inform"]})
        loaded(reward=models["inform"], **changes)


def learning(args: Align, policy: Policy | None = None) -> dict:  # noqa: F811
    choices = check(args)
    return align_run._learning(args, choices, align_run.load_scorers(args, choices, None, None), policy)


@pytest.mark.parametrize("changes", [{"r2m": True}, {"retrain_every": 2}], ids=str)
def test_what_learns_beside_the_policy_needs_one_model(changes: dict, models: dict[str, str]) -> None:
    several = f"{models['plain']}+{models['inform']}"
    with pytest.raises(ValueError, match=r"one reward model.*is not one; give a folder"):
        learning(options("p", Path("o"), reward=several, **changes))
    assert learning(options("p", Path("o"), reward=several)) == {"feedback": None, "retraining": None}


def test_the_rate_of_r2m_follows_the_width(policy: Path, models: dict[str, str]) -> None:  # noqa: F811
    wish = {"reward": models["plain"], "r2m": True, "r2m_width": 4}
    model = Policy.load(str(policy))
    found = learning(options(policy, Path("o"), **wish), model)["feedback"]
    width = found.modules["attention"].query.in_features
    assert found.settings.learning_rate == pytest.approx(1e-6 * 4096 / width)
    assert (found.settings.width, found.total_steps, found.seed) == (4, 3, 0)
    assert learning(options(policy, Path("o"), **wish, r2m_lr=0.5), model)["feedback"].settings.learning_rate == 0.5


def test_retraining_takes_its_settings(models: dict[str, str]) -> None:
    wish = {"reward": models["plain"], "retrain_every": 3}
    made = learning(options("p", Path("o"), **wish, retrain_lr=0.5, seed=4))["retraining"]
    assert (made.every, made.learning_rate, made.seed) == (3, 0.5, 4)
    assert learning(options("p", Path("o"), **wish))["retraining"].learning_rate == 1e-6


PROMPTS = [Prompt("a", 1, "kind", {}), Prompt("b", 2, "stern", {}), Prompt("c", 3, "kind", {})]


def responses(*, rows: int = 30, endogenous: bool = False) -> Responses:
    """Half kind, half stern; the stern ones lie elsewhere."""
    latent = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    place = torch.arange(rows) % 2
    latent[place == 1] += 20
    prior = torch.arange(rows).float() if endogenous else None
    return Responses(place, torch.full((rows,), 4), torch.zeros(rows), latent, prior)


class Fixed:
    """A source that always says the same."""

    record: ClassVar[dict] = {}
    has_latents = True

    def __call__(self, *_asked: object) -> Scores:
        return Scores(RewardOutput(torch.tensor([1.0, 2.0]), latent=torch.full((2, 3), 19.0)), None)


def in_nats(_prompts: list, texts: list) -> list:
    """An endogenous scorer that reads the reward off the completion."""
    return [[SimpleNamespace(reward=float(text)) for text in group] for group in texts]


def rewarded(found: Responses, **changes: object):
    args = options("p", Path("o"), **changes)
    scorers = align_rewards.Scorers(Fixed(), None, in_nats if "endogenous" in changes else None, None)
    pipeline = align_run.reward_pipeline(args, check(args), scorers, found, PROMPTS, Accelerator(cpu=True))
    return pipeline(PROMPTS[:2], [["14.5"], ["20"]], torch.tensor([5, 7]), torch.tensor([True, False]))


def test_components_add_up() -> None:
    found = rewarded(
        responses(endogenous=True), ibl_weight=0.5, endogenous="m", endogenous_weight=2.0, length_penalty=0.1,
        length_target=6, truncated="penalty", truncation_penalty=3.0,
    )  # fmt: skip
    assert list(found.components) == ["nominal", "latent_distance", "endogenous", "over_length", "truncation"]
    assert found.components["nominal"].tolist() == [1, 2]
    assert found.components["over_length"].tolist() == pytest.approx([0, -0.1])
    assert found.components["truncation"].tolist() == [-3, 0]
    std = torch.arange(30.0).std()
    assert found.components["endogenous"].tolist() == pytest.approx([0, float(2 * 5.5 / std)])
    assert torch.equal(found.components["latent_distance"], -0.5 * found.raw["latent_distance"])
    assert torch.equal(sum(found.components.values()), found.reward)


def test_distances_are_within_a_class_of_prompts() -> None:
    """What is near the stern ones is far from the kind ones, and not far from all of them together."""
    latent = responses().latent.double()
    point = torch.full((1, 3), 19.0, dtype=torch.float64)
    fits = [fit_reference(latent[start::2], covariance="empirical") for start in (0, 1)]
    expected = [float(mahalanobis(point, fit)[0]) for fit in fits]
    distance = rewarded(responses(), ibl_weight=0.5, class_column="kind").raw["latent_distance"].tolist()
    assert distance == pytest.approx(expected, rel=1e-5)
    assert distance[0] > 10 > distance[1]
    whole = float(mahalanobis(point, fit_reference(latent, covariance="ledoit-wolf"))[0])
    measured = rewarded(responses(), class_column="kind")
    assert measured.raw["latent_distance"].tolist() == pytest.approx([whole, whole], rel=1e-5)
    assert measured.reward.tolist() == [1, 2]


def test_a_class_without_enough_responses_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"prompt class 'kind' has 3 of the 6 reference responses: .*--class-column out"
    ):
        rewarded(responses(rows=6), ibl_weight=0.5, class_column="kind")


def test_what_is_only_measured_stops_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    few = responses(rows=6)
    same = few._replace(latent=few.latent[:1].expand(6, 3))
    assert list(rewarded(few).components) == ["nominal", "latent_distance"]
    assert list(rewarded(same).components) == ["nominal"]
    assert "distances in the latents are left out: all reference latents are equal" in capsys.readouterr().err


def test_both_monitors_where_the_reference_is_large_enough(capsys: pytest.CaptureFixture[str]) -> None:
    found = align_rewards.monitors(responses(rows=1200)._replace(prompt=torch.arange(1200)), stop_on=None)
    assert list(found.states) == ["csi", "mop"]
    assert list(align_rewards.monitors(responses(), stop_on=None).states) == ["csi"]
    assert "monitor mop is left out: " in capsys.readouterr().err
    with pytest.raises(ValueError, match="sample at least 1000 reference completions"):
        align_rewards.monitors(responses(), stop_on="mop")
    assert align_rewards.monitors(responses()._replace(latent=None), stop_on=None).monitors == {}


def test_a_monitor_that_costs_a_pass_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that needs what the reward has not got is left out, or refused where the run shall stop on it."""

    class Bell(Monitor):
        name = "bell"
        needs = frozenset({"kl"})

        def start(self, reference):
            return {"rows": torch.tensor(len(reference.reward))}

        def update(self, state, _):
            return state

        def report(self, _):
            return Report({})

    monkeypatch.setitem(monitors.MONITORS, "bell", Bell)
    assert list(align_rewards.monitors(responses(), stop_on=None).states) == ["csi"]
    assert list(align_rewards.monitors(responses(), stop_on="bell").states) == ["csi", "bell"]
    monkeypatch.setattr(Bell, "needs", frozenset({"uncertainty"}))
    assert list(align_rewards.monitors(responses(), stop_on=None).states) == ["csi"]
    uncertain = responses()._replace(uncertainty=torch.ones(30))
    assert list(align_rewards.monitors(uncertain, stop_on=None).states) == ["csi", "bell"]
    args = options("p", Path("o"), reward="r.py:f", stop_on="bell")
    with pytest.raises(ValueError, match=r"--stop-on bell needs uncertainties, and r.py:f has none; take a Bayesian"):
        scorers_of(args, ascii_share)


def test_retraining_leaves_what_is_compared_alone(models: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"--retrain-every moves the latents .* itself will do, it is loaded a second"):
        loaded(reward=models["inform"], retrain_every=2)
    found = loaded(reward=models["inform"], retrain_every=2, detector=models["inform"])
    assert found.source.detector.scorer.model is not found.reward_model.model
    assert loaded(reward=models["plain"], retrain_every=2).reward_model is not None
