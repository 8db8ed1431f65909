-- The agent's ledger: what this host was told to do, and what came of it. Instants are milliseconds since 1970, UTC.

CREATE TABLE meta (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    -- Made with the file. A coordinator that sees another one knows that the ledger was lost.
    generation TEXT NOT NULL,
    -- The highest fencing number seen, and whose it is. NULL until the first leader spoke.
    max_epoch  INTEGER,
    leader_id  TEXT,
    CHECK ((max_epoch IS NULL) = (leader_id IS NULL))
) STRICT;

CREATE TABLE steps (
    rollback_id    TEXT NOT NULL,
    step_id        TEXT NOT NULL,
    attempt        INTEGER NOT NULL,
    -- SHA-256 over component, action, from and to.
    args_digest    BLOB NOT NULL,
    -- rollback.v1.ExecuteRequest: enough to probe the step after a restart.
    request        BLOB NOT NULL,
    -- 'running': intent without a result. 'interrupted': the agent was stopped inside it and nothing had taken effect;
    -- the same key runs again when it is asked for. 'ended': `outcome` says how.
    state          TEXT NOT NULL CHECK (state IN ('running', 'interrupted', 'ended')),
    intent_at      INTEGER NOT NULL,
    -- The last interruption, and how many there were. They stay when the step is run again.
    interrupted_at INTEGER,
    interruptions  INTEGER NOT NULL DEFAULT 0,
    -- rollback.v1.Outcome
    outcome        BLOB,
    ended_at       INTEGER,
    PRIMARY KEY (rollback_id, step_id, attempt),
    CHECK ((state = 'ended') = (outcome IS NOT NULL)),
    CHECK ((state = 'ended') = (ended_at IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX steps_running ON steps (state) WHERE state = 'running';
