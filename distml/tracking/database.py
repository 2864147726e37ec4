"""Tables of the MLflow server's database, made or upgraded before a server opens them (init container)."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from distml.errors import ConfigError, TrackingError

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

logger = logging.getLogger(__name__)

URI = "MLFLOW_BACKEND_STORE_URI"
"""Environment variable with the database, as `mlflow server` reads it."""
_LOCK = int.from_bytes(b"distml", "big")
"""Key of the advisory lock; it only has to differ from those of other programs on that database."""
_POLL_S = 1.0


def upgrade(uri: str, timeout_s: float = 600.0) -> None:
    """Create the tables in an empty database, or bring them up to this version of MLflow.

    Servers that start together do this at once, and MLflow 3.17 locks files of one machine only: one of them
    fails on what the other has just created. Here they take turns by a lock in the database, which ends with
    its connection, so that one that is killed holds up nobody.

    Args:
        uri: Of a PostgreSQL, as SQLAlchemy takes it.
        timeout_s: For the database to answer, and again for the others to finish.

    Raises:
        ConfigError: No PostgreSQL.
        TrackingError: No answer or no turn in time, or the tables are of a newer MLflow.
    """
    if not uri.startswith("postgresql"):
        given = uri.partition(":")[0] or "nothing"
        raise ConfigError(f"{URI} names {given}.", "Give postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE.")
    import sqlalchemy
    from alembic.util import CommandError
    from mlflow import db
    from sqlalchemy.exc import SQLAlchemyError

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    _await(engine, timeout_s)
    try:
        with _turn(engine, timeout_s):
            db.upgrade.callback(uri)
    except CommandError as error:
        raise TrackingError(
            f"the database cannot be upgraded: {error}.", "Its tables may be of a newer MLflow; run that one."
        ) from None
    except SQLAlchemyError as error:  # its own text may hold the URI
        raise TrackingError(f"the database cannot be upgraded: {_said(error)}.") from None


def _await(engine: Engine, timeout_s: float) -> None:
    """Wait until the database answers.

    Raises:
        TrackingError: It does not.
    """
    from sqlalchemy.exc import OperationalError

    deadline, told = time.monotonic() + timeout_s, False
    while True:
        try:
            with engine.connect():
                return
        except OperationalError as error:
            if time.monotonic() > deadline:
                raise TrackingError(
                    f"the database has not answered for {timeout_s:g} s: {_said(error)}."
                ) from None
            if not told:
                logger.warning("the database does not answer yet: %s", _said(error))
                told = True
        time.sleep(_POLL_S)


@contextlib.contextmanager
def _turn(engine: Engine, timeout_s: float) -> Iterator[None]:
    """Hold the lock. It is the transaction's, for poolers may give each transaction another session."""
    from sqlalchemy import text

    limits = {"lock_timeout": f"{timeout_s:g}s", "idle_in_transaction_session_timeout": "0"}
    with engine.begin() as connection:
        for name, limit in limits.items():
            connection.execute(text("SELECT set_config(:name, :limit, true)"), {"name": name, "limit": limit})
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        yield


def _said(error: Exception) -> str:
    """First line of what the driver said, which names host and user and no password."""
    return str(getattr(error, "orig", None) or type(error).__name__).strip().partition("\n")[0].rstrip(".")
