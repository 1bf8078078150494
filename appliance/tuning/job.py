"""``python -m appliance.tuning.job RUN_DIR``: a tuning run as a Ray job's entry point.

Checks that base and data are the ones the run names, lets Ray Train run
:func:`appliance.tuning.loop.work` in its workers, and writes the card and ``result.json``. May be
submitted again at any time: a finished run ends at once, an unfinished one goes on from its last
checkpoint. ``SIGTERM`` (what ``ray job stop`` sends) lets the step in hand finish and be saved.

Exit status: 0 done; 130 stopped; else that of the error in ``error.json``
(:class:`appliance.errors.ExitCode`).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from appliance.errors import (
    ApplianceError,
    ExitCode,
    TuneClusterUnreachable,
    TuneInputChanged,
    TuneRunInvalid,
    TuneWorkerLost,
    TuneWorkersTooMany,
)
from appliance.i18n import _
from appliance.tuning.card import Figures, Training, describe
from appliance.tuning.files import folder_files, tree_digest, write_atomically
from appliance.tuning.run import Resolved, Result, Run, RunFolder, line

_ATTEMPTS = 2  # Ray's FailureConfig(max_failures=1)
_MEETING_S = 300  # within which all workers have found each other

_log = logging.getLogger("appliance.tuning")


def main(arguments: list[str]) -> int:
    """Run the job; see the module's first lines for the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        _log.error("usage: python -m appliance.tuning.job RUN_DIR")
        return int(ExitCode.USAGE)
    folder = RunFolder(Path(arguments[0]).absolute())
    # A stop asked of an earlier submission is not meant for this one.
    folder.stop.unlink(missing_ok=True)
    folder.error.unlink(missing_ok=True)
    _heed_sigterm(folder)
    try:
        run = folder.load()
        if not _is_finished(folder, run):
            check_inputs(run)
            _train(folder, run.spec.workers)
            finish(folder, run)
    except ApplianceError as error:
        folder.fail(error)
        _log.error("%s: %s %s %s", error.code, *error.sentences())
        return int(error.exit_code)
    folder.report(line("done", run.spec.steps, run.spec.steps))
    return int(ExitCode.OK)


def check_inputs(run: Run) -> None:
    """Refuse to train on a base or data set whose content is not what the run names.

    Raises:
        TuneInputChanged: another digest.
        TuneRunInvalid: a folder is missing.
    """
    _check("model", run.base)
    _check("data set", run.dataset)


def _check(kind: str, part: Resolved) -> None:
    if not part.path.is_dir():
        raise TuneRunInvalid(path=part.path, reason=_("That folder does not exist."))
    found = tree_digest(folder_files(part.path))
    if found != part.digest:
        raise TuneInputChanged(
            kind=kind, name=part.name, path=part.path, found=found, wanted=part.digest
        )


def finish(folder: RunFolder, run: Run) -> None:
    """Write the card beside the adapter, then ``result.json``, whose presence is success."""
    from appliance.tuning.outcome import OUTCOME, Outcome

    outcome_file = folder.result / OUTCOME
    if outcome_file.exists():
        outcome = Outcome.model_validate_json(outcome_file.read_bytes())
        card = describe(
            run,
            Training.model_validate(outcome.model_dump(exclude={"before", "after"})),
            Figures.model_validate(outcome.before.model_dump()),
            Figures.model_validate(outcome.after.model_dump()),
            datetime.now(UTC),
        )
        write_atomically(folder.result / "card.json", card.to_bytes())
        outcome_file.unlink()
    result = Result(run=run.digest(), files=folder_files(folder.result))
    write_atomically(folder.result_file, result.model_dump_json(indent=2).encode())


def _is_finished(folder: RunFolder, run: Run) -> bool:
    try:
        result = Result.model_validate_json(folder.result_file.read_bytes())
    except (OSError, ValueError):
        return False
    return result.run == run.digest() and result.files == folder_files(folder.result)


def _heed_sigterm(folder: RunFolder) -> None:
    """SIGTERM leaves a file that the worker looks for after each step, and does no more."""

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        folder.stop.touch()

    signal.signal(signal.SIGTERM, ask_to_stop)


def _train(folder: RunFolder, workers: int) -> None:
    """Run the loop under Ray Train. Raises what a worker wrote to ``error.json``."""
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.base_trainer import TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from appliance.tuning.loop import work

    _connect()
    _heed_sigterm(folder)  # ray.init has put a handler of its own there, which ends the process
    _require_hosts(workers)
    trainer = TorchTrainer(
        work,
        train_loop_config={"run_dir": str(folder.root)},
        torch_config=TorchConfig(timeout_s=_MEETING_S),
        scaling_config=ScalingConfig(
            num_workers=workers,
            resources_per_worker={"CPU": 1},
            placement_strategy="PACK" if workers == 1 else "SPREAD",
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder.root),
            failure_config=FailureConfig(max_failures=_ATTEMPTS - 1),
        ),
    )
    try:
        trainer.fit()
    except (TrainingFailedError, RayError) as error:
        _log.exception("the training worker failed")
        reason = str(error).strip().splitlines()[-1]
        raise TuneWorkerLost(times=_ATTEMPTS, reason=reason) from error
    _raise_recorded(folder)


def _require_hosts(workers: int) -> None:
    """Raise :class:`TuneWorkersTooMany` if there is not a host for every worker now: Ray would wait
    for one for ever, and nobody would know for what."""
    import ray

    able = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if workers > max(1, len(able)):
        raise TuneWorkersTooMany(workers=workers, hosts=len(able))


def _connect() -> None:
    import ray

    # Ray would otherwise look for any cluster on this machine, or start one of its own.
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise TuneClusterUnreachable(reason=_("RAY_ADDRESS does not name a cluster."))
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TuneClusterUnreachable(reason=error) from error


def _raise_recorded(folder: RunFolder) -> None:
    """Raise the error that the worker left in ``error.json``, as the class it was."""
    import json

    if not folder.error.exists():
        return
    recorded: dict[str, Any] = json.loads(folder.error.read_bytes())
    raise ApplianceError.catalogue[recorded["code"]](**recorded["fields"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
