"""MLflow's database: upgrades its schema, dumps and loads its tables (Job, driver).

A dump is compressed JSON lines that SQLite and PostgreSQL can both be loaded from: `pg_dump` would have to be
in every image, in the server's version, and its dumps could not be loaded into the SQLite of a laptop.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import gzip
import json
import logging
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distml.config import Config
from distml.errors import ConfigError, TrackingError
from distml.tracking import server
from distml.tracking.registry import CHAMPION, DIGEST
from distml.tracking.server import PLACES

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData, Table
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
    its connection, so that a killed process does not block others.

    Args:
        uri: Of a PostgreSQL, as SQLAlchemy takes it.
        timeout_s: For the database to answer, and again for the others to finish.

    Raises:
        ConfigError: No PostgreSQL.
        TrackingError: No answer or no lock within the time limit, or the tables are of a newer MLflow.
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
                    f"the database has not responded for {timeout_s:g} s: {_said(error)}."
                ) from None
            if not told:
                logger.warning("the database does not respond yet: %s", _said(error))
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


_OWN = ("runs", "registered_models", "logged_models")
"""Tables that have rows once anything was recorded."""
_SQLITE = "sqlite:///"
_BATCH_ROWS = 1000
_VERSION = "alembic_version"


@dataclass(frozen=True)
class Contents:
    """What a dump or a database holds.

    Attributes:
        revision: Of the tables, as MLflow's migrations name it.
        rows: Number of rows by table; tables without rows are left out.
        places: URIs of the files of runs and models.
        champions: Version and SHA-256 of the champion by registered model.
    """

    revision: str
    rows: dict[str, int]
    places: list[str]
    champions: dict[str, tuple[int, str | None]]


def location(config: Config) -> str:
    """Return the URI of the tracking server's database.

    That is `MLFLOW_BACKEND_STORE_URI` where it is set, as for the server itself; else `tracking.uri` where it
    is a database, or the embedded SQLite.

    Raises:
        ConfigError: `tracking.uri` is a server, which does not say where its database is.
    """
    uri = os.environ.get(URI) or server.uri(config)
    if uri.startswith(("postgresql", _SQLITE)):
        return uri
    raise ConfigError(
        f"{uri} is a server, and its database has to be read itself.",
        f"Set {URI} to the database that the server uses.",
    )


def dump(uri: str, into: Path) -> Contents:
    """Write every row of a database, as they were at one moment, to a file.

    Args:
        uri: SQLite or PostgreSQL, as SQLAlchemy takes it.
        into: The file.

    Raises:
        TrackingError: The database cannot be read, or it holds no tables of MLflow.
    """
    with _snapshot(uri) as connection, _described("dumped"):
        tables = _reflect(connection)
        contents = _contents(connection, tables)
        with gzip.open(into, "wt", encoding="utf-8") as stream:
            stream.write(json.dumps({"revision": contents.revision}) + "\n")
            for table in tables.sorted_tables:
                if table.name in contents.rows and table.name != _VERSION:
                    for row in connection.execute(table.select()).mappings():
                        line = [table.name, {name: _to_json(value) for name, value in row.items()}]
                        stream.write(json.dumps(line) + "\n")
    return contents


def load(uri: str, dumped: Path, moved: Callable[[str], str]) -> Contents:
    """Fill an empty database with the rows of a dump, all or none, then upgrade its tables to this MLflow.

    Args:
        uri: SQLite or PostgreSQL, as SQLAlchemy takes it; tables are made where there are none.
        dumped: A file that `dump` wrote.
        moved: Returns where the files of a URI are now.

    Raises:
        TrackingError: The database is not empty, or the dump is damaged or of a newer MLflow.
    """
    require_empty(uri)
    from alembic import command
    from alembic.config import Config as Settings
    from mlflow.store.tracking.dbmodels.initial_models import Base as FirstTables

    engine = _engine(uri)
    settings = Settings()
    settings.set_main_option("script_location", str(files("mlflow").joinpath("store", "db_migrations")))
    settings.set_main_option("sqlalchemy.url", uri.replace("%", "%%"))  # as MLflow 3.17 sets both

    def upgrade_to(revision: str) -> None:
        with engine.begin() as connection:
            settings.attributes["connection"] = connection
            command.upgrade(settings, revision)

    with _described("loaded"), _lines(dumped) as lines:
        with engine.begin() as connection:  # committed before the migrations, some of which open their own
            if not _reflect(connection).tables:
                FirstTables.metadata.create_all(connection)
        upgrade_to(json.loads(next(lines))["revision"])
        with engine.begin() as connection:
            _insert(connection, lines, moved)
        upgrade_to("heads")
        with engine.connect() as connection:
            return _contents(connection, _reflect(connection))


def require_empty(uri: str) -> None:
    """Reject a database in which something has been recorded.

    Raises:
        TrackingError: Rows would be overwritten, or the database does not respond.
    """
    if uri.startswith(_SQLITE):
        Path(uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    with _described("read"), _engine(uri).connect() as connection:
        counts = _counts(connection, _reflect(connection))
    used = [f"{counts[name]} {name}" for name in _OWN if name in counts]
    if used:
        raise TrackingError(
            f"the database holds {', '.join(used)} already.",
            "Restore into an empty one, then switch over to it.",
        )


def _engine(uri: str) -> Engine:
    import sqlalchemy

    return sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)


@contextlib.contextmanager
def _snapshot(uri: str) -> Iterator[Connection]:
    """A connection that sees one moment: a copy of SQLite, a repeatable read of PostgreSQL.

    Reading SQLite in place would keep writers waiting as long as the dump takes.
    """
    if not uri.startswith(_SQLITE):
        with _engine(uri).connect() as connection:
            yield connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True, yield_per=_BATCH_ROWS
            )
        return
    path = uri.removeprefix(_SQLITE)
    if not Path(path).exists():
        raise TrackingError(f"there is no database {path}.", "Train a model first, or correct storage.root.")
    with tempfile.TemporaryDirectory(prefix="distml-backup-") as folder:
        copy = Path(folder) / "mlflow.db"
        with (
            contextlib.closing(sqlite3.connect(path)) as source,
            contextlib.closing(sqlite3.connect(copy)) as to,
        ):
            source.backup(to)
        with _engine(f"{_SQLITE}{copy}").connect() as connection:
            yield connection


@contextlib.contextmanager
def _described(doing: str) -> Iterator[None]:
    """Make one sentence of what SQLAlchemy, Alembic or a damaged dump raises."""
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except CommandError as error:
        raise TrackingError(
            f"the dump cannot be {doing}: {error}.", "Use the MLflow that it was made with."
        ) from None
    except SQLAlchemyError as error:  # its own text may hold the URI
        raise TrackingError(f"the database cannot be {doing}: {_said(error)}.") from None
    except (ValueError, KeyError, TypeError, StopIteration, EOFError, gzip.BadGzipFile) as error:
        raise TrackingError(
            f"the dump is damaged: {error!r}.", "Choose an earlier backup with --at."
        ) from None


def _reflect(connection: Connection) -> MetaData:
    import sqlalchemy

    tables = sqlalchemy.MetaData()
    tables.reflect(connection)
    for table in tables.tables.values():
        for column in table.columns:
            if isinstance(column.type, sqlalchemy.JSON):
                column.type.none_as_null = True  # else NULL would come back as JSON's null
    return tables


def _counts(connection: Connection, tables: MetaData) -> dict[str, int]:
    import sqlalchemy

    count = sqlalchemy.select(sqlalchemy.func.count())
    counts = {
        name: int(connection.execute(count.select_from(table)).scalar_one())
        for name, table in tables.tables.items()
    }
    return {name: number for name, number in counts.items() if number}


def _contents(connection: Connection, tables: MetaData) -> Contents:
    import sqlalchemy

    if not {_VERSION, "model_versions", "registered_model_aliases"} <= tables.tables.keys():
        raise TrackingError("the database holds no tables of MLflow.", "Correct the URI of the database.")
    revision = str(connection.execute(tables.tables[_VERSION].select()).scalar_one())
    places = set()
    for name, column in PLACES[1:]:
        if name in tables.tables and column in tables.tables[name].c:
            places |= set(
                connection.execute(sqlalchemy.select(tables.tables[name].c[column]).distinct()).scalars()
            )
    champions = {
        model: (int(version), _digest(connection, tables.tables["model_version_tags"], model, version))
        for model, version in _champions(connection, tables.tables["registered_model_aliases"])
    }
    return Contents(revision, _counts(connection, tables), sorted(filter(None, places)), champions)


def _champions(connection: Connection, aliases: Table) -> list[tuple[str, int]]:
    chosen = aliases.select().where(aliases.c.alias == CHAMPION)
    return [(row["name"], row["version"]) for row in connection.execute(chosen).mappings()]


def _digest(connection: Connection, tags: Table, model: str, version: int) -> str | None:
    wanted = (tags.c.name == model) & (tags.c.version == version) & (tags.c.key == DIGEST)
    row = connection.execute(tags.select().where(wanted)).mappings().first()
    return None if row is None else str(row["value"])


@contextlib.contextmanager
def _lines(dumped: Path) -> Iterator[Iterator[str]]:
    with gzip.open(dumped, "rt", encoding="utf-8") as stream:
        yield iter(stream)


def _insert(connection: Connection, lines: Iterator[str], moved: Callable[[str], str]) -> None:
    """Insert the rows of a dump, tables in the order in which they refer to each other."""
    tables = _reflect(connection).tables
    for table in tables.values():
        if table.name != _VERSION:
            connection.execute(table.delete())  # the experiment that MLflow begins with
    places = {(name, column) for name, column in PLACES}
    batch: list[dict[str, Any]] = []
    current = ""
    for line in lines:
        name, row = json.loads(line)
        if batch and (name != current or len(batch) == _BATCH_ROWS):
            connection.execute(tables[current].insert(), batch)
            batch = []
        current = name
        values = {column: _from_json(value) for column, value in row.items()}
        for column in row:
            if (name, column) in places and values[column]:
                values[column] = moved(values[column])
        batch.append(values)
    if batch:
        connection.execute(tables[current].insert(), batch)
    _advance_sequences(connection, tables.values())


def _advance_sequences(connection: Connection, tables: Any) -> None:
    """Let PostgreSQL's sequences go on after the numbers that were inserted."""
    from sqlalchemy import text

    if connection.dialect.name != "postgresql":
        return
    for table in tables:
        for column in table.primary_key.columns:
            named = text("SELECT pg_get_serial_sequence(:table, :column)")
            sequence = connection.execute(named, {"table": table.name, "column": column.name}).scalar()
            if sequence is not None:
                most = f"SELECT max({column.name}) FROM {table.name}"  # noqa: S608 (names of the database itself)
                connection.execute(text(f"SELECT setval('{sequence}', coalesce(({most}), 1))"))


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes | memoryview):
        return {"bytes": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, datetime.datetime):
        return {"datetime": value.isoformat()}
    if isinstance(value, datetime.date):
        return {"date": value.isoformat()}
    return {"json": value} if isinstance(value, dict | list) else value


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "bytes":
            return base64.b64decode(content)
        case "datetime":
            return datetime.datetime.fromisoformat(content)
        case "date":
            return datetime.date.fromisoformat(content)
        case _:
            return content
