CREATE INDEX CONCURRENTLY deals_stage ON deals (stage);
