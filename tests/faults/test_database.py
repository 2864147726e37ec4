"""The database under MLflow is replaced, killed and upgraded: a real PostgreSQL, a real `mlflow server`."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy
from sqlalchemy import text

from distml.errors import TrackingError
from distml.tracking import database
from tests.manifests.render import KUBERAY
from tests.postgres import PASSWORD, Mlflow, Postgres, postgres

pytestmark = [pytest.mark.fault, pytest.mark.timeout(400)]

GONE_S = 10.0
"""Far below the grace period of 60 s; PostgreSQL needs a checkpoint."""


@pytest.fixture
def server() -> Iterator[Postgres]:
    with postgres() as result:
        yield result


@pytest.fixture
def pods(tmp_path: Path, server: Postgres) -> Iterator[Callable[[str], Mlflow]]:
    made: list[Mlflow] = []

    def pod(name: str) -> Mlflow:
        made.append(Mlflow(tmp_path / name, server.uri))
        return made[-1]

    try:
        yield pod
    finally:
        for item in made:
            item.kill()


def connection(server: Postgres) -> psycopg2.extensions.connection:
    """A connection as MLflow's pool keeps it: open and idle."""
    opened = psycopg2.connect(
        host="127.0.0.1", port=server.port, user="mlflow", password=PASSWORD, dbname="mlflow"
    )
    opened.cursor().execute("SELECT 1")
    opened.rollback()
    return opened


def stop_signal() -> signal.Signals:
    """The stop signal of our image."""
    dockerfile = (KUBERAY / "postgres" / "Dockerfile").read_text()
    (name,) = re.findall(r"^STOPSIGNAL (\S+)$", dockerfile, re.MULTILINE)
    return signal.Signals[name]


def test_a_replaced_pod_starts_on_a_volume_with_group_bits(server: Postgres) -> None:
    pooled = connection(server)
    with pooled, pooled.cursor() as cursor:
        cursor.execute("CREATE TABLE kept AS SELECT 7 AS seven")
    pooled.close()
    server.kill()
    server.grow_group_bits()
    assert (server.volume / "pgdata").stat().st_mode & 0o070 == 0o070
    server.start()
    again = connection(server)
    with again.cursor() as cursor:
        cursor.execute("SELECT seven FROM kept")
        assert cursor.fetchall() == [(7,)]
    again.close()


@pytest.mark.parametrize("by", ["the image's signal", "the hook, whatever the image's signal"])
def test_it_ends_in_seconds_while_connections_are_pooled(server: Postgres, by: str) -> None:
    pooled = connection(server)
    began = time.monotonic()
    if by.startswith("the hook"):
        server.hook()
        code = server.end(signal.SIGTERM, GONE_S)
    else:
        code = server.end(stop_signal(), GONE_S)
    assert (code, time.monotonic() - began < GONE_S) == (0, True)
    assert "received smart shutdown" not in server.log()
    assert "database system is shut down" in server.log()
    pooled.close()


def test_a_first_start_that_was_cut_off_begins_again(server: Postgres) -> None:
    server.kill()
    (server.volume / "pgdata").rename(server.volume / "pgdata.new")
    server.start()
    connection(server).close()
    assert not (server.volume / "pgdata.new").exists()


def test_mlflow_recovers_when_its_database_returns(server: Postgres, pods: Callable[[str], Mlflow]) -> None:
    from mlflow import MlflowClient

    pod = pods("one")
    pod.start()
    pod.healthy(150)
    client = MlflowClient(pod.url, pod.url)
    experiment = client.create_experiment("before")
    for how in ("stopped", "killed"):
        if how == "stopped":
            server.hook()
            server.process.wait(GONE_S)
        else:
            server.kill()
        server.grow_group_bits()
        server.start()
        # The very first request goes over a connection that the pool kept from before.
        assert client.get_experiment(experiment).name == "before", how
        assert client.create_run(experiment).info.status == "RUNNING", how
    assert pod.process is not None
    assert pod.process.poll() is None


