"""One worker of a team without Ray: ``python tuning_worker.py RUN_DIR RANK SIZE PORT MISHAP``.

``MISHAP`` is ``none``, ``killed`` (rank 1 dies at step 7) or ``memory`` (rank 1 has none left).
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

from torch import distributed

from appliance.tuning import loop
from appliance.tuning.run import RunFolder, SilentFolder
from appliance.tuning.team import Team


def main(run_dir: str, rank: int, size: int, port: int, mishap: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = timedelta(seconds=600)
    url = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", url, patience, world_size=size, rank=rank)
    team = Team(rank, size, distributed.new_group(backend="gloo", timeout=patience))
    folder = (RunFolder if team.leads else SilentFolder)(Path(run_dir))

    def report(metrics: dict[str, float]) -> None:
        if (mishap, rank, metrics["step"]) == ("killed", 1, 7):
            os._exit(9)
        if (mishap, rank, metrics["step"]) == ("memory", 1, 7):
            raise MemoryError

    loop.take_part(folder, report, team)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
