"""A target follows its source's tables through every kind of change, by policy, without an operator, also when it is killed meanwhile.

Each kind has a table of its own, so that one pipeline goes through all of them; two sinks follow it by different policies.
"""

from __future__ import annotations

from typing import Any

from cdc import failpoints
from tests.e2e.pipeline import until
from tests.e2e.scene import Make, Scene, alter
from tests.servers import execute

# kind -> columns of its table, rows, what happens to it (@ is the table), what of it source and target have in common afterwards
KINDS = {
    "added": ("id int PRIMARY KEY, v text", "ALTER TABLE @ ADD w int; UPDATE @ SET w = id WHERE id > 5", "id, v, w"),
    "filled": ("id int PRIMARY KEY, v text", "ALTER TABLE @ ADD w int NOT NULL DEFAULT 7", "id, v, w"),
    "relaxed": (
        "id int PRIMARY KEY, v text NOT NULL",
        "ALTER TABLE @ ALTER v DROP NOT NULL; INSERT INTO @ VALUES (99, NULL)",
        "id, v",
    ),
    "widened": (
        "id int PRIMARY KEY, v int, s varchar(9)",
        "ALTER TABLE @ ALTER v TYPE bigint, ALTER s TYPE varchar(90); INSERT INTO @ VALUES (99, 5000000000, repeat('x', 90))",
        "id, v, s",
    ),
    "narrowed": (
        "id int PRIMARY KEY, v text",
        "UPDATE @ SET v = '5'; ALTER TABLE @ ALTER v TYPE int USING v::int; INSERT INTO @ VALUES (99, 6)",
        "id, v",
    ),
    "other": (
        "id int PRIMARY KEY, v bytea",
        "ALTER TABLE @ ALTER v TYPE uuid USING '01234567-89ab-cdef-0123-456789abcdef'; INSERT INTO @ (id) VALUES (99)",
        "id, v",
    ),
    "dropped": (
        "id int PRIMARY KEY, v text NOT NULL, w text",
        "ALTER TABLE @ DROP v; INSERT INTO @ VALUES (99, 'x')",
        "id, w",
    ),
    "renamed": (
        "id int PRIMARY KEY, v text NOT NULL",
        "ALTER TABLE @ RENAME v TO w; DELETE FROM @ WHERE id < 3",
        "id, w",
    ),
    "rekeyed": (
        "id int PRIMARY KEY, v text NOT NULL",
        "ALTER TABLE @ DROP CONSTRAINT @_pkey, ADD PRIMARY KEY (v); "
        "INSERT INTO @ VALUES (9, 'twin of id 9'); DELETE FROM @ WHERE id = 1",
        "id, v",
    ),
    "key_renamed": (
        "id int PRIMARY KEY, v text",
        "ALTER TABLE @ RENAME id TO nr; INSERT INTO @ VALUES (99, 'x')",
        "nr, v",
    ),
    "keyless": (
        "id int PRIMARY KEY, v text",
        "ALTER TABLE @ REPLICA IDENTITY FULL; ALTER TABLE @ DROP CONSTRAINT @_pkey; INSERT INTO @ SELECT * FROM @; DELETE FROM @"
        " WHERE id = 1",
        "id, v",
    ),
    "keyed": (
        "id int, v text",
        "ALTER TABLE @ ADD PRIMARY KEY (id); ALTER TABLE @ REPLICA IDENTITY DEFAULT; UPDATE @ SET v = 'x' WHERE id < 3",
        "id, v",
    ),
    "again": (
        "id int PRIMARY KEY, v text NOT NULL",
        "DROP TABLE @; CREATE TABLE @ (nr bigint, v int, PRIMARY KEY (nr, v)); INSERT INTO @ VALUES (1, 2), (1, 3)",
        "nr, v",
    ),
}
SCHEMA = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE moved (id int PRIMARY KEY); INSERT INTO moved VALUES (1);"


def schema(kinds: dict[str, tuple[str, str, str]]) -> str:
    text = SCHEMA
    for kind, (columns, _, _) in kinds.items():
        value = "'\\x61'" if "bytea" in columns else "i" if "v int" in columns else "'row ' || i"
        names = [column.split()[0] for column in columns.split(", ")[:2]]
        text += f"CREATE TABLE {kind} ({columns}); INSERT INTO {kind} ({', '.join(names)})"
        text += f" SELECT i, {value} FROM generate_series(1, 20) i;"
    return text + "ALTER TABLE keyed REPLICA IDENTITY FULL;" if "keyed" in kinds else text


def following(make: Make, kinds: dict[str, tuple[str, str, str]], **policies: Any) -> Scene:
    """A live pipeline with these tables and two sinks into one database; `other` has these policies."""
    scene = make(schema=schema(kinds))
    scene.configure(
        sinks={
            "main": scene.sink_url,
            "other": {"url": scene.sink_url, "rename": {r"public\.(.*)": r"other.\1"}, "evolution": policies},
        }
    )
    scene.pairs = [(table, f"{place}.{table}") for table in ("t", *kinds) for place in ("public", "other")]
    scene.live()
    return scene


