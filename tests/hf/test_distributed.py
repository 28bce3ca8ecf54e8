import pytest
import torch
from torch import nn

from rewarden.hf import distributed


def test_one_process_is_the_first_and_waits_for_nobody():
    distributed.start()
    assert (distributed.count(), distributed.is_first()) == (1, True)
    distributed.wait()


def test_a_process_leaves_the_others_before_it_ends(monkeypatch):
    """Threads of a group that is still joined abort the process at its end, and its exit code is lost."""
    at_exit = []
    monkeypatch.setattr(distributed.atexit, "register", at_exit.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    group = {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}
    monkeypatch.setattr(distributed, "PartialState", lambda **_: torch.distributed.init_process_group("gloo", **group))
    distributed.start()
    assert torch.distributed.is_initialized()
    assert at_exit == [distributed.leave]
    distributed.leave()
    assert not torch.distributed.is_initialized()
    distributed.leave()  # alone: nothing to leave


def test_fsdp_without_an_accelerator_is_refused_rather_than_ignored(monkeypatch):
    distributed.refuse_fsdp_on_processors()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"there is no accelerator here.*leave --use_fsdp out"):
        distributed.refuse_fsdp_on_processors()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    distributed.refuse_fsdp_on_processors()


class Sharded:
    """Stands for a tensor of which this process holds a part."""

    def __init__(self, whole):
        self.whole = whole

    def full_tensor(self):
        return self.whole


def test_a_hollow_copy_has_the_shape_and_no_memory(build):
    model = build("llama")
    model.head.requires_grad_(False)
    copy = distributed.hollow(model)
    assert all(p.device.type == "meta" for p in copy.parameters())
    assert all(p.device.type == "cpu" for p in copy.buffers())
    assert [(n, p.shape, p.requires_grad) for n, p in copy.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in model.named_parameters()
    ]
    assert not any(p.is_meta for p in model.parameters())


def test_a_sharded_model_becomes_whole_in_place(build, monkeypatch):
    model, twin = build("llama"), build("llama", seed=5)
    shape, plain = distributed.hollow(model), type(model)
    changed = dict(twin.named_parameters())

    class Wrapped(plain):
        def named_parameters(self, *_, **__):
            return iter([(name, Sharded(p)) for name, p in changed.items()])

        def forward(self, *_, **__):
            raise AssertionError("still wrapped")

    model.__class__ = Wrapped
    distributed.make_whole(model, shape, torch.device("cpu"))
    assert type(model) is plain
    for name, p in model.named_parameters():
        assert isinstance(p, nn.Parameter)
        assert torch.equal(p, changed[name])
    tokens = torch.tensor([[7, 8, 9]])
    assert torch.equal(model.use_layout("padded")(tokens).reward, twin.use_layout("padded")(tokens).reward)


def test_what_the_first_process_does_alone_fails_in_all(monkeypatch):
    done = []
    distributed.on_first(lambda: done.append(1))
    assert done == [1]
    monkeypatch.setattr(distributed, "_is_running", lambda: True)
    monkeypatch.setattr(distributed, "wait", lambda: done.append("waited"))
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    monkeypatch.setattr(distributed, "gather_object", lambda mine: [None, *mine])
    distributed.on_first(lambda: done.append(2))
    assert done == [1, "waited"]
    monkeypatch.setattr(distributed, "gather_object", lambda mine: ["the first one's message", *mine])
    with pytest.raises(ValueError, match="the first one's message"):
        distributed.on_first(lambda: done.append(2))
    monkeypatch.setattr(distributed, "is_first", lambda: True)
    monkeypatch.setattr(distributed, "gather_object", lambda mine: mine)
    with pytest.raises(KeyError, match="mine"):
        distributed.on_first(lambda: {}["mine"])
