"""An agent in a process of its own that trains until it is killed, for tests of its death.

``python -m tests.agentalone FOLDER`` trains ``mlp`` with 3 workers on two devices, writes a
checkpoint every second step, and tells the process ids of its workers once the first is written.
"""

from __future__ import annotations

import sys
import time

from executor import events as e
from executor.agent import Agent
from tests.executorcases import LANES, job, on


def main(folder: str) -> int:
    """Train, and tell."""
    with Agent(LANES) as agent:
        spec = job("mlp", 3, 10**6, folder=folder, checkpoint_every=2, digest_every=0)
        agent.start(spec, on(2, 1))
        agent.wait(lambda event: isinstance(event, e.Checkpointed))
        sys.stdout.write(" ".join(map(str, agent._pool.pids())) + "\n")
        sys.stdout.flush()
        while True:
            agent.poll(0.1)
            time.sleep(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
