"""Two processes on one machine, as a launcher starts them, running `rewarden` commands one after the other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

# accelerate shards on accelerators only. The child makes it take the processor for one, so that everything else is as it is
# on a GPU: fully_shard, gathered checkpoints, sharded optimiser.
CHILD = textwrap.dedent(
    """
    import os, sys
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        import accelerate.state as state
        from accelerate.utils import DistributedType

        original = state.AcceleratorState.__init__

        def shards_on_a_processor(self, *args, fsdp_plugin=None, **kwargs):
            original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
            if fsdp_plugin is not None:
                self.distributed_type = state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
                self.fsdp_plugin = fsdp_plugin

        state.AcceleratorState.__init__ = shards_on_a_processor
        from rewarden.hf import distributed

        distributed.refuse_fsdp_on_processors = lambda: None
    from rewarden.cli import main

    for command in sys.argv[1:]:
        if code := main(command.split()):
            sys.exit(code)
    """
)
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}


def run_in_two(*commands: str, timeout: float = 240, **environment: str) -> tuple[int, str, str]:
    """The largest exit code, and what the first and the second process wrote on stderr and stdout."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, *commands],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [child.communicate(timeout=timeout)[0] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    return max(abs(child.returncode) for child in children), said[0], said[1]
