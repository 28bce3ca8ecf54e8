import dataclasses

import pytest
import torch
from torch import Tensor, nn

from rewarden.core import Method, PairInfo, RewardOutput
from rewarden.methods.bayesian_ensemble import BayesianEnsemble, BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.centered import Centered
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.methods.smoothed import Smoothed
from rewarden.methods.wrapper import Wrapper


@dataclasses.dataclass(frozen=True)
class Demanding(Method):
    """Needs and knows everything that a method can, and logs the lengths."""

    uses = frozenset({"margin", "agreement"})
    needs_teacher = True
    uses_language_model = True

    def head(self, hidden_size: int) -> nn.Module:
        return nn.Linear(hidden_size, 3)

    def loss(self, chosen: RewardOutput, rejected: RewardOutput, info: PairInfo) -> Tensor:
        del info
        return rejected.reward - chosen.reward

    def metrics(self, chosen: RewardOutput, rejected: RewardOutput, info: PairInfo) -> dict[str, Tensor]:
        del chosen, rejected
        assert info.chosen_length is not None
        return {"tokens": info.chosen_length.float().mean()}


WRAPPERS = [Ensemble, Centered]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "member",
    [
        BradleyTerry(),
        InfoBottleneck(),
        BayesianEnsemble(),
        BayesianEnsembleNLL(),
        Demanding(),
        Ensemble(BayesianEnsemble()),
        Centered(Demanding()),
    ],
    ids=lambda member: type(member).__name__,
)
def test_what_is_needed_and_used_is_what_the_member_needs_and_uses(wrapper: type[Wrapper], member: Method) -> None:
    method = wrapper(member)
    assert method.uses == member.uses
    assert method.needs_teacher is member.needs_teacher
    assert method.uses_language_model is member.uses_language_model


def test_smoothing_passes_on_what_its_member_uses() -> None:
    @dataclasses.dataclass(frozen=True)
    class WithLanguageModel(Demanding):
        needs_teacher = False

    method = Smoothed(WithLanguageModel())
    assert method.uses == {"margin", "agreement"}
    assert not method.needs_teacher
    assert method.uses_language_model
    assert not Smoothed().uses_language_model


@pytest.mark.parametrize("wrapper", [*WRAPPERS, Smoothed])
def test_the_default_member_is_bradley_terry(wrapper: type[Wrapper]) -> None:
    assert wrapper().member == BradleyTerry()


def test_the_head_and_the_metrics_are_the_members_unless_a_wrapper_says_otherwise() -> None:
    @dataclasses.dataclass(frozen=True)
    class Silent(Wrapper):
        def loss(self, chosen: RewardOutput, rejected: RewardOutput, info: PairInfo) -> Tensor:
            return self.member.loss(chosen, rejected, info)

    method = Silent(Demanding())
    assert method.head(5).weight.shape == (3, 5)
    output, info = RewardOutput(torch.zeros(2)), PairInfo(chosen_length=torch.tensor([3, 5]))
    assert {name: value.item() for name, value in method.metrics(output, output, info).items()} == {"tokens": 4}


def test_a_wrapper_without_a_loss_is_no_method() -> None:
    with pytest.raises(TypeError, match="loss"):
        Wrapper()  # type: ignore[abstract]
