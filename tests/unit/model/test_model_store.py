"""The service's SQL records, and the schema that the migrations make."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from concilia_kit import database
from concilia_kit.wire.models import Artifact, ModelVersion
from concilia_kit.wire.training import Architecture
from concilia_model.store import MIGRATIONS, Removal, Removed, Store
from concilia_model.tables import metadata
from eth_utils.address import to_checksum_address

ALICE, BOB = "0x" + "1" * 40, "0x" + "2" * 40
ONE, TWO = "a" * 64, "b" * 64


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = database.engine(f"sqlite:///{tmp_path / 'model.db'}")
    database.migrate(made, MIGRATIONS)
    yield made
    made.dispose()


@pytest.fixture
def store(engine: sa.Engine) -> Store:
    return Store(engine)


def artifact(digest: str, owner: str, origin: str | None = None) -> Artifact:
    return Artifact(digest=digest, size=2**40, owner=owner, tensors=3, origin=origin)


def version(job: str, digest: str, second: int, side: int = 64) -> ModelVersion:
    return ModelVersion(
        digest=digest,
        job=job,
        architecture=Architecture.RESNET18,
        image_size=side,
        initial=TWO,
        initial_origin="random",
        rounds=1,
        contributors=(ALICE,),
        lineage=(digest,),
        published_at=datetime.fromtimestamp(second, UTC),
    )


def test_migrations_make_the_tables_that_the_code_expects(engine: sa.Engine) -> None:
    database.migrate(engine, MIGRATIONS)  # again is harmless
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_what_was_there_before_is_as_old_as_it_was(tmp_path: Path) -> None:
    made = database.engine(f"sqlite:///{tmp_path / 'old.db'}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with made.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(
            sa.text(
                "INSERT INTO artifacts (digest, size, owner, tensors, created_at) VALUES (:digest, 7, :owner, 1, 5.0)"
            ),
            {"digest": ONE, "owner": ALICE},
        )
        connection.execute(sa.text("INSERT INTO artifact_owners VALUES (:d, :o, false)"), {"d": ONE, "o": ALICE})
    database.migrate(made, MIGRATIONS)
    store = Store(made)
    assert (store.brought_at(ONE), store.checked_at(ONE), store.removed(ONE)) == (5.0, 5.0, None)
    assert store.brought(ONE, ALICE)
    with made.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
    database.migrate(made, MIGRATIONS)
    assert store.brought(ONE, ALICE)
    made.dispose()


def test_a_removal_gives_way_to_whoever_brings_the_bytes(store: Store) -> None:
    store.record(artifact(ONE, ALICE), shared=False, now=1.0)
    removed = Removed(9.0, Removal.POLICY)
    store.bring(ONE, 5.0)
    assert not store.remove(ONE, removed, brought_at=4.0)
    assert store.remove(ONE, removed, brought_at=5.0)
    assert not store.remove(ONE, Removed(10.0, Removal.CORRUPT), brought_at=5.0)  # the first reason stays
    assert (store.removed(ONE), store.removed_amount()) == (removed, (1, 2**40))
    assert store.still_removed(ONE, 5.0)
    store.bring(ONE, 6.0)
    assert not store.still_removed(ONE, 5.0)
    assert store.artifact(ONE) == artifact(ONE, ALICE)  # the record never goes
    assert store.record(artifact(ONE, BOB), shared=False, now=7.0) == (artifact(ONE, ALICE), False)
    assert (store.removed(ONE), store.brought_at(ONE), store.removed_amount()) == (None, 7.0, (0, 0))


def test_the_first_record_stays_and_owners_add_up(store: Store) -> None:
    assert store.artifact(ONE) is None
    assert store.record(artifact(ONE, ALICE), shared=False, now=1.0) == (artifact(ONE, ALICE), True)
    assert store.record(artifact(ONE, BOB, "mine"), shared=False, now=2.0) == (artifact(ONE, ALICE), False)
    assert store.artifact(ONE) == artifact(ONE, ALICE)
    assert (store.brought(ONE, ALICE), store.brought(ONE, BOB), store.brought(TWO, BOB)) == (True, True, False)
    assert not store.shared(ONE)


def test_sharing_is_never_taken_back(store: Store) -> None:
    store.record(artifact(ONE, ALICE), shared=False, now=1.0)
    store.record(artifact(ONE, ALICE), shared=True, now=2.0)
    store.record(artifact(ONE, ALICE), shared=False, now=3.0)
    assert store.shared(ONE)


def test_records_at_the_same_time(store: Store) -> None:
    owners = [to_checksum_address(f"0x{n:040x}") for n in range(1, 25)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda who: store.record(artifact(ONE, who), shared=False, now=1.0), owners))
    assert [new for _, new in found].count(True) == 1
    assert len({record.owner for record, _ in found}) == 1
    assert all(store.brought(ONE, owner) for owner in owners)


def test_versions_newest_first_and_one_a_job(store: Store) -> None:
    for digest in (ONE, TWO):
        store.record(artifact(digest, ALICE), shared=True, now=1.0)
    assert store.latest() is None
    first, second = version("1" * 64, ONE, 10), version("2" * 64, TWO, 20)
    assert store.register(second) == second
    assert store.register(first) == first
    assert store.register(version("1" * 64, ONE, 99, side=128)) == first
    assert store.versions() == (second, first)
    assert store.latest() == second
    assert store.version(ONE) == first
    assert store.version("c" * 64) is None
    same_bytes = version("3" * 64, ONE, 30)
    store.register(same_bytes)
    assert store.version(ONE) == same_bytes


def test_a_version_needs_its_artifact(store: Store) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        store.register(version("1" * 64, ONE, 10))
    assert store.versions() == ()
