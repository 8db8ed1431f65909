CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    actor bigint NOT NULL REFERENCES users (id),
    what text NOT NULL
);

CREATE INDEX audit_actor ON audit (actor);
