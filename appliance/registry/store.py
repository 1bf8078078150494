"""Opening the registry: the file, its migrations, and the engine's rules about transactions.

Foreign keys are enforced, writers queue for up to 15 s (``busy_timeout``) and take their lock when
they begin, not half way through, so that two of them cannot deadlock. Readers never wait (WAL).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text

from appliance.errors import RegistryNewer
from appliance.layout import Home
from appliance.registry.adapters import Adapters
from appliance.registry.api_keys import ApiKeys
from appliance.registry.datasets import Datasets, Models
from appliance.registry.jobs import Jobs
from appliance.registry.sessions import Sessions, translated
from appliance.registry.tables import HEAD

_BUSY_TIMEOUT_S = 15


class Registry:
    """One repository per kind of thing; see each for its verbs."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        sessions = Sessions(engine, path)
        self.api_keys = ApiKeys(sessions)
        self.datasets = Datasets(sessions)
        self.models = Models(sessions)
        self.jobs = Jobs(sessions)
        self.adapters = Adapters(sessions)

    @classmethod
    def open(cls, home: Home) -> Self:
        """Open ``home``'s registry, making or migrating the file (mode 0600) when needed.

        Raises:
            RegistryDamaged: the file is not a readable SQLite database.
            RegistryNewer: a newer release of ours wrote it.
            RegistryBusy: another process kept it locked for 15 s.
            DiskFull: there is no room for it.
        """
        path = home.registry
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        engine = _engine(path)
        try:
            with translated(path):
                _migrate(engine, path)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, path)

    def close(self) -> None:
        """Give the file's connections back. The registry is not usable afterwards."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def _engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        # Answers the gateway's threads concurrently; each holds a connection for one short verb.
        pool_size=8,
        max_overflow=24,
        connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        # Leave BEGIN to the handler below; sqlite3 would otherwise delay it to the first write.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        # FULL: a revoked key or a retired adapter must still be so after a power cut.
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def _migrate(engine: Engine, path: Path) -> None:
    """Bring the file to :data:`HEAD`. Two processes at once: the second finds nothing to do."""
    if path.stat().st_size and _revision(engine) == HEAD:
        return  # the usual case, and it does not import Alembic
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A file keeps its journal mode. SQLite does not wait for others when it is to change it, so
        # it is changed here, where nobody else looks at a file that is still empty.
        with engine.connect() as connection:
            connection.connection.execute("PRAGMA journal_mode = WAL")
        found = _revision(engine)
        if found != HEAD:
            _upgrade(engine, path, found)


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return None if revision is None else str(revision)


def _upgrade(engine: Engine, path: Path, found: str | None) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise RegistryNewer(path=path, found=found, known=HEAD)
    with engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
