-- A store of schema 2 in PostgreSQL, as that version of the program left it. Never changed.
CREATE TABLE public._sqlx_migrations (
    version bigint NOT NULL,
    description text NOT NULL,
    installed_on timestamp with time zone DEFAULT now() NOT NULL,
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);

CREATE TABLE public.agents (
    name text NOT NULL COLLATE pg_catalog."C",
    ledger_generation text NOT NULL,
    document text NOT NULL
);

CREATE TABLE public.events (
    rollback_id text NOT NULL COLLATE pg_catalog."C",
    seq bigint NOT NULL,
    format bigint NOT NULL,
    payload text NOT NULL,
    prev_hash text NOT NULL,
    hash text NOT NULL
);

CREATE TABLE public.fleet (
    id integer NOT NULL,
    trust_domain text NOT NULL,
    ca text NOT NULL,
    CONSTRAINT fleet_id_check CHECK ((id = 1))
);

CREATE TABLE public.lease (
    id integer NOT NULL,
    epoch bigint NOT NULL,
    leader text NOT NULL,
    endpoint text NOT NULL,
    since timestamp with time zone NOT NULL,
    held_until timestamp with time zone NOT NULL,
    CONSTRAINT lease_id_check CHECK ((id = 1))
)
WITH (fillfactor='20');

CREATE TABLE public.releases (
    name text NOT NULL COLLATE pg_catalog."C",
    stable boolean NOT NULL,
    document text NOT NULL
);

CREATE TABLE public.rollbacks (
    id text NOT NULL COLLATE pg_catalog."C",
    request_id text NOT NULL COLLATE pg_catalog."C",
    running boolean NOT NULL,
    summary text NOT NULL
);

CREATE TABLE public.scope (
    host text NOT NULL COLLATE pg_catalog."C",
    component text NOT NULL COLLATE pg_catalog."C",
    rollback_id text NOT NULL COLLATE pg_catalog."C"
);

CREATE TABLE public.tokens (
    hash text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL,
    created_by text NOT NULL,
    expires_at bigint NOT NULL,
    redeemed_at bigint
);

INSERT INTO public._sqlx_migrations VALUES
	(1, 'initial', '2026-11-22 12:32:08.087013+00', true, '\x182b3a2615077904d1c98c54cab992f91e11c439518aa6121c33900ecea50d239da37fb5f785fb6058cc7120f6a0d943', -1),
	(2, 'fleet', '2026-11-22 15:07:41.512306+00', true, '\x56ab80136d4960b3dd959add37249ae6f565dd6220090aadb27f1f9ea11deb9e25eab6fc7f2a2e2defdab6e5174258d9', -1);

INSERT INTO public.agents VALUES
	('app-1', 'g1', '{"name":"app-1","address":"10.0.0.11:7444","version":"0.1.0","ledger_generation":"g1","components":[],"labels":{},"registered_at":"2026-09-21T14:13:20Z","certificate_expires":"2026-09-21T14:13:21Z"}');

INSERT INTO public.events VALUES
	('r0', 1, 1, '{"kind":"phase_started","at":"2026-09-21T14:13:20Z","phase":"stage"}', '', '9253371049c62f27f58133a04df0dff79ef483952c5636e8b7e07debb1dece4e'),
	('r0', 2, 1, '{"kind":"phase_started","at":"2026-09-21T14:13:21Z","phase":"stage"}', '9253371049c62f27f58133a04df0dff79ef483952c5636e8b7e07debb1dece4e', '185707b99ec8eabdb818a15ad4d95237b1b1e73ff89fe5b0ae05bf46e25d28ea'),
	('r0', 3, 1, '{"kind":"phase_started","at":"2026-09-21T14:13:20Z","phase":"stage"}', '185707b99ec8eabdb818a15ad4d95237b1b1e73ff89fe5b0ae05bf46e25d28ea', '418b1658b449d2ee7a5f7ca93201672de59f7874356e861bdceb24e526cb3618'),
	('r0', 4, 1, '{"kind":"phase_started","at":"2026-09-21T14:13:21Z","phase":"stage"}', '418b1658b449d2ee7a5f7ca93201672de59f7874356e861bdceb24e526cb3618', '9448dcb270204f4de952fd5244ef4cbbdd2267b707cb1ebfe8bb6447fddb2379'),
	('r0', 5, 1, '{"kind":"phase_started","at":"2026-09-21T14:13:22Z","phase":"stage"}', '9448dcb270204f4de952fd5244ef4cbbdd2267b707cb1ebfe8bb6447fddb2379', '5f7b212af5183de6d44c49d1a31baa3b6c9d3884cbe0853a9fba0abe0552bb28'),
	('r1', 1, 1, '{"kind":"phase_started","at":"2026-09-21T14:13:20Z","phase":"stage"}', '', '9253371049c62f27f58133a04df0dff79ef483952c5636e8b7e07debb1dece4e'),
	('r1', 2, 1, '{"kind":"phase_started","at":"2026-09-21T14:13:21Z","phase":"stage"}', '9253371049c62f27f58133a04df0dff79ef483952c5636e8b7e07debb1dece4e', '185707b99ec8eabdb818a15ad4d95237b1b1e73ff89fe5b0ae05bf46e25d28ea');

INSERT INTO public.fleet VALUES
	(1, 'rollback.local', 'aa bb');

INSERT INTO public.lease VALUES
	(1, 7, 'c1', '10.0.0.1:7443', '2026-11-22 12:32:08.132582+00', '1970-01-01 00:00:00+00');

INSERT INTO public.releases VALUES
	('v1', true, '{"name":"v1","commit":"","notes":"","recorded_at":"2026-09-21T14:13:21Z","recorded_by":"admin","entries":[],"stable":false}'),
	('v2', false, '{"name":"v2","commit":"","notes":"","recorded_at":"2026-09-21T14:13:22Z","recorded_by":"admin","entries":[],"stable":true}');

INSERT INTO public.rollbacks VALUES
	('r0', 'q0', false, '{"id":"r0"}'),
	('r1', 'q1', true, '{"id":"r1"}');

INSERT INTO public.scope VALUES
	('app-1', 'api', 'r1');

INSERT INTO public.tokens VALUES
	('h1', 'app-9', 'admin', 1790003600, NULL),
	('h0', 'app-8', 'admin', 1790003600, 1790000000);

ALTER TABLE ONLY public._sqlx_migrations
    ADD CONSTRAINT _sqlx_migrations_pkey PRIMARY KEY (version);

ALTER TABLE ONLY public.agents
    ADD CONSTRAINT agents_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (rollback_id, seq);

ALTER TABLE ONLY public.lease
    ADD CONSTRAINT lease_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.fleet
    ADD CONSTRAINT fleet_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.releases
    ADD CONSTRAINT releases_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.rollbacks
    ADD CONSTRAINT rollbacks_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.rollbacks
    ADD CONSTRAINT rollbacks_request_id_key UNIQUE (request_id);

ALTER TABLE ONLY public.scope
    ADD CONSTRAINT scope_pkey PRIMARY KEY (host, component);

ALTER TABLE ONLY public.tokens
    ADD CONSTRAINT tokens_pkey PRIMARY KEY (hash);

CREATE INDEX rollbacks_running ON public.rollbacks USING btree (id) WHERE running;

CREATE INDEX scope_rollback ON public.scope USING btree (rollback_id);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_rollback_id_fkey FOREIGN KEY (rollback_id) REFERENCES public.rollbacks(id);

ALTER TABLE ONLY public.scope
    ADD CONSTRAINT scope_rollback_id_fkey FOREIGN KEY (rollback_id) REFERENCES public.rollbacks(id);
