-- One row: who leads, fenced by an epoch that only grows.
CREATE TABLE lease (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    epoch  INTEGER NOT NULL,
    leader TEXT    NOT NULL,
    since  TEXT    NOT NULL
);
INSERT INTO lease VALUES (1, 0, '', '');

-- One row a rollback. `summary` is a projection of its events, written in the same transaction as they are.
CREATE TABLE rollbacks (
    id         TEXT PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE,
    running    INTEGER NOT NULL,
    summary    TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX rollbacks_running ON rollbacks (running) WHERE running = 1;

-- The journal. `hash` covers the previous event's hash, `seq` and `payload`: the audit chain.
CREATE TABLE events (
    rollback_id TEXT    NOT NULL REFERENCES rollbacks (id),
    seq         INTEGER NOT NULL,
    format      INTEGER NOT NULL,
    payload     TEXT    NOT NULL,
    prev_hash   TEXT    NOT NULL,
    hash        TEXT    NOT NULL,
    PRIMARY KEY (rollback_id, seq)
) WITHOUT ROWID;

-- What running rollbacks hold. The primary key is what keeps two of them off one component.
CREATE TABLE scope (
    host        TEXT NOT NULL,
    component   TEXT NOT NULL,
    rollback_id TEXT NOT NULL REFERENCES rollbacks (id),
    PRIMARY KEY (host, component)
) WITHOUT ROWID;
CREATE INDEX scope_rollback ON scope (rollback_id);

CREATE TABLE releases (
    name        TEXT PRIMARY KEY,
    recorded_at TEXT NOT NULL,
    document    TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE agents (
    name                  TEXT PRIMARY KEY,
    document              TEXT NOT NULL,
    ledger_generation     TEXT NOT NULL,
    -- When the coordinator noticed that the agent's ledger is a new one; empty: never.
    generation_changed_at TEXT NOT NULL
) WITHOUT ROWID;

-- Join tokens. Only their hash is kept.
CREATE TABLE tokens (
    hash        TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    created_by  TEXT NOT NULL,
    -- Unix seconds.
    expires_at  INTEGER NOT NULL,
    redeemed_at INTEGER
) WITHOUT ROWID;
