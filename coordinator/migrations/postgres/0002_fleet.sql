-- Whose fleet this store is, said by the first coordinator: another fleet's must not lead here. `ca`: SHA-256 of every CA
-- certificate that its coordinators trust or have trusted, sorted, separated by blanks.
CREATE TABLE fleet (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    trust_domain TEXT NOT NULL,
    ca           TEXT NOT NULL
);