def test_two_servers_start_at_once_on_an_empty_database(
    server: Postgres, pods: Callable[[str], Mlflow]
) -> None:
    from mlflow import MlflowClient

    both = [pods("one"), pods("two")]
    for pod in both:
        pod.start()
    for pod in both:
        pod.healthy(200)
    clients = [MlflowClient(pod.url, pod.url) for pod in both]
    experiment = clients[0].create_experiment("shared")
    assert clients[1].get_experiment(experiment).name == "shared"
    assert [pod.process.poll() for pod in both if pod.process] == [None, None], "none was started again"
    assert "UniqueViolation" not in server.log()
    assert "already exists" not in server.log()
    assert PASSWORD not in "".join(pod.log() for pod in both)


def test_concurrent_servers_create_the_tables_once(server: Postgres) -> None:
    with ThreadPoolExecutor(3) as together:
        list(together.map(lambda _: database.upgrade(server.uri, 120), range(3)))
    engine = sqlalchemy.create_engine(server.uri)
    try:
        with engine.begin() as once:
            version = once.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
            assert len(version) == 1
            once.execute(text("INSERT INTO experiments (name, lifecycle_stage) VALUES ('kept', 'active')"))
        database.upgrade(server.uri, 120)
        with engine.begin() as again:
            assert again.execute(text("SELECT count(*) FROM experiments WHERE name = 'kept'")).scalar() == 1
            again.execute(text("UPDATE alembic_version SET version_num = 'f00000000000'"))
        with pytest.raises(TrackingError, match="newer MLflow") as refused:
            database.upgrade(server.uri, 120)
        assert PASSWORD not in str(refused.value)
    finally:
        engine.dispose()


def test_a_migration_lock_that_times_out_is_an_error_message(server: Postgres) -> None:
    holder = connection(server)
    with holder, holder.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (database._LOCK,))
        with pytest.raises(TrackingError, match="lock timeout") as refused:
            database.upgrade(server.uri, 1)
    holder.close()
    assert PASSWORD not in str(refused.value)


def test_an_unreachable_database_is_an_error_message(server: Postgres) -> None:
    server.kill()
    with pytest.raises(TrackingError, match=r"has not responded for 1 s: .*refused") as refused:
        database.upgrade(server.uri, 1)
    assert PASSWORD not in str(refused.value)


def test_rows_survive_a_dump_from_postgresql_to_sqlite_and_back(server: Postgres, tmp_path: Path) -> None:
    import mlflow

    database.upgrade(server.uri)
    client = mlflow.MlflowClient(server.uri, server.uri)
    run = client.create_run(client.create_experiment("first", artifact_location="/old/1")).info
    client.log_metric(run.run_id, "loss", 0.5, step=2)
    client.create_registered_model("pets")
    client.create_model_version("pets", "/old/1/export", run.run_id, tags={"sha256": "0" * 64})
    client.set_registered_model_alias("pets", "champion", "1")
    dumped = database.dump(server.uri, tmp_path / "1")
    assert dumped.champions == {"pets": (1, "0" * 64)}
    embedded = f"sqlite:///{tmp_path / 'mlflow.db'}"
    loaded = database.load(embedded, tmp_path / "1", lambda uri: uri.replace("/old", "/new"))
    assert (loaded.rows, loaded.champions) == (dumped.rows, dumped.champions)
    assert loaded.places == sorted([f"/new/1/{run.run_id}/artifacts", "/new/1/export"])
    database.dump(embedded, tmp_path / "2")
    with contextlib.closing(connection(server)) as open_connection:
        open_connection.autocommit = True
        open_connection.cursor().execute("CREATE DATABASE second")
    second = server.uri.replace("/mlflow?", "/second?")
    assert database.load(second, tmp_path / "2", lambda uri: uri).rows == dumped.rows
    with pytest.raises(TrackingError, match="holds 1 runs, 1 registered_models already"):
        database.load(second, tmp_path / "2", lambda uri: uri)
    again = mlflow.MlflowClient(second, second)
    assert again.get_metric_history(run.run_id, "loss")[0].value == 0.5
    assert again.create_experiment("next") not in ("0", "1")  # PostgreSQL counts on
