ALTER TABLE deals ADD COLUMN stage text NOT NULL DEFAULT 'open';

CREATE TABLE deal_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    deal bigint NOT NULL REFERENCES deals (id),
    stage text NOT NULL,
    happened_at timestamptz NOT NULL DEFAULT now()
);
