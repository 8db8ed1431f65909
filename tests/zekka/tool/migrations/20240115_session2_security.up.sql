CREATE TABLE new_feature_table (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner bigint NOT NULL REFERENCES users (id),
    secret text NOT NULL
);

ALTER TABLE users ADD COLUMN new_column text;