def change(scene: Scene, kind: str) -> None:
    for statement in KINDS[kind][1].split("; "):
        scene.source.execute(statement.replace("@", kind))
    picked = f"(SELECT {KINDS[kind][2]} FROM {{}}.{kind})"
    for place in ("public", "other"):
        scene.pairs.remove((kind, f"{place}.{kind}"))
        scene.pairs.append((picked.format("public"), picked.format(place)))


def columns(scene: Scene, table: str) -> dict[str, str]:
    found = execute(
        scene.target.admin_url,
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        f" WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    )
    return dict(found)


def key(scene: Scene, table: str) -> str | None:
    found = execute(
        scene.target.admin_url,
        f"SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = '{table}'::regclass AND contype = 'p'",
    )
    return found[0][0] if found else None


def test_every_kind_by_two_policies(make: Make) -> None:
    scene = following(make, KINDS, dropped="drop")
    for kind in KINDS:
        change(scene, kind)
    scene.source.execute("ALTER TABLE moved RENAME TO elsewhere; INSERT INTO elsewhere VALUES (2)")
    scene.pairs += [("elsewhere", "public.elsewhere"), ("elsewhere", "other.elsewhere")]
    scene.arrives(60)
    # Every load has ended: the keys are the source's.
    until(lambda: key(scene, "other.again") == "PRIMARY KEY (nr, v)", 20, "the end of the loads")
    assert (1,) in execute(scene.target.admin_url, "SELECT * FROM public.moved")
    assert columns(scene, "public.widened") == {"id": "integer", "v": "bigint", "s": "character varying(90)"}
    assert columns(scene, "public.narrowed")["v"] == columns(scene, "public.other")["v"] == "text"
    assert list(columns(scene, "public.dropped")) == ["id", "v", "w"]
    assert list(columns(scene, "other.dropped")) == ["id", "w"]
    assert list(columns(scene, "public.renamed")) == ["id", "v", "w"]
    assert list(columns(scene, "other.renamed")) == ["id", "w"]
    assert key(scene, "public.rekeyed") == "PRIMARY KEY (v)"
    assert key(scene, "public.key_renamed") == "PRIMARY KEY (nr)"
    assert key(scene, "public.keyless") is None
    assert key(scene, "public.keyed") == "PRIMARY KEY (id)"


def test_a_sink_that_is_killed_as_it_follows(make: Make) -> None:
    """All that happened is one transaction of the sink, and what each kill leaves of it is nothing or everything."""
    kinds = {kind: KINDS[kind] for kind in ("widened", "dropped", "rekeyed", "again")}
    scene = following(make, kinds, dropped="drop")
    scene.pipeline.kill("other")
    for kind in kinds:
        change(scene, kind)
    scene.write()
    names = [*failpoints.EVOLUTION_NAMES, *(name for name in failpoints.NAMES if name.startswith("sink."))]
    for failpoint in [*(f"{name}:1" for name in names), "sink.evolved:2", "sink.merged:2"]:
        scene.pipeline.start("other", failpoint)
        until(lambda: scene.pipeline.processes["other"].poll() is not None or scene.equal(), 40, failpoint)
        if scene.pipeline.processes["other"].poll() is None:
            break
        assert scene.pipeline.wait("other", 1) == -9, scene.pipeline.tail("other")
    assert "failpoint sink.evolved" in scene.pipeline.tail("other", 50_000)
    assert "failpoint sink.committed" in scene.pipeline.tail("other", 50_000)
    scene.pipeline.start_all()
    scene.arrives(40)


def test_one_sink_stops_and_the_other_goes_on(make: Make) -> None:
    kinds = {kind: KINDS[kind] for kind in ("added", "dropped")}
    scene = following(make, kinds, added="stop", dropped="stop")
    for kind, by_hand in (("added", "ADD COLUMN"), ("dropped", "DROP COLUMN")):
        change(scene, kind)
        scene.write()
        stopped = scene.stops("other", "CDC-TGT-126", f"other.{kind}")
        assert by_hand in stopped.remedy.replace("\n    ", " ")
        statement = " ".join(stopped.remedy.split())
        alter(scene.target, statement[: statement.index(";")])
        scene.pipeline.start("other")
        scene.arrives()


def test_a_view_in_the_way_is_named_and_made_again(make: Make) -> None:
    scene = following(make, {"widened": KINDS["widened"]})
    alter(scene.target, 'CREATE VIEW "Report" AS SELECT id, v FROM other.widened')
    change(scene, "widened")
    stopped = scene.stops("other", "CDC-TGT-125", 'view public."Report" uses column v')
    assert columns(scene, "other.widened")["v"] == "integer"
    remedy = " ".join(stopped.remedy.split())
    keep, rest = remedy.split("(", 1)[1].split("), ", 1)
    ((definition,),) = execute(scene.target.admin_url, keep)
    alter(scene.target, rest.split(";")[0])
    scene.pipeline.start("other")
    scene.arrives()
    alter(scene.target, f'CREATE VIEW "Report" AS {definition}')
    assert execute(scene.target.admin_url, 'SELECT v FROM "Report" WHERE id = 99') == [(5_000_000_000,)]
