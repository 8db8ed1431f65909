-- Small JSON that coordinators keep for each other: runbooks, holds, where hosts shall be, readiness.
CREATE TABLE documents (
    kind TEXT COLLATE "C" NOT NULL,
    key  TEXT COLLATE "C" NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (kind, key)
);
