-- A store of the embedded kind with schema 3, as that version of the program left it. Never changed.
PRAGMA foreign_keys = OFF;
CREATE TABLE _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
);
INSERT INTO "_sqlx_migrations" VALUES(1,'initial','2026-11-20 12:00:00',1,X'C2AB4E8C0D0CA6DD499D3D8473336F7591C800333B0422B071874F5548241CFCDD803F465BB46D5AEFDF8768B70BB5E1',1000);
INSERT INTO "_sqlx_migrations" VALUES(2,'lease endpoint','2026-11-20 12:00:00',1,X'C03EDCE07CCE570B30C692DE9922A2CBD65C591FBE2ECBC9EE736E1A2BB0A49DB48222D727D5BC48810AF292107020AB',1000);
INSERT INTO "_sqlx_migrations" VALUES(3,'documents','2026-11-22 15:07:41',1,X'884B7F42EF0938380FF7BB6A8499ED02C905F73FB5A6AF875C313CDA1DAEEF4D5D8455CDE1B6F1FAE6425A880010AC7B',1000);
CREATE TABLE agents (
    name                  TEXT PRIMARY KEY,
    document              TEXT NOT NULL,
    ledger_generation     TEXT NOT NULL,
    -- When the coordinator noticed that the agent's ledger is a new one; empty: never.
    generation_changed_at TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO "agents" VALUES('app-1','{"name":"app-1","address":"10.0.0.11:7444","version":"0.1.0","ledger_generation":"g1","components":[],"labels":{},"registered_at":"2026-09-21T14:13:20Z","certificate_expires":"2026-09-21T14:13:21Z"}','g1','');
CREATE TABLE documents (
    kind TEXT NOT NULL,
    key  TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;
INSERT INTO "documents" VALUES('hold','v2','{"by":"admin"}');
CREATE TABLE events (
    rollback_id TEXT    NOT NULL REFERENCES rollbacks (id),
    seq         INTEGER NOT NULL,
    format      INTEGER NOT NULL,
    payload     TEXT    NOT NULL,
    prev_hash   TEXT    NOT NULL,
    hash        TEXT    NOT NULL,
    PRIMARY KEY (rollback_id, seq)
) WITHOUT ROWID;
INSERT INTO "events" VALUES('r0',1,1,'{"kind":"phase_started","at":"2026-09-21T14:13:20Z","phase":"stage"}','','9253371049c62f27f58133a04df0dff79ef483952c5636e8b7e07debb1dece4e');
INSERT INTO "events" VALUES('r0',2,1,'{"kind":"phase_started","at":"2026-09-21T14:13:21Z","phase":"stage"}','9253371049c62f27f58133a04df0dff79ef483952c5636e8b7e07debb1dece4e','185707b99ec8eabdb818a15ad4d95237b1b1e73ff89fe5b0ae05bf46e25d28ea');
INSERT INTO "events" VALUES('r0',3,1,'{"kind":"phase_started","at":"2026-09-21T14:13:20Z","phase":"stage"}','185707b99ec8eabdb818a15ad4d95237b1b1e73ff89fe5b0ae05bf46e25d28ea','418b1658b449d2ee7a5f7ca93201672de59f7874356e861bdceb24e526cb3618');
INSERT INTO "events" VALUES('r0',4,1,'{"kind":"phase_started","at":"2026-09-21T14:13:21Z","phase":"stage"}','418b1658b449d2ee7a5f7ca93201672de59f7874356e861bdceb24e526cb3618','9448dcb270204f4de952fd5244ef4cbbdd2267b707cb1ebfe8bb6447fddb2379');
INSERT INTO "events" VALUES('r0',5,1,'{"kind":"phase_started","at":"2026-09-21T14:13:22Z","phase":"stage"}','9448dcb270204f4de952fd5244ef4cbbdd2267b707cb1ebfe8bb6447fddb2379','5f7b212af5183de6d44c49d1a31baa3b6c9d3884cbe0853a9fba0abe0552bb28');
INSERT INTO "events" VALUES('r1',1,1,'{"kind":"phase_started","at":"2026-09-21T14:13:20Z","phase":"stage"}','','9253371049c62f27f58133a04df0dff79ef483952c5636e8b7e07debb1dece4e');
INSERT INTO "events" VALUES('r1',2,1,'{"kind":"phase_started","at":"2026-09-21T14:13:21Z","phase":"stage"}','9253371049c62f27f58133a04df0dff79ef483952c5636e8b7e07debb1dece4e','185707b99ec8eabdb818a15ad4d95237b1b1e73ff89fe5b0ae05bf46e25d28ea');
CREATE TABLE lease (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    epoch  INTEGER NOT NULL,
    leader TEXT    NOT NULL,
    since  TEXT    NOT NULL
, endpoint TEXT NOT NULL DEFAULT '');
INSERT INTO "lease" VALUES(1,7,'c1','2026-11-22T12:32:08.202191885Z','10.0.0.1:7443');
CREATE TABLE releases (
    name        TEXT PRIMARY KEY,
    recorded_at TEXT NOT NULL,
    document    TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO "releases" VALUES('v1','2026-09-21T14:13:21Z','{"name":"v1","commit":"","notes":"","recorded_at":"2026-09-21T14:13:21Z","recorded_by":"admin","entries":[],"stable":true}');
INSERT INTO "releases" VALUES('v2','2026-09-21T14:13:22Z','{"name":"v2","commit":"","notes":"","recorded_at":"2026-09-21T14:13:22Z","recorded_by":"admin","entries":[],"stable":false}');
CREATE TABLE rollbacks (
    id         TEXT PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    running    INTEGER NOT NULL,
    summary    TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO "rollbacks" VALUES('r0','q0',0,'{"id":"r0"}');
INSERT INTO "rollbacks" VALUES('r1','q1',1,'{"id":"r1"}');
CREATE TABLE scope (
    host        TEXT NOT NULL,
    component   TEXT NOT NULL,
    rollback_id TEXT NOT NULL REFERENCES rollbacks (id),
    PRIMARY KEY (host, component)
) WITHOUT ROWID;
INSERT INTO "scope" VALUES('app-1','api','r1');
CREATE TABLE tokens (
    hash        TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    created_by  TEXT NOT NULL,
    -- Unix seconds.
    expires_at  INTEGER NOT NULL,
    redeemed_at INTEGER
) WITHOUT ROWID;
INSERT INTO "tokens" VALUES('h0','app-8','admin',1790003600,1790000000);
INSERT INTO "tokens" VALUES('h1','app-9','admin',1790003600,NULL);
CREATE INDEX rollbacks_running ON rollbacks (running) WHERE running = 1;
CREATE INDEX scope_rollback ON scope (rollback_id);
