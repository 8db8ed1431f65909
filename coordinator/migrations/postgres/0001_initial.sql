-- What people sort by is compared byte by byte, whatever the database's collation is.

-- One row: who leads, fenced by an epoch that only grows. Every append holds it FOR SHARE until it has committed.
CREATE TABLE lease (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    epoch      BIGINT NOT NULL,
    leader     TEXT NOT NULL,
    endpoint   TEXT NOT NULL,
    since      TIMESTAMPTZ NOT NULL,
    -- By this database's clock; nobody else's counts.
    held_until TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 20);
INSERT INTO lease VALUES (1, 0, '', '', to_timestamp(0), to_timestamp(0));

-- One row a rollback. `summary` is a projection of its events, written in the same transaction as they are.
CREATE TABLE rollbacks (
    id         TEXT COLLATE "C" PRIMARY KEY,
    request_id TEXT COLLATE "C" NOT NULL UNIQUE,
    running    BOOLEAN NOT NULL,
    summary    TEXT NOT NULL
);
CREATE INDEX rollbacks_running ON rollbacks (id) WHERE running;

-- The journal. `hash` covers the previous event's hash, `seq` and `payload`: the audit chain.
CREATE TABLE events (
    rollback_id TEXT COLLATE "C" NOT NULL REFERENCES rollbacks (id),
    seq         BIGINT NOT NULL,
    format      BIGINT NOT NULL,
    payload     TEXT NOT NULL,
    prev_hash   TEXT NOT NULL,
    hash        TEXT NOT NULL,
    PRIMARY KEY (rollback_id, seq)
);

-- What running rollbacks hold. The primary key is what keeps two of them off one component.
CREATE TABLE scope (
    host        TEXT COLLATE "C" NOT NULL,
    component   TEXT COLLATE "C" NOT NULL,
    rollback_id TEXT COLLATE "C" NOT NULL REFERENCES rollbacks (id),
    PRIMARY KEY (host, component)
);
CREATE INDEX scope_rollback ON scope (rollback_id);

CREATE TABLE releases (
    name     TEXT COLLATE "C" PRIMARY KEY,
    -- Overrides what the document says, which is as it was recorded.
    stable   BOOLEAN NOT NULL,
    document TEXT NOT NULL
);

CREATE TABLE agents (
    name              TEXT COLLATE "C" PRIMARY KEY,
    ledger_generation TEXT NOT NULL,
    document          TEXT NOT NULL
);

-- Join tokens. Only their hash is kept.
CREATE TABLE tokens (
    hash        TEXT COLLATE "C" PRIMARY KEY,
    name        TEXT NOT NULL,
    created_by  TEXT NOT NULL,
    -- Unix seconds.
    expires_at  BIGINT NOT NULL,
    redeemed_at BIGINT
);
