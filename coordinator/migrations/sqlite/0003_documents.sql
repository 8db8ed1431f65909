-- Small JSON that coordinators keep for each other: runbooks, holds, where hosts shall be, readiness.
CREATE TABLE documents (
    kind TEXT NOT NULL,
    key  TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;
