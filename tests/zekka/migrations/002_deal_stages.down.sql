DROP TABLE deal_events;

ALTER TABLE deals DROP COLUMN stage;
